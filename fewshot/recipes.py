"""A recipe YAML -> checked settings, with defaults and help."""

import dataclasses
import itertools
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import yaml

from fewshot.errors import FewshotError, RecipeError, did_you_mean, nearest_name

LOSS_NAMES = ("contrastive", "triplet", "quadruplet", "sphereface", "cosface", "arcface", "cross-entropy")
BASELINES = ("ann-basic", "ann-dense", "cnn-basic")
BACKBONE_NAMES = (
    "plants-lite0",
    "lite0",
    "lite1",
    "lite2",
    "convnext_small",
    "efficientnet_b3",
    "inception_v3",
    "mnasnet_100",
    "mnasnet_140",
    "mobilenetv2_100",
    "mobilenetv3_large_100",
    "regnetx_016",
    "resnet101",
    "resnext50_32x4d",
    "resnet18",
    "resnet34",
    "resnet50",
    "legacy_xception",
    "densenet121",
    *BASELINES,
)

MAX_YAML_BYTES = 1_000_000


def _key(default: Any, help: str, **checks: Any) -> Any:
    """A recipe key: its default, what it means, and what its value may be (`choices`, `low`, `high`)."""
    return dataclasses.field(default=default, metadata={"help": help, **checks})


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """One training, every setting checked. The keys of a recipe file are these fields.

    A training has two parts, either of which may have 0 epochs: the backbone is trained with `loss`, then a head is
    trained on the finished, frozen backbone's embeddings.
    """

    # ---- photos
    train_folder: str = _key("train", "folder under --data with one sub-folder a class, to train on")
    test_folder: str = _key("", "folder under --data to test on; empty: a share of the training photos is split off")
    test_share: float = _key(0.2, "share split off for the test when there is no test folder", low=0.0, high=0.9)
    validation_share: float = _key(
        0.0, "share of the training photos to choose the epoch by; 0: the test photos do it", low=0.0, high=0.9
    )
    split_by: str = _key(
        "photo", "split photo by photo, or keep all photos of one source together", choices=("photo", "source")
    )
    source_pattern: str = _key("", "regular expression; its first group, found in a file's name, is the photo's source")
    held_out_classes: tuple[str, ...] = _key((), "classes left out of training altogether, for choosing a recipe")
    photos_per_class_max: int = _key(
        0,
        "at most so many photos of a class are trained on or split off, the first by name; a test folder stays whole; "
        "0: all",
        low=0,
    )
    # ---- network
    backbone: str = _key(
        "lite0", "network: a known name, the folder of a trained one, or ARCHITECTURE:FILE.safetensors"
    )
    weights: str = _key(
        "imagenet",
        "the backbone's own weights (ImageNet's, or a trained one's), or random ones",
        choices=("imagenet", "random"),
    )
    image_size_px: int = _key(0, "side of the network's input in training; 0: the backbone's own", low=0, high=1024)
    test_image_size_px: int = _key(0, "side of the input in tests; 0: as in training", low=0, high=1024)
    test_crop_pct: float = _key(
        0.0, "share of the photo's short side that tests see; 0: the backbone's own", low=0.0, high=1.0
    )
    grey: bool = _key(False, "photos in grey (three equal channels), for the baselines alone, which see no other")
    normalisation: str = _key(
        "imagenet",
        "channel mean and std: none (0, 1), imagenet (the backbone's own), dataset (measured on the training photos)",
        choices=("none", "imagenet", "dataset"),
    )
    frozen_parts: int = _key(0, "so many of the network's first parts stay as they are; -1: all of them", low=-1)
    frozen_batch_norm: bool = _key(False, "batch norms keep their running mean and variance")
    # ---- the loss and the backbone's training
    loss: str = _key("cross-entropy", "what the backbone is trained with", choices=LOSS_NAMES)
    margin: float | None = _key(None, "the loss's margin; ArcFace's in degrees; empty: the published one")
    margin_2: float | None = _key(None, "the quadruplet loss's second margin; empty: 1")
    scale: float | None = _key(None, "scale of CosFace and ArcFace; empty: 32", low=0.0)
    mining: str = _key(
        "all", "which pairs, triplets or quadruplets of a batch count", choices=("all", "semihard", "hard")
    )
    quadruplet_form: str = _key("anchor", "form of the quadruplet loss", choices=("anchor", "four-sample"))
    projection_dim: int = _key(0, "length of a projection trained with the loss and dropped after; 0: none", low=0)
    prototype_start: bool = _key(False, "class vectors start as the classes' prototypes before training")
    teachers: tuple[str, ...] = _key(
        (), "trained backbones that embed the same changed photos; named as `backbone` is, they stay as they are"
    )
    distillation: float = _key(0.0, "weight of following the teachers' embeddings, beside the loss", low=0.0)
    epochs: int = _key(30, "epochs of the backbone; 0: it stays as it is", low=0)
    batch_size: int = _key(64, "photos a batch", low=2)
    photos_per_class: int = _key(4, "K of the P x K batches that pair losses need (P = batch_size / K)", low=2)
    optimiser: str = _key("adam", "optimiser", choices=("adam", "adamw", "sgd"))
    learning_rate: float = _key(1e-4, "learning rate of the backbone's last part", low=0.0)
    loss_learning_rate: float = _key(
        0.0,
        "learning rate of the class vectors, the projection and the map to the teachers; 0: as the backbone's",
        low=0.0,
    )
    weight_decay: float = _key(0.0, "weight decay", low=0.0)
    layer_decay: float = _key(
        1.0, "each part, counted from the last, learns at this share of the next one's rate", low=0.0, high=1.0
    )
    schedule: str = _key("constant", "learning rate over time", choices=("constant", "cosine", "step"))
    warmup_epochs: float = _key(0.0, "epochs over which the rate rises from 0", low=0.0)
    step_epochs: int = _key(7, "schedule step: epochs between two falls", low=1)
    step_factor: float = _key(0.1, "schedule step: factor of each fall", low=0.0, high=1.0)
    keep: str = _key("last", "keep the last epoch, or the best by validation accuracy", choices=("last", "best"))
    patience: int = _key(0, "stop after so many epochs without a better validation accuracy; 0: never", low=0)
    interpolation: float = _key(
        1.0, "the backbone kept: this share of the trained weights, the rest pretrained", low=0.0, high=1.0
    )
    # ---- augmentation
    flips: bool = _key(True, "random mirror images, left to right")
    quarter_turns: bool = _key(False, "random quarter turns")
    crop_min_share: float = _key(
        1.0, "random crops of at least this share of the photo's area; 1: whole photos", low=0.05, high=1.0
    )
    colour_jitter: float = _key(
        0.0, "random brightness, contrast and saturation by up to this share", low=0.0, high=1.0
    )
    new_ground: float = _key(
        0.0,
        "share of the photos with a leaf on a plain ground that get another photo's surroundings instead",
        low=0.0,
        high=1.0,
    )
    ground_classes: tuple[str, ...] = _key(
        (), "classes photographed where they grow: their photos lend the surroundings, and keep their own"
    )
    grey_share: float = _key(0.0, "share of the photos turned grey at random", low=0.0, high=1.0)
    mixup: float = _key(0.0, "alpha of mixup for losses with class vectors; 0: none", low=0.0)
    # ---- the head
    head: str = _key(
        "none",
        "classifier trained on the frozen backbone: none, or two linear layers with ReLU",
        choices=("none", "mlp"),
    )
    head_width: int = _key(512, "width between the head's two layers", low=1)
    head_dropout: float = _key(0.0, "dropout between the head's two layers", low=0.0, high=0.95)
    head_epochs: int = _key(30, "epochs of the head", low=0)
    head_batch_size: int = _key(64, "photos a batch for the head", low=2)
    head_learning_rate: float = _key(1e-4, "learning rate of the head (Adam)", low=0.0)
    # ---- the run
    seed: int = _key(0, "seed of every random choice", low=0)

    def as_dict(self) -> dict[str, Any]:
        """The resolved recipe, JSON-able: every key with its value."""
        values = dataclasses.asdict(self)
        return {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}

    @property
    def compares_photos(self) -> bool:
        """Whether the loss compares photos of one batch with each other, so that it needs several of each class."""
        return self.loss in ("contrastive", "triplet", "quadruplet")

    @property
    def loss_settings(self) -> dict[str, Any]:
        """What the recipe says of its loss, under the names that `losses.build_loss` takes."""
        given = {
            "margin_degrees" if self.loss == "arcface" else "margin": self.margin,
            "margin_2": self.margin_2 if self.loss == "quadruplet" else None,
            "scale": self.scale if self.loss in ("cosface", "arcface") else None,
            "mining": self.mining if self.compares_photos else None,
            "form": self.quadruplet_form if self.loss == "quadruplet" else None,
        }
        return {name: value for name, value in given.items() if value is not None}


@dataclass(frozen=True, slots=True)
class Cell:
    """One training of a grid: its name, made of the grid's keys (empty for a recipe without a grid), and its recipe.

    The name is that of the whole grid also where a few cells are picked, so that a cell has one folder.
    """

    name: str
    recipe: Recipe


@dataclass(frozen=True, slots=True)
class Plan:
    """A recipe file, read: its name, its cells in order, and the keys that make the grid."""

    name: str
    cells: tuple[Cell, ...]
    grid_keys: tuple[str, ...]


_FIELDS = {field.name: field for field in dataclasses.fields(Recipe)}


def recipe_help() -> list[tuple[str, Any, str]]:
    """(key, default, meaning) of every recipe key, in order; as docs/training.md lists them."""
    return [(field.name, field.default, _meaning(field)) for field in _FIELDS.values()]


def resolve(settings: Mapping[str, Any]) -> Recipe:
    """Settings -> a recipe with every other key at its default.

    Raises:
        RecipeError: an unknown key, loss or backbone (suggests the nearest); a value of the wrong type or out of
            range; settings that contradict each other.

    >>> resolve({"loss": "arcface", "epochs": 3}).loss
    'arcface'
    """
    _check_keys(settings)
    recipe = Recipe(**{key: _checked(key, value) for key, value in settings.items()})
    _check_backbone(recipe.backbone, BACKBONE_NAMES, "to train")
    for name in recipe.teachers:
        _check_backbone(name, [known for known in BACKBONE_NAMES if known not in BASELINES], "to train from")
    _check_source_pattern(recipe.source_pattern)
    _check_together(recipe)
    return recipe


def read_plan(path: Path, only: str | None = None) -> Plan:
    """Read a recipe file; every key whose value is a list spans a grid, one training a cell.

    Args:
        path: the YAML file.
        only: `key=value,key=value`; a list is `key=[value,value]`. Of a grid, the cells with these values stay (several
            values of one key: repeat the key), under the names that they have in the whole grid. A value that the grid
            lacks makes a cell of its own; a key that is no grid gets the value instead of the file's, or spans a grid
            by several.

    Raises:
        RecipeError: not a flat YAML of known keys, or `only` cannot be understood.
    """
    settings = read_yaml(path)
    nested = [str(key) for key, value in settings.items() if isinstance(value, dict)]
    if nested:
        raise RecipeError(f"{path.name}: a recipe is flat, but {nested[0]!r} holds keys of its own.")
    picked = _parse_only(only)
    try:
        _check_keys(settings)
        for key, wanted in picked.items():
            if _spans(key, settings.get(key)):
                spelled = _by_value(key, settings[key])  # a cell's name is made of the file's spelling
                settings[key] = [spelled.get(_checked(key, value), value) for value in wanted]
            else:
                settings[key] = wanted if len(wanted) > 1 else wanted[0]
        spanned = [key for key, value in settings.items() if _spans(key, value)]
        cells = []
        for values in itertools.product(*(_by_value(key, settings[key]).values() for key in spanned)):
            chosen = dict(zip(spanned, values, strict=True))
            name = " ".join(f"{key}={value}" for key, value in chosen.items())
            cells.append(Cell(name, resolve({**settings, **chosen})))
    except RecipeError as error:
        raise RecipeError(f"{path.name}: {error.message}", hint=error.hint) from error
    return Plan(path.stem, tuple(cells), tuple(spanned))


def read_yaml(path: Path, what: str = "recipe", error_type: type[FewshotError] = RecipeError) -> dict[str, Any]:
    """The mapping that a YAML file holds, no key of it given twice.

    Args:
        path: the file.
        what: how messages call it.
        error_type: what is raised.

    Raises:
        RecipeError, or `error_type`: the file cannot be read (suggests the nearest beside it), is not YAML, holds no
            mapping, or what no such file needs: more than `MAX_YAML_BYTES`, references, depth without end.
    """
    try:
        if path.exists() and not path.is_file():  # a pipe or a device would be waited for
            raise error_type(f"the {what} {path} is no regular file.")
        with path.open("rb") as file:
            text = file.read(MAX_YAML_BYTES + 1)
        if len(text) > MAX_YAML_BYTES:
            raise error_type(f"{path.name} has more than {MAX_YAML_BYTES / 1e6:g} MB; wanted a {what}.")
        content = yaml.load(text.decode(), _UniqueKeys)  # noqa: S506 - a SafeLoader
    except OSError as error:
        folder = path.parent if path.parent.is_dir() else Path("configs")
        names = [str(file) for file in sorted(folder.glob("*.yaml"))]
        near = nearest_name(str(path), names)
        hint = f"Did you mean {near!r}?" if near else f"YAML files here: {', '.join(names) or 'none'}."
        raise error_type(f"the {what} {path} cannot be read: {error.strerror}.", hint=hint) from error
    except (yaml.YAMLError, ValueError) as error:  # ValueError: a date or a number that cannot be, or no UTF-8
        raise error_type(f"{path.name} is not valid YAML: {' '.join(str(error).split())}.") from error
    except RecursionError as error:
        raise error_type(f"{path.name} is nested too deeply; wanted one `key: value` a line.") from error
    if not isinstance(content, dict):
        raise error_type(f"{path.name} holds {type(content).__name__}; wanted one `key: value` a line.")
    return content


class _UniqueKeys(yaml.SafeLoader):  # type: ignore[misc,unused-ignore]  # yaml may have no types
    """YAML lets a later key replace an earlier one silently; in a recipe that is a mistake.

    References to other parts of the file are refused: nine lines of them can stand for gigabytes.
    """

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            mark = self.peek_event().start_mark  # type: ignore[no-untyped-call,unused-ignore]
            raise yaml.composer.ComposerError(None, None, "references (*name) are not read here", mark)
        return super().compose_node(parent, index)


def _unique_mapping(loader: yaml.SafeLoader, node: yaml.MappingNode) -> dict[Any, Any]:
    keys = [loader.construct_object(key) for key, _ in node.value]
    seen = set()
    for key in filter(_is_hashable, keys):  # the others are refused below
        if key in seen:
            raise yaml.constructor.ConstructorError(None, None, f"the key {key!r} is given twice", node.start_mark)
        seen.add(key)
    return cast(dict[Any, Any], loader.construct_mapping(node, deep=True))


def _is_hashable(key: Any) -> bool:
    try:
        hash(key)
    except TypeError:
        return False
    return True


_UniqueKeys.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, _unique_mapping)


_BETWEEN = re.compile(r",(?![^\[]*\])")  # a comma that is not between brackets


def _parse_only(only: str | None) -> dict[str, list[Any]]:
    chosen: dict[str, list[Any]] = {}
    for part in filter(None, _BETWEEN.split(only or "")):
        key, equals, value = part.partition("=")
        key = key.strip()
        if not equals or not value.strip():
            raise RecipeError(f"--only takes key=value,key=value; {part!r} is neither.")
        if key not in _FIELDS:
            raise RecipeError(f"--only: there is no recipe key {key!r}.", hint=did_you_mean(key, _FIELDS))
        # A backbone may be ARCHITECTURE:FILE, which YAML would read as a mapping; names are taken as they are typed.
        try:
            typed = value.strip() if _type_of(key) is str else yaml.safe_load(value)
        except (yaml.YAMLError, ValueError, RecursionError) as error:  # as in `read_yaml`
            raise RecipeError(f"--only: {part!r} is not valid YAML after the =.") from error
        if _type_of(key) is tuple:  # one list, however it is given
            chosen.setdefault(key, [[]])[0].extend(typed if isinstance(typed, list) else [typed])
        else:
            chosen.setdefault(key, []).append(typed)
    return chosen


def _check_keys(settings: Mapping[str, Any]) -> None:
    for key in settings:
        if key not in _FIELDS:
            raise RecipeError(
                f"there is no recipe key {key!r}.",
                hint=did_you_mean(str(key), _FIELDS) or f"Keys: {', '.join(_FIELDS)}.",
            )


def _by_value(key: str, values: Sequence[Any]) -> dict[Any, Any]:
    """The values that a key spans, as they are written, by what they are; none twice."""
    if not values:
        raise RecipeError(f"the list of {key!r} is empty.")
    spelled: dict[Any, Any] = {}
    for value in values:
        meant = _checked(key, value)
        if meant in spelled:
            raise RecipeError(f"{key} is {value!r} twice; wanted each value once.")
        spelled[meant] = value
    return spelled


def _checked(key: str, value: Any) -> Any:
    """`value` as the key's type, within its bounds."""
    field, wanted = _FIELDS[key], _type_of(key)
    checks = field.metadata
    if wanted is tuple:
        if not isinstance(value, list | tuple) or not all(isinstance(item, str) for item in value):
            raise RecipeError(f"{key} is {value!r}; wanted a list of {'backbones' if key == 'teachers' else 'labels'}.")
        return tuple(value)
    if value is None and field.default is None:
        return None
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if wanted is float and isinstance(value, str):  # YAML 1.1 reads 1e-4, without a dot, as text
        try:
            value, number = float(value), True
        except ValueError:
            number = False
    fits = number if wanted is float else type(value) is wanted
    try:
        finite = not number or math.isfinite(value)
    except OverflowError as error:  # an integer beyond floats, of too many digits to be shown
        raise RecipeError(f"{key} is far too large a number; wanted {_meaning(field)}.") from error
    if not fits or not finite:
        raise RecipeError(f"{key} is {value!r}; wanted {_meaning(field)}.")
    value = wanted(value)
    choices: Sequence[str] | None = checks.get("choices")
    if choices and value not in choices:
        raise RecipeError(
            f"there is no {key} {value!r}.", hint=f"{did_you_mean(value, choices)} Known: {', '.join(choices)}.".strip()
        )
    low, high = checks.get("low"), checks.get("high")
    if (low is not None and value < low) or (high is not None and value > high):
        raise RecipeError(f"{key} is {value}; wanted {_meaning(field)}.")
    return value


def _check_backbone(name: str, known: Sequence[str], wanted: str) -> None:
    if ":" in name or "/" in name or name.endswith(".safetensors") or name in known:
        return
    raise RecipeError(
        f"there is no backbone {name!r} {wanted}.",
        hint=f"{did_you_mean(name, known)} Known: {', '.join(known)}.".strip(),
    )


def _check_source_pattern(pattern: str) -> None:
    try:
        n_groups = re.compile(pattern).groups
    except (re.error, OverflowError, RecursionError) as error:
        raise RecipeError(f"source_pattern {pattern!r} is no regular expression: {error}.") from error
    if pattern and not n_groups:
        raise RecipeError(f"source_pattern {pattern!r} has no group; wanted one, around the source.")


def _check_together(recipe: Recipe) -> None:
    """Refuse what would silently do something else than it says."""
    pairs = recipe.compares_photos
    n_way = recipe.batch_size // recipe.photos_per_class
    wrong = {
        "neither the backbone nor a head is trained: epochs is 0 and head is 'none'": (
            recipe.epochs == 0 and (recipe.head == "none" or recipe.head_epochs == 0)
        ),
        "all parts are frozen, so the backbone's epochs must be 0": recipe.frozen_parts == -1 and recipe.epochs > 0,
        f"batch_size {recipe.batch_size} is not a multiple of photos_per_class {recipe.photos_per_class}": (
            pairs and recipe.epochs > 0 and recipe.batch_size % recipe.photos_per_class > 0
        ),
        f"a batch of {recipe.batch_size} photos, {recipe.photos_per_class} a class, holds {n_way} of the at least "
        f"{least_n_way(recipe)} classes that the {recipe.loss} loss compares": (
            pairs and recipe.epochs > 0 and n_way < least_n_way(recipe)
        ),
        "mining semihard is of triplets; the quadruplet loss takes all or hard": (
            recipe.epochs > 0 and recipe.loss == "quadruplet" and recipe.mining == "semihard"
        ),
        f"the SphereFace loss multiplies the angle by its margin, and {recipe.margin} is no whole number above 0": (
            recipe.epochs > 0
            and recipe.loss == "sphereface"
            and recipe.margin is not None
            and (recipe.margin < 1 or recipe.margin % 1 > 0)
        ),
        "the cross-entropy loss has no margin": (
            recipe.epochs > 0 and recipe.loss == "cross-entropy" and recipe.margin is not None
        ),
        f"mixup does not fit the {recipe.loss} loss, which compares photos": pairs and recipe.mixup > 0,
        f"a prototype start does not fit the {recipe.loss} loss, which has no unit-length class vectors": (
            recipe.prototype_start and (pairs or recipe.loss == "cross-entropy")
        ),
        "a prototype start needs the embedding itself, and projection_dim puts another between": (
            recipe.prototype_start and recipe.projection_dim > 0
        ),
        "a leaf is told from its ground by colour, and the photos are grey": recipe.new_ground > 0
        and (recipe.grey or recipe.backbone in BASELINES),
        "new_ground and ground_classes need each other": (recipe.new_ground > 0) != bool(recipe.ground_classes),
        f"grey is for the baselines; {recipe.backbone} would be tested on grey photos and used on coloured ones": (
            recipe.grey and recipe.backbone not in BASELINES
        ),
        "keep: best and patience need photos to choose the epoch by, and there is no test_folder, test_share or "
        "validation_share": (
            (recipe.keep == "best" or recipe.patience > 0)
            and not (recipe.test_folder or recipe.test_share or recipe.validation_share)
        ),
        "split_by: source needs a source_pattern": recipe.split_by == "source" and not recipe.source_pattern,
        f"the baseline {recipe.backbone} has no ImageNet weights; say `weights: random`": (
            recipe.backbone in BASELINES and recipe.weights != "random"
        ),
        "the weights are random: there are no pretrained ones to interpolate with": (
            recipe.weights == "random" and recipe.interpolation < 1
        ),
        "teachers and distillation need each other": bool(recipe.teachers) != (recipe.distillation > 0),
        f"teachers see colours, and the baseline {recipe.backbone} is trained on grey photos": (
            bool(recipe.teachers) and recipe.backbone in BASELINES
        ),
    }
    for what, found in wrong.items():
        if found:
            raise RecipeError(f"the recipe contradicts itself: {what}.")


def least_n_way(recipe: Recipe) -> int:
    """How many classes a loss that compares photos needs: with fewer there is no negative.

    >>> least_n_way(resolve({"loss": "quadruplet", "quadruplet_form": "four-sample"}))
    3
    """
    return 3 if recipe.loss == "quadruplet" and recipe.quadruplet_form == "four-sample" else 2


def _type_of(key: str) -> type[Any]:
    """bool, int, float, str or tuple: what the key's value is."""
    annotated = _FIELDS[key].type
    if annotated in (bool, int, float, str):
        return cast(type[Any], annotated)
    return float if annotated == float | None else tuple


def _spans(key: str, value: Any) -> bool:
    """Whether a key with this value spans a grid: a list, where the key wants none."""
    return isinstance(value, list) and not (key in _FIELDS and _type_of(key) is tuple)


def _meaning(field: "dataclasses.Field[Any]") -> str:
    """The key's help with its bounds."""
    checks = field.metadata
    bounds = ""
    if "choices" in checks:
        bounds = f" ({', '.join(checks['choices'])})"
    elif "low" in checks or "high" in checks:
        low, high = checks.get("low"), checks.get("high")
        bounds = f" ({low} to {high})" if high is not None else f" (at least {low})"
    return f"{checks['help']}{bounds}"
