"""What the routes have in common: documented errors, the parameters they know, and where the index at work is."""

from typing import Annotated, Any

from fastapi import Depends, Path
from fastapi.routing import APIRoute
from starlette.requests import Request

from fewshot.datasets import MAX_LABEL_LENGTH
from fewshot.errors import RequestError, did_you_mean
from fewshot.service.shapes import ErrorBody
from fewshot.service.work import Work

_MEANING = {
    400: "The request contradicts itself: a label that cannot be stored, a wrong host.",
    401: "A token is needed, or the one given is none of this index.",
    403: "The token may not do this.",
    404: "There is no such class, photo or page.",
    408: "The client stopped sending.",
    409: "The index is not in a state for this: empty, a label taken, the last photo of a class.",
    413: "Too many bytes or too many photos.",
    422: "The request cannot be understood, or no photo in it can be used.",
    429: "Too many requests; Retry-After says in how many seconds to go on.",
    500: "Something went wrong that should not have, or the index is damaged.",
    501: "A part of the program that this needs is not installed; the hint says how to install it.",
    503: "Too busy, or another process is writing; Retry-After says in how many seconds to come again.",
    507: "The disk is full; nothing was changed.",
}
_EVERYWHERE = (400, 401, 403, 408, 413, 422, 429, 500, 503)


def errors(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """The error responses of a route for OpenAPI: those of every route, and `statuses`."""
    return {
        status: {"model": ErrorBody, "description": _MEANING[status]} for status in sorted({*_EVERYWHERE, *statuses})
    }


async def known_parameters(request: Request) -> None:
    """Refuse a parameter behind the `?` that a route under /v1/ does not know: left aside, it would change the answer.

    Raises:
        RequestError: there is one; the nearest that the route knows is suggested.
    """
    route = request.scope.get("route")
    if not request.query_params or not isinstance(route, APIRoute) or not route.path.startswith("/v1/"):
        return
    method = "get" if request.method == "HEAD" else request.method.lower()
    described = request.app.openapi()["paths"][route.path][method].get("parameters", [])
    known = [each["name"] for each in described if each["in"] == "query"]
    for name in request.query_params:
        if name not in known:
            takes = f"It takes {', '.join(known)}." if known else "It takes none."
            raise RequestError(
                f"{request.method} {route.path} knows no parameter {name[:100]!r}.",
                hint=f"{did_you_mean(name[:100], known)} {takes}".strip(),
            )


async def work_of(request: Request) -> Work:
    """The index at work."""
    work: Work = request.app.state.work
    return work


Known = Annotated[None, Depends(known_parameters)]  # of a route that looks at no token: `access` does it where one is
AtWork = Annotated[Work, Depends(work_of)]
Label = Annotated[
    str,
    Path(
        description=f"A class's label: 1 to {MAX_LABEL_LENGTH} visible characters, no slash.",
        min_length=1,
        max_length=MAX_LABEL_LENGTH,
        examples=["corn-rust"],
    ),
]
SupportId = Annotated[int, Path(description="A photo's id.", ge=1, le=2**63 - 1, examples=[17])]
