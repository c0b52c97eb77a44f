"""Classes on a sphere, where the truth is known, and their photos left out one by one, by brute force."""

import numpy as np

from fewshot.classifier.calibration import LeaveOneOut
from fewshot.classifier.prototypes import class_prototypes, own_similarities

DIM = 32


def world(n_way, n_shot, n_query, seed, spread=1.0):
    """Gaussian classes on the sphere: supports, their classes, queries, theirs."""
    rng = np.random.default_rng(seed)
    centres = rng.normal(size=(n_way, DIM))

    def draw(n):
        index = np.repeat(np.arange(n_way), n)
        rows = centres[index] + spread * rng.normal(size=(n_way * n, DIM))
        return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32), index

    return *draw(n_shot), *draw(n_query)


def left_out(support, class_index):
    """Leave-one-out by brute force."""
    n_way = class_index.max() + 1
    cosines = support @ class_prototypes(support, class_index, n_way).T
    own = np.empty(len(support), np.float32)
    for i in range(n_way):
        own[class_index == i] = own_similarities(support[class_index == i])
    cosines[np.arange(len(support)), class_index] = -np.inf
    return LeaveOneOut(class_index + 100, own, -np.sort(-cosines, axis=1)[:, : max(1, n_way - 1)])
