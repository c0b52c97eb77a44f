"""An address -> a connection to the Ray cluster there, or a clear error within a bounded time."""

import importlib
import logging
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

from fewshot.errors import ClusterError, ClusterUnreachableError, UsageError
from fewshot.extras import need

LOCAL = "local"  # starts Ray on this machine for the time of one command
AUTO = "auto"  # the cluster that this machine is part of
CONNECT_TIMEOUT_S = 5.0
ANSWER_TIMEOUT_S = 20.0
_HINT = (
    "Give HOST:PORT of the cluster's head, from a machine that is part of the cluster (`ray start "
    f"--address=HOST:PORT`), `{AUTO}`, or `{LOCAL}`."
)


def connect(address: str) -> ModuleType:
    """Connect this process to a cluster; the ray module, connected. `ray.shutdown()` ends it.

    Raises:
        MissingExtraError: ray is not installed.
        UsageError: the address is none.
        ClusterUnreachableError: nothing, or no cluster that this program can use, answers there in time.
    """
    # Before ray is imported, which is when it reads them. Nothing is reported to anyone unless a user asked for it.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    need("ray", "a Ray cluster")
    ray = importlib.import_module("ray")
    # Ray prints the last words of a lost machine on stdout, which is for answers. This switch is its own debugger's.
    printing: Any = importlib.import_module("ray._private.worker")
    printing._worker_logs_enabled = False
    if address not in (LOCAL, AUTO):
        _check_answers(address)
    if ray.is_initialized():
        raise ClusterError(
            "this process is connected to a cluster already.", hint="Close that connection, or use it for both."
        )
    try:
        with _silent_stderr():
            ray.init(
                address=address,
                configure_logging=False,
                log_to_driver=False,
                logging_level=logging.CRITICAL,
                include_dashboard=False if address == LOCAL else None,
            )
    except (ConnectionError, RuntimeError, ValueError, TimeoutError) as error:
        raise ClusterUnreachableError(
            f"there is no usable cluster at {address!r}: {_first(error)}", hint=_HINT
        ) from error
    return ray


def _check_answers(address: str) -> None:
    """Refuse an address at which no cluster answers; ray itself would wait for minutes and then end the process."""
    host, colon, port = address.rpartition(":")
    if not colon or not host or not port.isdecimal() or "/" in host:
        raise UsageError(f"{address!r} is no address of a cluster.", hint=_HINT)
    try:
        socket.create_connection((host, int(port)), CONNECT_TIMEOUT_S).close()
    except (OSError, OverflowError) as error:
        raise ClusterUnreachableError(f"nothing answers at {address}: {error}.", hint=_HINT) from error
    command = [sys.executable, "-m", "ray.scripts.scripts", "status", "--address", address]
    try:
        done = subprocess.run(command, capture_output=True, timeout=ANSWER_TIMEOUT_S, check=False)  # noqa: S603
    except subprocess.TimeoutExpired as error:
        raise ClusterUnreachableError(
            f"what listens at {address} did not answer as a cluster within {ANSWER_TIMEOUT_S:.0f} s.", hint=_HINT
        ) from error
    if done.returncode:
        said = done.stderr.decode(errors="replace").strip().splitlines()
        raise ClusterUnreachableError(
            f"what listens at {address} is no cluster that this program can use{': ' + said[-1] if said else '.'}",
            hint=_HINT,
        )


@contextmanager
def _silent_stderr() -> Iterator[None]:
    """Keep ray's compiled part from announcing its settings; what goes wrong comes as an exception."""
    sys.stderr.flush()
    kept = os.dup(2)
    try:
        with Path(os.devnull).open("wb") as nowhere:
            os.dup2(nowhere.fileno(), 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)


def _first(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
