"""The embedder that an index is pinned to, held against another: what differs, and which command changes it."""

import shlex

from fewshot import engines, extras
from fewshot.backbones import (
    DEFAULT_BACKBONE,
    QUALITIES,
    Backbone,
    WeightsSource,
    quality_of,
    resolve,
    statistics_name,
)
from fewshot.embedder import Embedder, EmbedderChoice, same_embeddings
from fewshot.errors import MixedEmbeddingsError
from fewshot.store import About


def check_choice(index_name: str, about: About, choice: EmbedderChoice) -> None:
    """Refuse what is known to make other embeddings than the index holds, before a backbone is prepared for it.

    What can only be known afterwards, such as the weights of a file, is left to `check_embedder`; a name that does not
    exist is left to `open_embedder`, which tells of it.

    Raises:
        MixedEmbeddingsError: the choice differs in backbone, quality or precision.
        BackboneError: see `backbones.resolve`.
    """
    if about.fingerprint is None or about.backbone is None or not _options(choice):
        return
    held = Backbone.from_dict(about.backbone)
    quality = choice.quality
    differing = []
    if choice.backbone is not None:
        source = resolve(choice.backbone)
        if source.kind == "hub" and not _is_model(source.architecture):
            return  # it does not exist, or cannot be told here
        if _makes_others(source, held):
            differing.append(f"backbone {source.name} instead of {held.name}")
        quality = quality or "fast"
    if quality in QUALITIES and QUALITIES[quality] != held.preprocessing.views:
        differing.append(f"quality {quality} instead of {quality_of(held.preprocessing.views)}")
    if choice.precision in engines.PRECISIONS and choice.precision != about.precision:
        differing.append(f"precision {choice.precision} instead of {about.precision}")
    if differing:
        raise _mixed(index_name, about, "what is asked for", differing, _options(choice), _options(choice))


def check_embedder(index_name: str, about: About, embedder: Embedder, choice: EmbedderChoice) -> None:
    """Refuse an opened embedder that makes other embeddings than the index holds.

    Args:
        index_name: what messages call the index.
        about: its facts.
        embedder: the opened one.
        choice: what the user chose of it.

    Raises:
        MixedEmbeddingsError: it does.
    """
    if about.fingerprint is None or same_embeddings(about.fingerprint, embedder.fingerprint):
        return
    differing = []
    if about.backbone is not None:
        held, own = Backbone.from_dict(about.backbone), embedder.backbone
        held_views, own_views = held.preprocessing.views, own.preprocessing.views
        if _identity(held) != _identity(own) or (held_views == own_views and held.preprocessing != own.preprocessing):
            others = " with other weights or preprocessing" if held.name == own.name else f" instead of {held.name}"
            differing.append(f"backbone {own.name}{others}")
        if held_views != own_views:
            differing.append(f"quality {quality_of(own_views)} instead of {quality_of(held_views)}")
    if embedder.precision != about.precision:
        differing.append(f"precision {embedder.precision} instead of {about.precision}")
    given = _options(choice)
    raise _mixed(index_name, about, embedder.fingerprint, differing, given, given or _as_options(embedder.source))


def _mixed(
    index_name: str,
    about: About,
    other: str,
    differing: list[str],
    given: dict[str, str],
    anew: dict[str, str],
) -> MixedEmbeddingsError:
    leave_out = f"Leave {' and '.join(given)} out; " if given else ""
    command = " ".join(["fewshot reindex", *(f"{option} {value}" for option, value in anew.items())])
    return MixedEmbeddingsError(
        f"index {index_name!r} holds {about.dim}-dim embeddings of {about.fingerprint}; {other} makes others: "
        f"{', '.join(differing) or 'of another fingerprint'}.",
        hint=f"{leave_out}`{command}` changes the index to it.",
    )


def _options(choice: EmbedderChoice) -> dict[str, str]:
    """What was chosen of an embedder, as options of a command."""
    given = {"--backbone": choice.backbone, "--quality": choice.quality, "--precision": choice.precision}
    return {option: shlex.quote(value) for option, value in given.items() if value is not None}


def _as_options(source: WeightsSource) -> dict[str, str]:
    """What names a source to `fewshot reindex`, which alone would take the default backbone, looking once."""
    names = {"trained": source.location, "file": f"{source.architecture}:{source.location}"}
    found = {} if source.name == DEFAULT_BACKBONE else {"--backbone": shlex.quote(names.get(source.kind, source.name))}
    return found if source.views == 1 else {**found, "--quality": quality_of(source.views)}


def _identity(backbone: Backbone) -> tuple[str, str, str | None]:
    return backbone.architecture, backbone.weights_sha256, backbone.statistics_sha256


def _makes_others(source: WeightsSource, held: Backbone) -> bool:
    """Whether a backbone is known, without reading its weights, to make other embeddings than an index holds."""
    is_other_network = source.architecture.split(".")[0] != held.architecture.split(".")[0]
    return is_other_network or statistics_name(source) != held.statistics_sha256


def _is_model(architecture: str) -> bool:
    if extras.missing("train", extras.NETWORKS):
        return False
    from fewshot.networks import is_model

    return is_model(architecture)
