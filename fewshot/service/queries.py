"""`POST /v1/query`: recognise photos."""

from typing import Annotated

from fastapi import APIRouter, Query
from starlette.requests import Request
from starlette.responses import Response

from fewshot.datasets import MAX_LABEL_LENGTH
from fewshot.records import Question
from fewshot.service import shapes
from fewshot.service.access import READ
from fewshot.service.routes import AtWork, errors
from fewshot.service.uploads import BODY, uploaded_photos

router = APIRouter(prefix="/v1", tags=["query"], dependencies=[READ])
Pattern = Annotated[str, Query(max_length=MAX_LABEL_LENGTH)]


@router.post(
    "/query",
    response_model=shapes.Answers,
    responses=errors(409),
    openapi_extra=BODY,
    summary="Recognise photos",
)
async def query(
    request: Request,
    work: AtWork,
    top: Annotated[int, Query(ge=1, le=1000, description="Classes an answer lists.")] = 3,
    nearest: Annotated[int, Query(ge=0, le=1000, description="Enrolled photos an answer lists.")] = 3,
    within: Annotated[
        list[Pattern] | None,
        Query(max_length=50, description="Answer only with classes that fit one of these.", examples=[["corn-*"]]),
    ] = None,
    coverage: Annotated[
        float | None,
        Query(gt=0, lt=1, description="Also list the labels that cover the truth in so many of all cases."),
    ] = None,
    together: Annotated[bool, Query(description="All photos show one plant: give one answer.")] = False,
) -> Response:
    """One answer a photo, in order: what `fewshot query --json` says of them.

    A photo that cannot be read is answered with reason `bad_image`, and the others are answered beside it; asked
    `together`, it comes before the one answer of the others.
    """
    photos = await uploaded_photos(request, work.settings.max_files)
    question = Question(top, nearest, tuple(within) if within else None, coverage, together)
    found = await work.ask(request, photos, question)
    return await work.read_json(lambda: {"predictions": [prediction.as_dict() for prediction in found]})
