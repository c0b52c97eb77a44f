"""What a service allows: limits, who may read, and which hosts it answers for."""

import ipaddress
from dataclasses import dataclass, field, replace

from fewshot.decoding.guard import Guard, GuardLimits
from fewshot.engines import n_threads


@dataclass(frozen=True, slots=True)
class Settings:
    """The limits of a service; each is a promise to the machine that it runs on.

    Attributes:
        require_read_token: reading needs a token too; writing always does.
        hosts: the host names that requests may name; None: any.
        max_body_bytes: the largest request.
        max_flying_bytes: how much of requests' bodies is held at once; what comes beyond that is answered 503.
        max_files: photos a request.
        max_pixels: of a photo, width times height.
        max_waiting: photos that wait for an answer; more are answered 503.
        max_batch: photos that the engine is given at once.
        max_writes: changes that wait for the index; more are answered 503.
        rate_per_minute: requests a minute of one token, or of one address that sends none; 0: no limit. Requests
            without a token from this machine are not counted; see `access.Access.count`.
        body_timeout_s: how long a client may stay silent while it sends its photos; see `limits.Patience`.
        n_decoders: processes that decode photos, and as many threads that feed them.
        decode_cpu_s: processor seconds that one photo may take to decode.
        guarded: decode in those processes, which a hostile photo cannot leave; else in the threads themselves.
    """

    require_read_token: bool = False
    hosts: frozenset[str] | None = None
    max_body_bytes: int = 128_000_000
    max_flying_bytes: int = 384_000_000
    max_files: int = 64
    max_pixels: int = 50_000_000
    max_waiting: int = 256
    max_batch: int = 32
    max_writes: int = 64
    rate_per_minute: int = 1200
    body_timeout_s: float = 30.0
    n_decoders: int = field(default_factory=n_threads)
    decode_cpu_s: float = 20.0
    guarded: bool = True


def settings_of(
    require_read_token: bool,
    hosts: frozenset[str] | None,
    *,
    max_body_mb: int,
    max_files: int,
    max_megapixels: int,
    max_waiting: int,
    rate: int,
) -> Settings:
    """The limits in the words and units of `fewshot serve`; one request's photos always find a place to wait."""
    return Settings(
        require_read_token=require_read_token,
        hosts=hosts,
        max_body_bytes=max_body_mb * 1_000_000,
        max_flying_bytes=3 * max_body_mb * 1_000_000,
        max_files=max_files,
        max_pixels=max_megapixels * 1_000_000,
        max_waiting=max(max_waiting, max_files),
        rate_per_minute=rate,
    )


def guard_of(settings: Settings) -> Guard:
    """The processes that decode photos under a service's limits; not yet started."""
    limits = GuardLimits.for_pixels(settings.max_pixels)
    return Guard(settings.n_decoders, replace(limits, cpu_s=settings.decode_cpu_s))


def is_loopback(host: str) -> bool:
    """Whether a host name or address stands for this machine alone.

    >>> [is_loopback(host) for host in ("localhost", "127.0.0.1", "::1", "0.0.0.0", "example.org")]
    [True, True, True, False, False]
    """
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
