"""`/v1/classes`: what is enrolled, and how it is changed."""

from collections.abc import Sequence
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query, Response
from starlette.requests import Request

from fewshot.datasets import checked_label
from fewshot.gallery.enrolling import no_usable_photo
from fewshot.records import ClassInspection, ClassSummary, EnrollReport, Support, Suspicious
from fewshot.service import shapes
from fewshot.service.access import READ, WRITE
from fewshot.service.routes import AtWork, Label, errors
from fewshot.service.uploads import BODY, uploaded_photos
from fewshot.service.work import Work

router = APIRouter(prefix="/v1", tags=["classes"])
Strict = Annotated[bool, Query(description="All or nothing: one refused photo, and nothing is changed.")]
Order = Annotated[
    Literal["enrolled", "suspicious"],
    Query(description="Photos in order of enrolment, or those first that look mislabelled."),
]


@router.get(
    "/classes", response_model=shapes.Classes, responses=errors(), dependencies=[READ], summary="List the classes"
)
async def list_classes(work: AtWork) -> Response:
    """Every class with its counts, in label order."""

    def listed() -> dict[str, Any]:
        covers = work.gallery.covers()
        return {"classes": [{**each.as_dict(), "cover": covers.get(each.label)} for each in work.gallery.classes()]}

    return await work.read_json(listed)


@router.get(
    "/classes/{label}",
    response_model=shapes.Class,
    responses=errors(404),
    dependencies=[READ],
    summary="Show a class from inside",
)
async def show_class(work: AtWork, label: Label, order: Order = "enrolled") -> Response:
    """Its photos, how alike they are, which classes it is easily confused with, which photos look mislabelled."""
    return await work.read_json(lambda: _class_facts(*work.gallery.describe(label), order))


@router.put(
    "/classes/{label}",
    response_model=shapes.Replaced,
    responses=errors(409, 507),
    dependencies=[WRITE],
    openapi_extra=BODY,
    summary="Make a class hold these photos and no others",
)
async def replace_class(request: Request, work: AtWork, label: Label, strict: Strict = False) -> dict[str, Any]:
    """The class is made if there is none. Photos that it holds already stay; it loses those not in the request.

    One change: other clients see the class as it was or as it will be.
    """
    label = checked_label(label)
    photos = await uploaded_photos(request, work.settings.max_files)
    outcomes, embedder = await work.embed(request, photos)

    def change() -> dict[str, Any]:
        report, n_removed = work.gallery.replace(label, outcomes, embedder, strict=strict)
        return {**_enrolled(work, report), "removed": n_removed}

    return await work.enroll(change, embedder)


@router.patch(
    "/classes/{label}",
    response_model=shapes.Renamed,
    responses=errors(404, 409, 507),
    dependencies=[WRITE],
    summary="Rename a class",
)
async def rename_class(work: AtWork, label: Label, renaming: shapes.Renaming) -> dict[str, Any]:
    """Give a class another label; its photos stay."""
    new = checked_label(renaming.label)

    def change() -> dict[str, Any]:
        warnings = work.gallery.rename(label, new)
        return {"label": new, "was": checked_label(label), "warnings": warnings}

    return await work.write(change)


@router.delete(
    "/classes/{label}",
    response_model=shapes.Removed,
    responses=errors(404, 507),
    dependencies=[WRITE],
    summary="Remove a class and its photos",
)
async def remove_class(work: AtWork, label: Label) -> dict[str, Any]:
    """It is gone at once, with all of its photos."""
    return {"label": checked_label(label), "removed": await work.write(work.gallery.remove, label)}


@router.post(
    "/classes/{label}/supports",
    response_model=shapes.Enrolled,
    status_code=201,
    responses={
        200: {"model": shapes.Enrolled, "description": "Nothing was new: every photo is enrolled already."},
        **errors(409, 507),
    },
    dependencies=[WRITE],
    openapi_extra=BODY,
    summary="Enroll photos",
)
async def enroll(
    request: Request, response: Response, work: AtWork, label: Label, strict: Strict = False
) -> dict[str, Any]:
    """Add photos to a class, as `fewshot enroll` does; the class is made if there is none.

    Photos that cannot be used are refused with their reason and the others go in. Once this is answered, the photos
    are on disk.
    """
    label = checked_label(label)
    photos = await uploaded_photos(request, work.settings.max_files)
    outcomes, embedder = await work.embed(request, photos)

    def change() -> dict[str, Any]:
        report = work.gallery.add(label, outcomes, embedder, strict=strict)
        if not report.enrolled and not report.already_there:
            raise no_usable_photo(report.refused)
        return _enrolled(work, report)

    found = await work.enroll(change, embedder)
    if not found["enrolled"]:
        response.status_code = 200
    return found


def _enrolled(work: Work, report: EnrollReport) -> dict[str, Any]:
    work.metrics.enrolled.inc(report.enrolled)
    warnings = work.gallery.doubts(report.support_ids)
    return {**report.as_dict(), "support_ids": list(report.support_ids), "warnings": warnings}


def _class_facts(
    summary: ClassSummary, photos: Sequence[Support], found: ClassInspection, order: str
) -> dict[str, Any]:
    suspicious = {photo.support_id: photo for photo in found.suspicious}
    if order == "suspicious":  # the worst first; the others in order of enrolment
        rank = {support_id: i for i, support_id in enumerate(suspicious)}
        photos = sorted(photos, key=lambda photo: rank.get(photo.support_id, len(rank)))
    inside = found.as_dict()
    shown = [{**photo.as_dict(), "looks_like": _looks_like(suspicious.get(photo.support_id))} for photo in photos]
    return {
        **summary.as_dict(),
        "similarity": inside["similarity"],
        "spread": inside["spread"],
        "confusable": inside["confusable"],
        "photos": shown,
    }


def _looks_like(photo: Suspicious | None) -> dict[str, Any] | None:
    return None if photo is None else {"label": photo.looks_like, "similarity": round(photo.similarity, 4)}
