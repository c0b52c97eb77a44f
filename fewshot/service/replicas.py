"""The HTTP service as a Ray Serve application: replicas over one index, more of them as the load grows.

    serve run deploy/serve.yaml

Each replica is a whole service with its own copy of the prototypes. On one machine they share an index folder; on
several, the index has to be one that all of them reach.
"""

import os
from dataclasses import dataclass, fields
from typing import Any

from ray import serve
from ray.serve import Application

from fewshot.embedder import EmbedderChoice
from fewshot.engines import THREADS_VARIABLE
from fewshot.errors import UsageError, did_you_mean
from fewshot.gallery import Gallery
from fewshot.service.app import create_app
from fewshot.service.settings import settings_of


@dataclass(frozen=True, slots=True)
class Options:
    """What `args` of a Serve configuration can say; each as the option of `fewshot serve` of that name.

    `threads` is how many cores a replica computes with: as many as its `num_cpus`.
    """

    index: str
    read_token: bool = True
    threads: int = 1
    max_body_mb: int = 128
    max_files: int = 64
    max_megapixels: int = 50
    max_waiting: int = 256
    rate: int = 1200
    backbone: str | None = None
    precision: str | None = None
    engine: str = "auto"
    quality: str | None = None


class Service:
    """One replica. Serve asks it for its application, and later whether it is well."""

    def __init__(self, options: Options) -> None:
        os.environ[THREADS_VARIABLE] = str(options.threads)
        choice = EmbedderChoice(options.backbone, options.precision, options.engine, options.quality)
        self._gallery = Gallery(options.index, choice=choice)
        # A replica takes requests when it can answer them.
        self._gallery.embedder().open_for_many()
        self._settings = settings_of(
            options.read_token,
            None,
            max_body_mb=options.max_body_mb,
            max_files=options.max_files,
            max_megapixels=options.max_megapixels,
            max_waiting=options.max_waiting,
            rate=options.rate,
        )

    def __serve_build_asgi_app__(self) -> Any:  # the name that Serve asks for
        """The application of `fewshot serve`."""
        return create_app(self._gallery, self._settings)

    def check_health(self) -> None:
        """Called by Serve; a replica whose index cannot be read is replaced."""
        self._gallery.about()


def app(args: dict[str, Any]) -> Application:
    """The application that `import_path: fewshot.service.replicas:app` names.

    Raises:
        UsageError: `args` holds a word that is none of `Options`, or no index.
    """
    known = [field.name for field in fields(Options)]
    for name in args:
        if name not in known:
            raise UsageError(
                f"there is no argument {name!r}.",
                hint=f"{did_you_mean(name, known)} Known: {', '.join(known)}.".strip(),
            )
    if "index" not in args:
        raise UsageError("the arguments name no index.", hint="Set `index` to its folder or its database.")
    deployment: Any = serve.deployment(serve.ingress()(Service), name="Service")  # its stubs are wrong
    made: Application = deployment.bind(Options(**args))
    return made
