"""Multipart requests -> named photos; nothing of what a client calls them reaches the file system."""

import re
import unicodedata
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

from starlette.datastructures import Headers, UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser
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
    """The photos of a multipart request, in order: all that were sent, or an error.

    Raises:
        RequestError: no multipart body, one that was cut off, no photo in it, or a file outside of its field `photos`.
        TooManyFilesError: more than `max_files`.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "multipart/form-data":
        raise RequestError(
            f"the request's body is {repr(kind[:50]) if kind else 'of no named type'}; wanted multipart/form-data.",
            hint=f"As curl does it: curl -F {FIELD}=@leaf.jpg URL",
        )
    try:
        async with aclosing(request.stream()) as stream:
            form = await _Parser(request.headers, stream, max_files=max_files, max_fields=max_files).parse()
    except MultiPartException as error:
        if "Too many files" in error.message:
            raise TooManyFilesError(
                f"the request holds more than {max_files} photos.", hint="Send them in several requests."
            ) from error
        raise RequestError(f"the request's multipart body cannot be read: {error.message}") from error
    except (LookupError, UnicodeError) as error:  # of a `charset` that Python knows and that is none for names
        raise RequestError(
            "the names in the request's multipart body cannot be read in the charset that it states.",
            hint="Leave `charset` out of the Content-Type, and send names as UTF-8.",
        ) from error
    try:
        found = []
        for field, item in form.multi_items():
            if field == FIELD and isinstance(item, UploadFile):
                found.append(item)
            elif field == FIELD or isinstance(item, UploadFile):
                what = "a file" if isinstance(item, UploadFile) else "text, a part without a file name,"
                raise RequestError(
                    f"the request holds {what} in its field {field[:50]!r}; wanted photos, each a file in {FIELD!r}. "
                    "None was taken.",
                    hint=f"As curl does it: curl -F {FIELD}=@leaf.jpg URL",
                )
        if not found:
            raise RequestError(
                f"the request holds no photo in its field {FIELD!r}.",
                hint=f"As curl does it: curl -F {FIELD}=@leaf.jpg URL",
            )
        return [NamedBytes(shown_name(item.filename, i), await item.read()) for i, item in enumerate(found, 1)]
    finally:
        await form.close()


class _Parser(MultiPartParser):
    """starlette's, which takes a body that was cut off for a whole one that has no last photo."""

    def __init__(self, headers: Headers, stream: AsyncGenerator[bytes, None], **limits: int) -> None:
        super().__init__(headers, self._whole(stream), **limits)
        self._is_at_end = False

    def on_end(self) -> None:
        """The boundary that closes the body was there."""
        self._is_at_end = True

    async def _whole(self, stream: AsyncGenerator[bytes, None]) -> AsyncGenerator[bytes, None]:
        """
        Raises:
            RequestError: the stream has ended and the body has not; what was read of it is closed then.
        """
        async for chunk in stream:
            yield chunk
        if not self._is_at_end:
            raise RequestError(
                "the request's multipart body ends before its closing boundary: a part of it was lost. No photo was "
                "taken.",
                hint="Send it again, whole.",
            )


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
