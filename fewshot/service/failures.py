"""Errors -> HTTP responses: one shape everywhere, whatever went wrong."""

import asyncio
import logging
import math
from urllib.parse import unquote

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from fewshot.datasets import checked_label
from fewshot.errors import (
    BusyError,
    FewshotError,
    IndexLockedError,
    LabelError,
    MethodError,
    NoSuchPageError,
    RequestError,
    UnforeseenError,
)

CLIENT_LEFT = 499  # nobody reads it; the log does
LOCKED_RETRY_AFTER_S = 5

_CLASSES = b"/v1/classes/"

log = logging.getLogger(__name__)


def error_response(error: FewshotError) -> JSONResponse:
    """The response that tells of an error: `{"error": {"code", "message", "hint"}}`."""
    headers = {}
    retry_after_s = getattr(error, "retry_after_s", None)
    if isinstance(error, IndexLockedError):
        retry_after_s = LOCKED_RETRY_AFTER_S
    if error.status == 503 and retry_after_s is None:
        retry_after_s = 1
    if retry_after_s is not None:
        headers["Retry-After"] = str(math.ceil(retry_after_s))
    if error.status == 401:
        headers["WWW-Authenticate"] = 'Bearer realm="fewshot"'
    return JSONResponse({"error": error.as_dict()}, error.status, headers)


class Unforeseen:
    """Middleware that answers what nobody foresaw with an opaque 500; its text goes to the log alone.

    A request that a stop of the service cuts off is answered with 503.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on."""
        started = False

        async def noting(message: Message) -> None:
            nonlocal started
            started = started or message["type"] == "http.response.start"
            await send(message)

        try:
            await self._app(scope, receive, noting)
        except asyncio.CancelledError:
            if scope["type"] == "http" and not started:
                cut_off = BusyError(
                    "the service was stopped before this was answered; it may have been done all the same."
                )
                await error_response(cut_off)(scope, receive, send)
            raise
        except Exception:
            if scope["type"] != "http":
                raise
            log.exception("request %s failed", scope.get("request_id", "?"))
            if started:
                raise
            error = UnforeseenError("something went wrong that should not have.")
            await error_response(error)(scope, receive, send)


def add_handlers(app: FastAPI) -> None:
    """Make every error of an app come out in the one shape."""
    app.add_exception_handler(FewshotError, _known)
    app.add_exception_handler(HTTPException, _of_http)
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(ClientDisconnect, _left)


async def _known(request: Request, error: Exception) -> Response:
    assert isinstance(error, FewshotError)
    if error.status >= 500:
        # As Python writes them: what a client calls things must not make lines of its own in a log.
        log.warning("%s %r: %r", request.method, request.url.path, error.message)
    return error_response(error)


async def _of_http(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    if isinstance(error.__cause__, FewshotError):
        return error_response(error.__cause__)
    if error.status_code == 404:
        nothing = NoSuchPageError(f"there is nothing at {request.url.path[:200]}.")
        return error_response(_label_error(request) or nothing)
    if error.status_code == 405:
        response = error_response(MethodError(f"{request.url.path[:200]} knows no {request.method[:20]}."))
        response.headers.update(error.headers or {})
        return response
    return error_response(RequestError(f"the request cannot be read: {error.detail}"))


def _label_error(request: Request) -> LabelError | None:
    """What is wrong with a label that holds a slash: it comes coded as `%2F`, and its path is none of the routes'."""
    coded = request.scope.get("raw_path", b"")
    if coded.startswith(_CLASSES):
        try:
            checked_label(unquote(coded.removeprefix(_CLASSES).split(b"/")[0].decode("ascii", "replace")))
        except LabelError as error:
            return error
    return None


async def _invalid(_request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    first = error.errors()[0]
    where = " ".join(str(part) for part in first["loc"])
    return error_response(
        RequestError(f"{where}: {first['msg']}.", hint="/v1/openapi.json says what each route takes.")
    )


async def _left(_request: Request, _error: Exception) -> Response:
    return Response(status_code=CLIENT_LEFT)
