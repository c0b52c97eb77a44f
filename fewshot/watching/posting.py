"""Answers -> a URL, one POST each, tried again until the receiver has it, after a restart too."""

import random
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

import httpx

from fewshot import __version__
from fewshot.errors import DeliveryError, ReceiverRefusedError, UsageError
from fewshot.watching.answers import Answer
from fewshot.watching.memory import Memory

TIMEOUT_S = 10.0
FIRST_WAIT_S, LONGEST_WAIT_S = 1.0, 300.0
LONGEST_RETRY_AFTER_S = 3600.0
# What the receiver says of this one answer and will say again: it must not stand in the way of the next ones. All else
# (a wrong token, a wrong path, too many requests, a proxy's error page) is about the receiver and may be mended.
REFUSALS = frozenset({400, 413, 415, 422})


class Post:
    """A URL that answers are posted to, each at least once, in order, by a thread of its own.

    The body is `Answer.as_dict`; the header `Idempotency-Key` carries `Answer.key`. Killed between the receiver's 2xx
    and noting it, an answer is posted once more under the same key.

    Args:
        url: http or https; user and password in it are sent as HTTP basic authentication.
        token: sent as `Authorization: Bearer ...`, without white space around it.
        transport: instead of the network, for tests.
        first_wait_s: pause after a failure; it doubles with each further one up to `LONGEST_WAIT_S`, less a random
            part of up to half.

    Raises:
        UsageError: that is no URL to post to, or the token holds what HTTP cannot send.
    """

    def __init__(
        self,
        url: str,
        *,
        token: str | None = None,
        transport: httpx.BaseTransport | None = None,
        first_wait_s: float = FIRST_WAIT_S,
    ) -> None:
        try:
            self._url = httpx.URL(url)
        except httpx.InvalidURL as error:
            raise UsageError(f"{url!r} is no URL: {error}.", hint="As in https://example.org/answers") from error
        if self._url.scheme not in ("http", "https") or not self._url.host:
            raise UsageError(f"{url!r} is no URL to post to.", hint="It begins with http:// or https:// and a host.")
        # Secrets are neither shown nor kept; a password that was changed makes no other receiver.
        self.name = str(self._url.copy_with(username=None, password=None))
        headers = {"User-Agent": f"fewshot/{__version__}"}
        token = (token or "").strip()
        if not (token.isascii() and token.isprintable()):  # not shown, not even in part
            raise UsageError(
                "the token to post with holds a letter that HTTP cannot send.",
                hint="Wanted are ASCII letters on one line; look at --token or $FEWSHOT_POST_TOKEN.",
            )
        if token:
            headers["Authorization"] = f"Bearer {token}"
        self._client = httpx.Client(headers=headers, timeout=TIMEOUT_S, transport=transport, follow_redirects=False)
        self._first_wait_s = first_wait_s
        self._n_failures = 0
        self._wake, self._stop = threading.Event(), threading.Event()
        self._thread: threading.Thread | None = None
        self.failure: Exception | None = None
        """What ended the thread before its time."""

    def start(self, memory: Memory, on_warning: Callable[[str], None]) -> None:
        """Begin to post what is due, and what was on hold."""
        memory.release(self.name)
        self._thread = threading.Thread(target=self._run, args=(memory, on_warning), name="post", daemon=True)
        self._thread.start()

    def wake(self) -> None:
        """Something new is due."""
        self._wake.set()

    def wait_until_done(self, memory: Memory, timeout_s: float, stop: threading.Event) -> None:
        """Wait until nothing is due but what is on hold, or `stop` is set, or the time is over."""
        until = time.monotonic() + timeout_s
        while self.failure is None and time.monotonic() < until and memory.due(self.name, limit=1):
            if stop.wait(0.05):
                return

    def close(self) -> None:
        """End the thread; a POST under way may end, which takes 10 s at most for each of its steps."""
        self._stop.set()
        self._wake.set()
        if self._thread is not None:
            self._thread.join(timeout=2 * TIMEOUT_S)
        self._client.close()

    def _run(self, memory: Memory, on_warning: Callable[[str], None]) -> None:
        told = ""
        try:
            while not self._stop.is_set():
                self._wake.clear()
                try:
                    n = self.deliver(memory, on_warning)
                except DeliveryError as error:
                    wait_s = self._pause_s(error)
                    if error.message != told:  # once, not at each attempt
                        told = error.message
                        on_warning(error.said)
                    self._stop.wait(wait_s)
                    continue
                if n and told:
                    on_warning(f"{self.name} takes answers again.")
                told = ""
                self._wake.wait()
        except Exception as error:  # a thread that died in silence would keep answers from their receiver
            self.failure = error

    def deliver(self, memory: Memory, on_warning: Callable[[str], None]) -> int:
        """Post what is due, in order; how many the receiver took.

        Raises:
            DeliveryError: the receiver cannot be reached or does not take answers now; the rest stays due.
        """
        n_taken = 0
        while due := memory.due(self.name, limit=100):
            for answer_id, answer in due:
                if self._stop.is_set():
                    return n_taken
                try:
                    self.post(answer)
                except ReceiverRefusedError as error:
                    memory.hold(self.name, answer_id, error.message)
                    on_warning(error.said)
                    continue
                memory.handed_over(self.name, [answer_id])
                self._n_failures = 0
                n_taken += 1
        return n_taken

    def post(self, answer: Answer) -> None:
        """Post one answer, once.

        Raises:
            ReceiverRefusedError: the receiver will not take this one.
            DeliveryError: it took nothing; try again. Its `retry_after_s` is what the receiver asks for, or None.
        """
        try:
            response = self._client.post(self._url, json=answer.as_dict(), headers={"Idempotency-Key": answer.key})
        except httpx.LocalProtocolError as error:  # its text would show the header that is wrong, secrets and all
            raise DeliveryError(
                f"what is to be posted to {self.name} is no HTTP.", hint="Look at the URL and the token."
            ) from error
        except httpx.HTTPError as error:
            raise DeliveryError(
                f"{self.name} cannot be reached: {error or type(error).__name__}.",
                hint="Answers are kept and posted when it can be.",
            ) from error
        if response.is_success:
            return
        said = f"{response.status_code} {response.reason_phrase}".strip()
        if response.status_code in REFUSALS:
            raise ReceiverRefusedError(
                f"{self.name} refused the answer to {answer.file}: {said}. {_excerpt(response)}".strip(),
                hint="It is kept, and posted again at the next start.",
            )
        hint = "Answers are kept and posted when it takes them."
        if response.is_redirect:
            hint = f"Post to {response.headers.get('Location', 'the new address')} instead. Answers are kept."
        busy = DeliveryError(f"{self.name} does not take answers: {said}.", hint=hint)
        busy.retry_after_s = _retry_after_s(response)
        raise busy

    def _pause_s(self, error: DeliveryError) -> float:
        wait_s: float = min(LONGEST_WAIT_S, self._first_wait_s * 2.0 ** min(self._n_failures, 16))
        self._n_failures += 1
        wait_s *= random.uniform(0.5, 1.0)  # noqa: S311 - so that many watches do not come back at one moment
        return max(wait_s, error.retry_after_s or 0.0)


def _retry_after_s(response: httpx.Response) -> float | None:
    """Seconds that the receiver asks to wait, at most an hour: given as a number or as a date."""
    text = response.headers.get("Retry-After", "")
    seconds: float | None = None
    with suppress(ValueError):
        seconds = float(text) if text.isdigit() else None
        if text and seconds is None:
            until = parsedate_to_datetime(text)
            seconds = (until.replace(tzinfo=until.tzinfo or UTC) - datetime.now(UTC)).total_seconds()
    return None if seconds is None else min(max(seconds, 0.0), LONGEST_RETRY_AFTER_S)


def _excerpt(response: httpx.Response) -> str:
    """The first words of what the receiver says, on one line."""
    text = "".join(letter if letter.isprintable() else " " for letter in response.text[:200])
    return " ".join(text.split())
