"""`/v1/supports`: one enrolled photo."""

from typing import Any

from fastapi import APIRouter, Response
from starlette.requests import Request

from fewshot.service import shapes
from fewshot.service.access import READ, WRITE
from fewshot.service.headers import content_tag
from fewshot.service.routes import AtWork, SupportId, errors

router = APIRouter(prefix="/v1/supports", tags=["supports"])
# Kept, but asked about each time: under the same address another index may be served, whose ids begin at 1 as well.
REVALIDATED = "private, no-cache"


@router.get(
    "/{support_id}",
    response_model=shapes.Support,
    responses=errors(404),
    dependencies=[READ],
    summary="Show an enrolled photo's record",
)
async def show_support(work: AtWork, support_id: SupportId) -> dict[str, Any]:
    """Its class, name, size, and how well it fits the rest of its class."""
    return (await work.read(work.gallery.support, support_id)).as_dict()


@router.delete(
    "/{support_id}",
    response_model=shapes.Support,
    responses=errors(404, 409, 507),
    dependencies=[WRITE],
    summary="Remove one photo from its class",
)
async def remove_support(work: AtWork, support_id: SupportId) -> dict[str, Any]:
    """Its record as it was. The last photo of a class goes only with the class."""
    return (await work.write(work.gallery.remove_support, support_id)).as_dict()


@router.get(
    "/{support_id}/thumbnail",
    response_class=Response,
    responses={
        200: {"content": {"image/webp": {"schema": {"type": "string", "format": "binary"}}}},
        304: {"description": "The client has it already."},
        **errors(404),
    },
    dependencies=[READ],
    summary="The photo itself, small",
)
async def thumbnail(request: Request, work: AtWork, support_id: SupportId) -> Response:
    """WebP, at most 256 px on the short side."""
    content = await work.read(work.gallery.thumbnail, support_id)
    tag = content_tag(content)
    headers = {"ETag": tag, "Cache-Control": REVALIDATED}
    if request.headers.get("if-none-match") == tag:
        return Response(status_code=304, headers=headers)
    return Response(content, media_type="image/webp", headers=headers)
