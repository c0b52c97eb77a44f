"""HTTP on the wire: what is no HTTP is told so in the one shape of errors, and nobody may ask or read for ever."""

import asyncio

import h11
from starlette.responses import JSONResponse
from uvicorn.protocols.http.h11_impl import H11Protocol

from fewshot.errors import FewshotError, RequestError, SlowClientError
from fewshot.service.failures import error_response
from fewshot.service.headers import SECURITY

# How long a client may take for the head of a request; its body has a patience of its own.
HEAD_S = 30.0
# How long it may leave a part of an answer (`limits.PART_BYTES`) untaken.
TAKE_S = 30.0


class Protocol(H11Protocol):
    """uvicorn's, which would answer malformed requests in plain text and wait for ever for who does not ask or read."""

    _patience: asyncio.TimerHandle | None = None
    _untaken: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """A client is there."""
        super().connection_made(transport)
        # What the system does not take at once is untaken: there is never more of it than one part of an answer.
        transport.set_write_buffer_limits(high=1, low=0)
        self._watch_head()

    def data_received(self, data: bytes) -> None:
        """A client has sent something."""
        super().data_received(data)
        self._watch_head()

    def connection_lost(self, exc: Exception | None) -> None:
        """A client is gone."""
        self._stop_waiting()
        self._stop_watching_answer()
        super().connection_lost(exc)

    def pause_writing(self) -> None:
        """A client takes nothing more for now."""
        super().pause_writing()
        if self._untaken is None:
            self._untaken = self.loop.call_later(TAKE_S, self._never_takes)

    def resume_writing(self) -> None:
        """A client has taken what there was."""
        self._stop_watching_answer()
        super().resume_writing()

    def send_400_response(self, msg: str) -> None:
        """Tell a client that what it sent is no HTTP, and hang up."""
        self._hang_up(
            RequestError("this is no HTTP/1.1 request that can be read.", hint="Is the client speaking TLS or HTTP/2?")
        )

    def _watch_head(self) -> None:
        """See that the head of a request comes in time, from its first moment to its last."""
        if self.conn.their_state is not h11.IDLE or self.transport.is_closing():
            self._stop_waiting()
        elif self._patience is None:
            self._patience = self.loop.call_later(HEAD_S, self._is_late)

    def _stop_waiting(self) -> None:
        if self._patience is not None:
            self._patience.cancel()
            self._patience = None

    def _is_late(self) -> None:
        self._patience = None
        if self.conn.their_state is h11.IDLE and not self.transport.is_closing():
            self._hang_up(SlowClientError(f"the head of the request did not come within {HEAD_S:g} s."))

    def _never_takes(self) -> None:
        self._untaken = None
        self.transport.abort()  # to close it would wait until the client has taken the rest

    def _stop_watching_answer(self) -> None:
        if self._untaken is not None:
            self._untaken.cancel()
            self._untaken = None

    def _hang_up(self, error: FewshotError) -> None:
        response: JSONResponse = error_response(error)
        if error.status == RequestError.status:
            response.status_code = 400  # what HTTP itself calls it
        for name, value in {**SECURITY, "Cache-Control": "no-store", "Connection": "close"}.items():
            response.headers[name] = value
        if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            head = h11.Response(status_code=response.status_code, headers=response.raw_headers)
            for event in (head, h11.Data(data=bytes(response.body)), h11.EndOfMessage()):
                self.transport.write(self.conn.send(event) or b"")
        self.transport.close()
