"""Multipart requests -> named photos; nothing of what a client calls them reaches the file system."""

import re
import unicodedata
from typing import Any

from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException
from starlette.requests import Request

from fewshot.errors import RequestError, TooManyFilesError
from fewshot.records import NamedBytes

FIELD = "photos"
MAX_NAME_LENGTH = 200
# What OpenAPI says of a body of photos.
BODY: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "required": [FIELD],
                    "properties": {
                        FIELD: {
                            "type": "array",
                            "minItems": 1,
                            "items": {"type": "string", "format": "binary"},
                            "description": "Photos: JPEG, PNG, WebP, TIFF, BMP or GIF, told by their bytes.",
                        }
                    },
                },
                "encoding": {FIELD: {"contentType": "image/*"}},
            }
        },
    }
}


async def uploaded_photos(request: Request, max_files: int) -> list[NamedBytes]:
    """The photos of a multipart request, in order.

    Raises:
        RequestError: no multipart body, or no photo in it.
        TooManyFilesError: more than `max_files`.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "multipart/form-data":
        raise RequestError(
            f"the request's body is {kind[:50] or 'of no named type'!r}; wanted multipart/form-data.",
            hint=f"As curl does it: curl -F {FIELD}=@leaf.jpg URL",
        )
    try:
        form = await request.form(max_files=max_files, max_fields=max_files)
    except HTTPException as error:
        if "Too many files" in error.detail:
            raise TooManyFilesError(
                f"the request holds more than {max_files} photos.", hint="Send them in several requests."
            ) from error
        raise RequestError(f"the request's multipart body cannot be read: {error.detail}") from error
    except (LookupError, UnicodeError) as error:  # of a `charset` that Python knows and that is none for names
        raise RequestError(
            "the names in the request's multipart body cannot be read in the charset that it states.",
            hint="Leave `charset` out of the Content-Type, and send names as UTF-8.",
        ) from error
    try:
        found = [item for item in form.getlist(FIELD) if isinstance(item, UploadFile)]
        if not found:
            raise RequestError(
                f"the request holds no photo in its field {FIELD!r}.",
                hint=f"As curl does it: curl -F {FIELD}=@leaf.jpg URL",
            )
        return [NamedBytes(shown_name(item.filename, i), await item.read()) for i, item in enumerate(found, 1)]
    finally:
        await form.close()


def shown_name(filename: str | None, number: int) -> str:
    """What messages call an uploaded photo: its name without folders, control characters and undue length.

    >>> shown_name("C:\\\\photos\\\\leaf.jpg", 1), shown_name("../../etc/passwd", 1), shown_name("", 3)
    ('leaf.jpg', 'passwd', 'photo-3')
    """
    name = re.split(r"[/\\]", filename or "")[-1]
    name = "".join(c for c in name if unicodedata.category(c)[0] != "C" and c not in "\u2028\u2029").strip()
    if name in ("", ".", ".."):
        return f"photo-{number}"
    return name if len(name) <= MAX_NAME_LENGTH else name[:100] + "…" + name[-(MAX_NAME_LENGTH - 101) :]
