"""What a request may cost: its host and size, all bodies held at once, its patience, and how often one may ask."""

import ipaddress
import math
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator

import anyio
from starlette.datastructures import Headers
from starlette.requests import HTTPConnection
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from fewshot.errors import BodyTooLargeError, BusyError, HostError, ServiceError, SlowClientError, TooManyRequestsError
from fewshot.service.settings import Settings

# Photos come as multipart, and are read once a token has been looked at. Anything else is read before, and is short.
MAX_OTHER_BYTES = 64_000
MAX_KNOWN_CALLERS = 10_000
# What a body comes with at least, in the long run: a phone at the edge of its network still does.
LEAST_BYTES_PER_S = 8_000
# What of an answer is given to a connection at once; the next part waits until the system has taken this one.
PART_BYTES = 240_000
FREE_MISTAKES = 5
LONGEST_WAIT_S = 900.0
FORGOTTEN_AFTER_S = 3600.0


class BodyBudget:
    """How many bytes of bodies are held at once, of all requests together."""

    def __init__(self, n_bytes: int) -> None:
        self._n_left = n_bytes

    def check(self, n_bytes: int) -> None:
        """See whether bytes could be taken now.

        Raises:
            BusyError: the service holds too much for that.
        """
        if n_bytes > self._n_left:
            raise BusyError("the service is receiving as many photos as it can hold.", retry_after_s=2)

    def take(self, n_bytes: int) -> None:
        """Hold bytes; errors as of `check`."""
        self.check(n_bytes)
        self._n_left -= n_bytes

    def give_back(self, n_bytes: int) -> None:
        """Release what was taken."""
        self._n_left += n_bytes


class Patience:
    """How long somebody who sends is waited for: so long in silence, and longer for as much as a slow network brings.

    Waiting uses it up, bytes give it back, up to what it was: who sends a byte now and then is out of it as soon as who
    sends nothing.

    Args:
        most_s: how long silence may last.
        clock: seconds.
    """

    def __init__(self, most_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._most_s = most_s
        self._clock = clock
        self.left_s = most_s

    async def next(self, receive: Receive) -> Message:
        """The next message; only the time in which it is waited for counts, none in which nobody asks for it.

        Raises:
            SlowClientError: the patience is at an end.
        """
        began = self._clock()
        try:
            with anyio.fail_after(self.left_s):
                message = await receive()
        except TimeoutError as error:
            raise self._too_slow() from error
        self.left_s -= self._clock() - began
        if self.left_s <= 0:
            raise self._too_slow()
        self.left_s = min(self._most_s, self.left_s + len(message.get("body", b"")) / LEAST_BYTES_PER_S)
        return message

    def _too_slow(self) -> SlowClientError:
        return SlowClientError(
            f"the request came too slowly: a body may be silent for {self._most_s:g} s, and brings at least "
            f"{LEAST_BYTES_PER_S / 1e3:g} kB a second."
        )


class Limits:
    """The outer limits, kept before a body is read: as middleware around all routes.

    A body is counted as it comes in, so that who announces much and sends little keeps nobody out. One whose announced
    size does not fit beside what is held is refused at once.

    Args:
        app: what is guarded.
        settings: `hosts`, `max_body_bytes`, `max_flying_bytes` and `body_timeout_s`.
        respond: how an error becomes a response.
        count: counts every request, whether anything answers to it or not; raises `TooManyRequestsError`.
    """

    def __init__(
        self,
        app: ASGIApp,
        settings: Settings,
        respond: Callable[[ServiceError], ASGIApp],
        count: Callable[[HTTPConnection], None],
    ) -> None:
        self._app = app
        self._settings = settings
        self._respond = respond
        self._count = count
        self._budget = BodyBudget(settings.max_flying_bytes)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, or refuse it."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        body = _Body(receive, self._budget, self._settings, headers)

        async def send_behind_body(message: Message) -> None:
            if message["type"] == "http.response.start":
                await body.drain()
            for part in _parts(message):
                await send(part)

        try:
            self._count(HTTPConnection(scope))
            self._check_host(headers.get("host", ""))
            body.announce()
            await self._app(scope, body.receive, send_behind_body)
        except ServiceError as error:
            await self._respond(error)(scope, receive, send_behind_body)
        finally:
            body.release()

    def _check_host(self, host: str) -> None:
        hosts = self._settings.hosts
        name = host.rsplit(":", 1)[0] if not host.endswith("]") else host
        if hosts is not None and name.strip("[]").lower() not in hosts:
            raise HostError(
                f"this service does not answer for host {name[:100]!r}.",
                hint="Ask it by the name it was started for, or start it with --allow-host NAME.",
            )


def _parts(message: Message) -> Iterator[Message]:
    """A message; a large body in several, so that who does not read it has not all of it copied for them."""
    content = message.get("body", b"")
    if len(content) <= PART_BYTES:
        yield message
        return
    for start in range(0, len(content), PART_BYTES):
        is_last = start + PART_BYTES >= len(content)
        part = content[start : start + PART_BYTES]
        yield {**message, "body": part, "more_body": not is_last or message.get("more_body", False)}


class _Body:
    """One request's body on its way in: counted, and never waited for too long."""

    def __init__(self, receive: Receive, budget: BodyBudget, settings: Settings, headers: Headers) -> None:
        self._receive = receive
        self._patience = Patience(settings.body_timeout_s)
        self._budget = budget
        self._settings = settings
        self._kind = headers.get("content-type", "").partition(";")[0].strip().lower()
        self._announced = headers.get("content-length", "0" if "transfer-encoding" not in headers else "")
        self._waits_for_leave = headers.get("expect", "").lower() == "100-continue"
        self._n_held = 0
        self._n_read = 0
        self._is_complete = self._announced == "0"

    def announce(self) -> None:
        """Refuse what the client says that it will send, if that is too much, or too much now."""
        if self._announced.isdigit():
            self._check_size(int(self._announced))
            self._budget.check(int(self._announced))

    async def receive(self) -> Message:
        """The next message of the client."""
        if self._is_complete and (self._n_read or self._announced != "0"):
            return await self._receive()  # only that the client has left can still come
        message = await self._patience.next(self._receive)
        self._is_complete = not message.get("more_body", False)
        self._n_read += len(message.get("body", b""))
        self._check_size(self._n_read)
        self._hold(self._n_read - self._n_held)
        return message

    async def drain(self) -> None:
        """Let what is left of a refused body pass by: a client that still sends would not read the refusal."""
        if self._waits_for_leave and not self._n_read:
            return
        self.release()
        n_left = 2 * self._settings.max_body_bytes
        with anyio.move_on_after(self._settings.body_timeout_s):
            while not self._is_complete and n_left > 0:
                message = await self._receive()
                n_left -= len(message.get("body", b""))
                self._is_complete = not message.get("more_body", False)

    def release(self) -> None:
        """Give back what is held."""
        self._budget.give_back(self._n_held)
        self._n_held = 0

    def _hold(self, n_bytes: int) -> None:
        if n_bytes > 0:
            self._budget.take(n_bytes)
            self._n_held += n_bytes

    def _check_size(self, n_bytes: int) -> None:
        most = self._settings.max_body_bytes
        if self._kind != "multipart/form-data" and n_bytes > min(most, MAX_OTHER_BYTES):
            kind = repr(self._kind[:50]) if self._kind else "no named type"
            raise BodyTooLargeError(
                f"the request has {n_bytes / 1e3:.0f} kB of {kind}; at most "
                f"{min(most, MAX_OTHER_BYTES) / 1e3:.0f} kB are taken that are not multipart/form-data.",
                hint="Send photos as curl does: curl -F photos=@leaf.jpg URL",
            )
        if n_bytes > most:
            raise BodyTooLargeError(
                f"the request has {n_bytes / 1e6:.0f} MB; at most {most / 1e6:.0f} MB are taken.",
                hint="Send fewer photos at a time, or scale them down.",
            )


class RateLimit:
    """So many requests a minute of each caller, with a tenth of a minute's worth at once.

    Args:
        per_minute: 0: no limit.
    """

    def __init__(self, per_minute: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._per_second = per_minute / 60
        self._most = max(10.0, per_minute / 10)
        self._clock = clock
        self._callers: OrderedDict[str, tuple[float, float]] = OrderedDict()  # caller: (requests left, as of)
        self._lock = threading.Lock()

    def count(self, caller: str) -> None:
        """Count a request.

        Raises:
            TooManyRequestsError: the caller has none left.
        """
        if self._per_second <= 0:
            return
        now = self._clock()
        with self._lock:
            left, as_of = self._callers.pop(caller, (self._most, now))
            left = min(self._most, left + (now - as_of) * self._per_second)
            allowed = left >= 1
            self._callers[caller] = (left - 1 if allowed else left, now)
            while len(self._callers) > MAX_KNOWN_CALLERS:
                self._callers.popitem(last=False)
        if not allowed:
            raise TooManyRequestsError(
                f"more than {self._per_second * 60:.0f} requests a minute.",
                retry_after_s=max(1, round((1 - left) / self._per_second)),
            )


class Backoff:
    """Who sends wrong tokens waits before the next is looked at: after five, 1 s, then 2, 4 and so on up to 15 minutes.

    A caller is forgotten an hour after the last mistake, or when 10,000 others have made one since. An IPv6 caller is
    its /64 network, of which one host has as many addresses as it likes.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._callers: OrderedDict[str, tuple[int, float]] = OrderedDict()  # network: (mistakes, when the last was)
        self._lock = threading.Lock()

    def check(self, address: str) -> None:
        """Let a caller try.

        Raises:
            TooManyRequestsError: it has to wait.
        """
        with self._lock:
            n_mistakes, last = self._callers.get(network(address), (0, 0.0))
        wait_s = last + self._wait_s(n_mistakes) - self._clock()
        if n_mistakes > FREE_MISTAKES - 1 and wait_s > 0:
            raise TooManyRequestsError(
                f"{n_mistakes} wrong tokens came from this address; the next is looked at in {math.ceil(wait_s)} s.",
                retry_after_s=math.ceil(wait_s),
            )

    def mistake(self, address: str) -> None:
        """Count a wrong token."""
        now = self._clock()
        with self._lock:
            n_mistakes, last = self._callers.pop(network(address), (0, now))
            if now - last > FORGOTTEN_AFTER_S:
                n_mistakes = 0
            self._callers[network(address)] = (n_mistakes + 1, now)
            while len(self._callers) > MAX_KNOWN_CALLERS:
                self._callers.popitem(last=False)

    @staticmethod
    def _wait_s(n_mistakes: int) -> float:
        return min(LONGEST_WAIT_S, 2.0 ** min(30, n_mistakes - FREE_MISTAKES))


def network(address: str) -> str:
    """What counts as one caller: an IPv4 address, or the /64 network of an IPv6 one.

    >>> network("192.0.2.7"), network("2001:db8::1:2"), network("2001:db8::ffff:ffff"), network("unknown")
    ('192.0.2.7', '2001:db8::', '2001:db8::', 'unknown')
    """
    try:
        ip = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return address
    if isinstance(ip, ipaddress.IPv6Address) and ip.ipv4_mapped is None:
        return str(ipaddress.IPv6Network((ip, 64), strict=False).network_address)
    return str(ip)
