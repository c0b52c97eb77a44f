"""The web page: its few files, and plotly's script from plotly's own package."""

import gzip
import importlib.util
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from fewshot.errors import NoSuchPageError
from fewshot.extras import need
from fewshot.service.headers import content_tag

PAGES = Path(__file__).parent / "pages"
PLOTLY = "plotly.min.js"
KINDS = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}
# What may be asked for, once and for all: a name that a client sends is looked up here and nowhere else.
FILES = {path.name: path for path in sorted(PAGES.iterdir()) if path.suffix in KINDS}
VIEWS = ("/", "/classes", "/new", "/map")
COMPRESS_FROM = 1000

router = APIRouter(include_in_schema=False)


def is_of_page(path: str) -> bool:
    """Whether a path is one of the page's own.

    >>> [is_of_page(path) for path in ("/", "/classes/corn-rust", "/static/main.js", "/v1/classes", "/metrics")]
    [True, True, True, False, False]
    """
    return path in VIEWS or path.startswith(("/classes/", "/static/"))


@dataclass(frozen=True, slots=True)
class _File:
    content: bytes
    zipped: bytes | None
    kind: str
    tag: str


@router.get("/")
@router.get("/classes")
@router.get("/classes/{label}")
@router.get("/new")
@router.get("/map")
async def page(request: Request) -> Response:
    """The one page; its script shows the view that belongs to the address."""
    return _response(request, "index.html")


@router.get("/static/{name}")
async def static(request: Request, name: str) -> Response:
    """A file of the page."""
    if name != PLOTLY and name not in FILES:
        raise NoSuchPageError(f"there is no file {name[:100]!r} of the page.")
    return _response(request, name)


def _response(request: Request, name: str) -> Response:
    file = _file(name)
    headers = {"ETag": file.tag, "Cache-Control": "no-cache", "Vary": "Accept-Encoding"}
    if request.headers.get("if-none-match") == file.tag:
        return Response(status_code=304, headers=headers)
    if file.zipped is not None and "gzip" in request.headers.get("accept-encoding", ""):
        return Response(file.zipped, media_type=file.kind, headers={**headers, "Content-Encoding": "gzip"})
    return Response(file.content, media_type=file.kind, headers=headers)


@cache
def _file(name: str) -> _File:
    content = (_plotly() if name == PLOTLY else FILES[name]).read_bytes()
    zipped = gzip.compress(content, 6, mtime=0) if len(content) >= COMPRESS_FROM else None
    return _File(content, zipped, KINDS[Path(name).suffix], content_tag(content))


def _plotly() -> Path:
    """Where plotly's package keeps its script; the package itself, which takes a second, is not imported."""
    need("project", "the map", ("plotly",))
    spec = importlib.util.find_spec("plotly")
    assert spec is not None
    assert spec.origin is not None
    return Path(spec.origin).parent / "package_data" / PLOTLY
