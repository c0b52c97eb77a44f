"""A recipe -> the network to train: its parts, what of it is frozen, its preprocessing, its head."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from fewshot import networks
from fewshot.backbones import Backbone, Preprocessing, WeightsSource, resolve
from fewshot.errors import TrainingError
from fewshot.recipes import BASELINES, Recipe
from fewshot.records import Float32s, Int64s, Pixels
from fewshot.training.batches import plain_batch

_BASELINE_SIZE_PX = 80  # the microscopy study's
_EMBED_BATCH = 64
_ORIGINS = {"shipped": "trained", "trained": "trained", "file": "file"}  # a source's kind -> what its weights are
_NORMS = (nn.modules.batchnorm._BatchNorm, nn.LayerNorm, nn.GroupNorm)


@dataclass(frozen=True, slots=True)
class Origin:
    """What a trained backbone started from: its name in the recipe, timm's name, and its weights.

    `weights` is "imagenet" (pretrained as the name says), "trained" (the shipped backbone's, or a training's), "file"
    (a local .safetensors, of which no more is known) or "random".
    """

    name: str
    architecture: str
    weights: str


class Trainee(nn.Module):
    """A backbone with its normalisation inside: (n, 3, size, size) float32 in [0, 1] -> (n, dim), any length.

    `preprocessing` is what tests and use do, as the recipe says; `own_size_px` the backbone's own input, before that.
    """

    mean: torch.Tensor
    std: torch.Tensor

    def __init__(
        self, network: nn.Module, origin: Origin, preprocessing: Preprocessing, own_size_px: int, dim: int
    ) -> None:
        super().__init__()
        self.network = network.to(memory_format=torch.channels_last)
        self.origin, self.preprocessing, self.own_size_px, self.dim = origin, preprocessing, own_size_px, dim
        self.register_buffer("mean", torch.tensor(preprocessing.mean).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(preprocessing.std).view(1, 3, 1, 1), persistent=False)

    def forward(self, photos: torch.Tensor) -> torch.Tensor:
        """Normalise, then run the backbone."""
        embeddings = self.network((photos - self.mean) / self.std)
        assert isinstance(embeddings, torch.Tensor)
        return embeddings

    def normalise_by(self, mean: Float32s, std: Float32s) -> None:
        """Take these, (3,) each, as the mean and standard deviation of the channels, here and in use."""
        self.preprocessing = replace(self.preprocessing, mean=tuple(mean.tolist()), std=tuple(std.tolist()))
        for buffer, values in ((self.mean, mean), (self.std, std)):
            buffer.copy_(torch.from_numpy(values).view(1, 3, 1, 1))


class Head(nn.Module):
    """Two linear layers joined by ReLU (and dropout): the studies' classifier on a frozen backbone."""

    def __init__(self, dim: int, width: int, n_classes: int, dropout: float) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(dim, width), nn.ReLU(), nn.Dropout(dropout), nn.Linear(width, n_classes))

    def forward(self, embeddings: torch.Tensor) -> torch.Tensor:
        """(n, dim) -> (n, n_classes) logits."""
        logits = self.layers(embeddings)
        assert isinstance(logits, torch.Tensor)
        return logits


class Projection(nn.Module):
    """Two linear layers joined by ReLU, trained with the loss and dropped after: the loss bends it, not the embedding.

    Source:
        Chen et al. 2020 (SimCLR), arXiv 2002.05709, section 4.2.
    """

    def __init__(self, dim: int, out_dim: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(dim, out_dim), nn.ReLU(), nn.Linear(out_dim, out_dim))

    def forward(self, embeddings: torch.Tensor) -> torch.Tensor:
        """(n, dim) -> (n, out_dim)."""
        projected = self.layers(embeddings)
        assert isinstance(projected, torch.Tensor)
        return projected


def build_trainee(recipe: Recipe) -> Trainee:
    """The backbone a recipe names, with the weights it asks for; for normalisation "dataset" see `normalise_by`.

    Raises:
        WeightsUnreachableError: ImageNet weights are asked for and are not on this machine.
    """
    if recipe.backbone in BASELINES:
        network = _baseline(recipe.backbone)
        origin = Origin(recipe.backbone, recipe.backbone, "random")
        plain = Preprocessing(_BASELINE_SIZE_PX, 1.0, "bicubic", (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
        trainee_dim, preprocessing = _BASELINE_WIDTH[recipe.backbone], plain
    else:
        load = networks.load if recipe.weights == "imagenet" else networks.load_untrained
        source = resolve(recipe.backbone)
        described, network = load(source)
        origin = origin_of(recipe.backbone, source, described)
        if recipe.weights == "random":
            origin = replace(origin, weights="random")
        trainee_dim, preprocessing = described.dim, described.preprocessing
    own_size_px = preprocessing.image_size_px
    if recipe.normalisation == "none":
        preprocessing = replace(preprocessing, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
    size = recipe.test_image_size_px or recipe.image_size_px
    if size and recipe.backbone not in BASELINES:
        preprocessing = replace(preprocessing, image_size_px=size)
    if recipe.test_crop_pct:
        preprocessing = replace(preprocessing, crop_pct=recipe.test_crop_pct)
    return Trainee(network, origin, preprocessing, own_size_px, trainee_dim)


def origin_of(name: str, source: WeightsSource, described: Backbone) -> Origin:
    """What a backbone with its own weights is, by the name that a recipe gives it."""
    return Origin(name, described.architecture, _ORIGINS.get(source.kind, "imagenet"))


def training_size_px(recipe: Recipe, trainee: Trainee) -> int:
    """Side of the network's input in training."""
    return trainee.own_size_px if recipe.backbone in BASELINES else recipe.image_size_px or trainee.own_size_px


def parts(network: nn.Module) -> list[list[nn.Module]]:
    """The network's parts from input to output, each a list of modules.

    Parts are the direct children that have weights. Where three or more of these are sequences, they are the stages and
    stay whole (ResNet-34 has 5 parts: the first convolution, four layers); fewer are opened, as the stages are inside
    (EfficientNet-Lite0 has 9: the stem, seven stages, the last convolution). A normalisation belongs to the part
    before it. Where blocks are not grouped, each is a part (Inception-v3 and Xception have 16).
    """
    children = [child for child in network.children() if _has_weights(child)]
    sequences = [child for child in children if isinstance(child, nn.Sequential | nn.ModuleList)]
    found: list[list[nn.Module]] = []
    for child in children:
        opened = child.children() if child in sequences and len(sequences) < 3 else [child]
        for module in filter(_has_weights, opened):
            if found and _only_normalises(module):
                found[-1].append(module)
            else:
                found.append([module])
    return found


def parameter_groups(recipe: Recipe, trainee: Trainee) -> list[dict[str, object]]:
    """The optimiser's groups for the backbone, each part at its learning rate; frozen parts stop learning.

    Raises:
        TrainingError: more parts are to be frozen than there are.
    """
    every = parts(trainee.network)
    if recipe.frozen_parts >= len(every):
        raise TrainingError(
            f"{trainee.origin.name} has {len(every)} parts; frozen_parts {recipe.frozen_parts} leaves none to train.",
            hint="Lower frozen_parts, or set epochs to 0 and train a head.",
        )
    groups: list[dict[str, object]] = []
    for depth, part in enumerate(reversed(every)):
        parameters = [parameter for module in part for parameter in module.parameters()]
        if depth >= len(every) - recipe.frozen_parts:
            for parameter in parameters:
                parameter.requires_grad_(False)
        else:
            groups.append({"params": parameters, "lr": recipe.learning_rate * recipe.layer_decay**depth})
    return groups


def training_mode(recipe: Recipe, trainee: Trainee) -> None:
    """Set the backbone to train, but for frozen parts and, if the recipe says so, all batch norms' statistics."""
    trainee.train()
    still = [module for part in parts(trainee.network)[: recipe.frozen_parts] for module in part]
    for module in still:
        module.eval()
    if recipe.frozen_batch_norm:
        for module in trainee.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.eval()


@torch.inference_mode()
def embed(trainee: Trainee, pixels: Pixels, device: torch.device) -> Float32s:
    """Embed plain views: (n, size, size, 3) uint8 -> (n, dim) float32, any length."""
    trainee.eval()
    rows = [
        trainee(plain_batch(pixels[start : start + _EMBED_BATCH]).to(device)).float().cpu().numpy()
        for start in range(0, len(pixels), _EMBED_BATCH)
    ]
    return np.concatenate(rows) if rows else np.zeros((0, trainee.dim), np.float32)


def interpolate(trained: nn.Module, pretrained: dict[str, torch.Tensor], share: float) -> None:
    """Move a network's weights to `share` of the way from the pretrained to the trained ones, in place.

    Source:
        Wortsman et al. 2021 (WiSE-FT), arXiv 2109.01903. Batch norms' running statistics are interpolated too.
    """
    state = trained.state_dict()
    with torch.no_grad():
        for name, tensor in state.items():
            if tensor.is_floating_point():
                tensor.copy_(torch.lerp(pretrained[name].to(tensor.device), tensor, share))


def first_not_finite(network: nn.Module) -> str | None:
    """The name of the first parameter or buffer that holds NaN or an infinity; None where none does."""
    tensors = network.state_dict()
    return next((name for name, tensor in tensors.items() if not torch.isfinite(tensor).all()), None)


def unit_rows(embeddings: torch.Tensor) -> torch.Tensor:
    """Rows scaled to unit length."""
    return functional.normalize(embeddings, dim=1)


def prototypes(embeddings: torch.Tensor, class_index: Int64s, n_classes: int) -> torch.Tensor:
    """(n, dim) embeddings of any length -> (n_classes, dim), rows of unit length; every class has a row."""
    unit, owner = unit_rows(embeddings), torch.from_numpy(class_index)
    return unit_rows(torch.stack([unit[owner == i].mean(0) for i in range(n_classes)]))


def _has_weights(module: nn.Module) -> bool:
    return any(True for _ in module.parameters())


def _only_normalises(module: nn.Module) -> bool:
    """Whether all its weights are normalisations', alone or in a wrapping (ConvNeXt's is in its empty head)."""
    return all(isinstance(inner, _NORMS) for inner in module.modules() if [*inner.parameters(recurse=False)])


class _Grey(nn.Module):
    """(n, 3, h, w) -> (n, 1, 80, 80): the baselines see one channel of a small picture."""

    def forward(self, photos: torch.Tensor) -> torch.Tensor:
        grey = photos.mean(1, keepdim=True)
        if grey.shape[-1] != _BASELINE_SIZE_PX:
            grey = functional.interpolate(grey, size=(_BASELINE_SIZE_PX, _BASELINE_SIZE_PX), mode="area")
        return grey


_BASELINE_WIDTH = {"ann-basic": 128, "ann-dense": 128, "cnn-basic": 128}


def _baseline(name: str) -> nn.Module:
    """The microscopy study's own networks, of the kinds it names; it gives no layer sizes, so these are ours."""
    n_inputs = _BASELINE_SIZE_PX**2
    if name == "ann-basic":
        return nn.Sequential(_Grey(), nn.Flatten(), nn.Linear(n_inputs, 128), nn.ReLU())
    if name == "ann-dense":
        return nn.Sequential(_Grey(), nn.Flatten(), *_dense(n_inputs, (1024, 512, 256, 128)))
    convolutions: list[nn.Module] = []
    for n_in, n_out in ((1, 32), (32, 64), (64, 128)):
        convolutions += [nn.Conv2d(n_in, n_out, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)]
    return nn.Sequential(_Grey(), *convolutions, nn.AdaptiveAvgPool2d(2), nn.Flatten(), *_dense(512, (128,)))


def _dense(n_in: int, widths: Sequence[int]) -> list[nn.Module]:
    layers: list[nn.Module] = []
    for width in widths:
        layers += [nn.Linear(n_in, width), nn.ReLU(), nn.Dropout(0.2)]
        n_in = width
    return layers
