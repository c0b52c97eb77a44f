"""What others would answer with on the same embeddings: supports, their classes and queries -> a score for each class.

Every function takes (n_support, dim) float32, (n_support,) int64, (n_query, dim) float32 and the number of classes, and
gives (n_query, n_way) scores, higher is better. `easyfsl` is not a dependency of the project; without it its rows are
left out, and said so.
"""

import importlib.util
from collections.abc import Callable
from typing import Any

import numpy as np

Peer = Callable[[Any, Any, Any, int], Any]


def nearest_centroid(support: Any, class_index: Any, query: Any, n_way: int) -> Any:
    """scikit-learn's NearestCentroid, by Euclidean distance."""
    from sklearn.metrics import pairwise_distances
    from sklearn.neighbors import NearestCentroid

    with np.errstate(divide="ignore", invalid="ignore"):  # the spread of one photo a class, which is not used
        centroids = NearestCentroid().fit(support, class_index).centroids_
    return -pairwise_distances(query, centroids)


def logistic_regression(c: float) -> Peer:
    """scikit-learn's LogisticRegression; on embeddings of unit length its own C of 1 holds it back."""

    def answer(support: Any, class_index: Any, query: Any, n_way: int) -> Any:
        from sklearn.linear_model import LogisticRegression

        scores = LogisticRegression(C=c, max_iter=2000).fit(support, class_index).decision_function(query)
        return scores if scores.ndim == 2 else np.stack([-scores, scores], axis=1)  # two classes get one column

    return answer


def metric_learning_neighbour(support: Any, class_index: Any, query: Any, n_way: int) -> Any:
    """pytorch-metric-learning's nearest neighbours by cosine; a class is as near as its nearest photo."""
    import torch
    from pytorch_metric_learning.distances import CosineSimilarity
    from pytorch_metric_learning.utils.inference import CustomKNN

    near = CustomKNN(CosineSimilarity(), batch_size=None)
    cosines, rows = near(torch.from_numpy(query), len(support), torch.from_numpy(support), False)
    scores = np.full((len(query), n_way), -np.inf, np.float32)
    places = np.repeat(np.arange(len(query)), len(support))
    np.maximum.at(scores, (places, class_index[rows.numpy().ravel()]), cosines.numpy().ravel())
    return scores


def easyfsl_method(name: str) -> Peer:
    """One of easyfsl's classifiers (`PrototypicalNetworks`, `SimpleShot`) on finished embeddings."""

    def answer(support: Any, class_index: Any, query: Any, n_way: int) -> Any:
        import torch
        from easyfsl import methods

        classifier = getattr(methods, name)(torch.nn.Identity())
        with torch.inference_mode():
            classifier.process_support_set(torch.from_numpy(support), torch.from_numpy(class_index))
            return classifier(torch.from_numpy(query)).numpy()

    return answer


def trained_head(support: Any, class_index: Any, query: Any, n_way: int) -> Any:
    """The plant-disease study's way: two linear layers trained by cross-entropy on the enrolled photos (50 epochs)."""
    from fewshot.recipes import resolve
    from fewshot.training.head_phase import Features, head_logits, train_head

    recipe = resolve({"epochs": 0, "head": "mlp", "head_epochs": 50, "head_learning_rate": 1e-3})
    none = Features(support[:0], class_index[:0])
    labels = tuple(map(str, range(n_way)))
    head, _ = train_head(recipe, Features(support, class_index), none, none, labels, "", lambda progress: None)
    return head_logits(head, query)


def peers() -> dict[str, Peer]:
    """Every peer that is installed, by the name that tables show."""
    found: dict[str, Peer] = {}
    if importlib.util.find_spec("easyfsl"):
        found["easyfsl, prototypical networks"] = easyfsl_method("PrototypicalNetworks")
        found["easyfsl, SimpleShot"] = easyfsl_method("SimpleShot")
    else:
        print("easyfsl is not installed (`pip install easyfsl`); its rows are left out")
    return {
        **found,
        "pytorch-metric-learning, nearest neighbour": metric_learning_neighbour,
        "scikit-learn, NearestCentroid": nearest_centroid,
        "scikit-learn, LogisticRegression": logistic_regression(1.0),
        "scikit-learn, LogisticRegression, C = 100": logistic_regression(100.0),
        "cross-entropy head trained on the photos": trained_head,
    }
