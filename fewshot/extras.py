"""What is installed beside the base: the extras, their libraries, and the error that names the one that is missing."""

import importlib.util

from fewshot.errors import MissingExtraError

# extra: the libraries that it brings and the base does not have, as they are imported. Their releases stand in
# pyproject.toml; a test holds the two together.
EXTRAS = {
    "train": (
        "torch",
        "torchvision",
        "timm",
        "huggingface_hub",
        "pytorch_metric_learning",
        "sklearn",
        "onnx",
        "onnxscript",
        "cv2",
        "matplotlib",
        "tensorboard",
    ),
    "postgres": ("psycopg", "pgvector"),
    "project": ("sklearn", "umap", "matplotlib", "plotly", "pyarrow", "tensorboard"),
    "ray": ("ray", "pyarrow", "pandas"),
}
# What is needed of `train` to build a timm network and hand it to an engine.
NETWORKS = ("torch", "timm", "huggingface_hub", "onnx", "onnxscript")


def missing(extra: str, libraries: tuple[str, ...] = ()) -> list[str]:
    """Which libraries of an extra (or which of these) are not installed; nothing is imported to find out."""
    return [name for name in libraries or EXTRAS[extra] if not _is_installed(name)]


def need(extra: str, what: str, libraries: tuple[str, ...] = (), *, hint: str = "") -> None:
    """Refuse work whose libraries are not installed.

    Args:
        extra: the one that brings them.
        what: begins the message: what needs them.
        libraries: which of the extra's are needed; by default all.
        hint: said behind how to install them.

    Raises:
        MissingExtraError: a library is missing; the message says which, the hint how to install the extra.
    """
    absent = missing(extra, libraries)
    if absent:
        raise MissingExtraError(
            f"{what} needs the extra {extra!r}: {', '.join(absent)} {'is' if len(absent) == 1 else 'are'} not "
            "installed.",
            hint=f"`pip install 'fewshot[{extra}]'`. {hint}".strip(),
        )


def _is_installed(library: str) -> bool:
    try:
        return importlib.util.find_spec(library) is not None
    except (ImportError, ValueError):  # hidden on purpose, or half removed
        return False
