"""`/v1/health`, `/v1/session` and `/metrics`: how the service is, and what a client may do."""

from typing import Annotated, Any

from fastapi import APIRouter, Depends, Response
from prometheus_client import CONTENT_TYPE_LATEST

from fewshot import __version__
from fewshot.datasets import MAX_LABEL_LENGTH
from fewshot.errors import BusyError, DatabaseUnreachableError
from fewshot.service import shapes
from fewshot.service.access import READ, asking
from fewshot.service.routes import AtWork, Known, errors
from fewshot.service.tokens import SCOPES, Token
from fewshot.service.work import Work

router = APIRouter(tags=["system"])


@router.head("/v1/health", include_in_schema=False)
@router.get("/v1/health", response_model=shapes.Health, responses=errors(), summary="Live and ready?")
async def health(work: AtWork, _known: Known) -> dict[str, Any]:
    """`live`: the service answers. `ready`: its engine is open and its index can be read, so it can answer photos."""
    return await work.read(_looked, work)


@router.head("/v1/health/live", include_in_schema=False)
@router.get("/v1/health/live", response_model=shapes.Health, responses=errors(), summary="For a liveness probe")
async def live(work: AtWork, _known: Known) -> dict[str, Any]:
    """The same, of the index as it was last seen: that a database is silent is no reason to start a service anew."""
    return _health(work)


@router.head("/v1/health/ready", include_in_schema=False)
@router.get("/v1/health/ready", response_model=shapes.Health, responses=errors(), summary="For a readiness probe")
async def ready(work: AtWork, _known: Known) -> dict[str, Any]:
    """The same, but 503 until photos can be answered."""
    found = await work.read(_looked, work)
    if not found["ready"]:
        if work.batcher.is_ready:
            raise BusyError("the service is not ready: its database does not answer.", retry_after_s=1)
        failure = work.batcher.failure
        why = "its backbone is being opened" if failure is None else f"its backbone cannot be opened: {failure}"
        raise BusyError(f"the service is not ready: {why}.", retry_after_s=1)
    return found


@router.get("/v1/session", response_model=shapes.Session, responses=errors(), summary="What may I do here?")
async def session(work: AtWork, token: Annotated[Token | None, Depends(asking)]) -> dict[str, Any]:
    """The scopes of this request, with its token or without, and the limits to keep."""
    settings = work.settings
    free = not settings.require_read_token
    return {
        "token": token.name if token else None,
        "scopes": [scope for scope in SCOPES if (scope == "read" and free) or (token is not None and token.may(scope))],
        "read_needs_token": settings.require_read_token,
        "max_files": settings.max_files,
        "max_body_bytes": settings.max_body_bytes,
        "max_label_length": MAX_LABEL_LENGTH,
    }


@router.get(
    "/metrics",
    response_class=Response,
    responses={200: {"content": {"text/plain": {"schema": {"type": "string"}}}}, **errors()},
    dependencies=[READ],
    summary="Counters for Prometheus",
)
async def metrics(work: AtWork) -> Response:
    """Requests, latency, batch sizes, classes, supports, unknown rate."""
    return Response(await work.read(work.metrics.text), media_type=CONTENT_TYPE_LATEST)


def _looked(work: Work) -> dict[str, Any]:
    """Health, once the index has been looked at."""
    try:
        work.last_seen = (*work.gallery.size(), work.gallery.about().generation)
        work.is_reached = True
    except DatabaseUnreachableError:
        work.is_reached = False
    return _health(work)


def _health(work: Work) -> dict[str, Any]:
    n_classes, n_supports, generation = work.last_seen
    return {
        "live": True,
        "ready": work.batcher.is_ready and work.is_reached,
        "index": work.gallery.name,
        "classes": n_classes,
        "supports": n_supports,
        "generation": generation,
        "waiting": work.batcher.n_waiting,
        "version": __version__,
    }
