"""An opened index -> the ASGI application that serves it."""

import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI
from fastapi.routing import APIRoute

from fewshot import __version__
from fewshot.decoding.guard import Guard
from fewshot.gallery import Gallery
from fewshot.service import classes, failures, headers, limits, maps, metrics, queries, supports, system, web
from fewshot.service.access import Access
from fewshot.service.following import Follower
from fewshot.service.settings import Settings
from fewshot.service.shared_tokens import tokens_of
from fewshot.service.work import Work

DESCRIPTION = """Recognise a plant disease from a few enrolled photos.

Ask with `POST /v1/query`; enroll with `POST /v1/classes/{label}/supports`. Every error has the one shape
`{"error": {"code", "message", "hint"}}`. Routes that change the index need a token with the scope `write`."""
# What threads still do when every request has been answered or given up is waited for so long together.
END_S = 3.0


def create_app(gallery: Gallery, settings: Settings | None = None, guard: Guard | None = None) -> FastAPI:
    """The service of one index.

    Args:
        gallery: the opened index; closed by the caller, after the app has shut down.
        settings: limits and access.
        guard: decodes the photos, and is closed by the caller; None: the app has its own.
    """
    settings = settings or Settings()
    work = Work(gallery, settings, guard)
    tokens = tokens_of(gallery, followed=True)
    follower = Follower(gallery, tokens)

    @asynccontextmanager
    async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
        work.start()
        follower.start()
        yield
        until = time.monotonic() + END_S
        follower.close(END_S)
        work.close(max(0.0, until - time.monotonic()))
        app.state.maps.close()
        app.state.access.close()

    app = FastAPI(
        title="fewshot",
        version=__version__,
        description=DESCRIPTION,
        openapi_url="/v1/openapi.json",
        docs_url=None,  # its page would load scripts from a stranger's server
        redoc_url=None,
        lifespan=lifespan,
        generate_unique_id_function=_operation_id,
    )
    app.state.work = work
    app.state.maps = maps.Maps(gallery)
    access = app.state.access = Access(tokens, settings)
    for module in (queries, classes, supports, maps, system, web):
        app.include_router(module.router)
    failures.add_handlers(app)
    # The last one added is the first to see a request.
    app.add_middleware(limits.Limits, settings=settings, respond=failures.error_response, count=access.count)
    app.add_middleware(failures.Unforeseen)
    app.add_middleware(metrics.Measured, metrics=work.metrics)
    app.add_middleware(headers.Headers)
    return app


def _operation_id(route: APIRoute) -> str:
    return route.name
