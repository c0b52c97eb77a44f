"""Many clients of a service in one small process: each sends a photo, waits for its answer, and sends the next.

    python benchmarks/service_clients.py HOST PORT N_CLIENTS SECONDS PHOTO... [--retry]

Prints one JSON object: answers by status, failures of the connection by name, and each answer's seconds. The requests
are made beforehand and the answers are hardly read, so that the two cores that both sides share are the service's.
"""

import argparse
import asyncio
import json
import time
from collections import Counter
from pathlib import Path

BOUNDARY = "fewshotbenchmark"
TIMEOUT_S = 120


def request_bytes(host: str, photo: Path) -> bytes:
    """The whole request for one photo."""
    body = (
        f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="photos"; filename="{photo.name}"\r\n'
        "Content-Type: application/octet-stream\r\n\r\n"
    ).encode()
    body += photo.read_bytes() + f"\r\n--{BOUNDARY}--\r\n".encode()
    head = (
        f"POST /v1/query HTTP/1.1\r\nHost: {host}\r\nContent-Length: {len(body)}\r\n"
        f"Content-Type: multipart/form-data; boundary={BOUNDARY}\r\n\r\n"
    )
    return head.encode() + body


async def answer(reader: asyncio.StreamReader) -> tuple[int, bytes, bool]:
    """The status and the body of the next answer, and whether the connection stays open."""
    head = (await reader.readuntil(b"\r\n\r\n")).lower()
    length = int(head.split(b"content-length:", 1)[1].split(b"\r\n", 1)[0])
    return int(head.split(b" ", 2)[1]), await reader.readexactly(length), b"connection: close" not in head


async def client(place: tuple[str, int], requests: list[bytes], first: int, until: float, found: dict) -> None:
    """Ask until the time is over."""
    i, writer, reader = first, None, None
    while time.perf_counter() < until:
        started = time.perf_counter()
        try:
            async with asyncio.timeout(TIMEOUT_S):
                if writer is None:
                    reader, writer = await asyncio.open_connection(*place)
                writer.write(requests[i % len(requests)])
                await writer.drain()
                status, body, stays = await answer(reader)
        except (OSError, asyncio.IncompleteReadError, TimeoutError) as error:
            found["failures"][type(error).__name__] += 1
            if writer is not None:
                writer.close()
            writer = None
            await asyncio.sleep(0.1)
            continue
        found["statuses"][status] += 1
        if status == 200:
            found["seconds"].append(time.perf_counter() - started)
            found["bad"] += b'"bad_image"' in body
        else:
            await asyncio.sleep(1)  # what Retry-After asks for, at the least
        if not stays:
            writer.close()
            writer = None
        i += 1
    if writer is not None:
        writer.close()


async def run(given: argparse.Namespace) -> dict:
    """All clients at once."""
    requests = [request_bytes(given.host, photo) for photo in given.photos]
    found = {"statuses": Counter(), "failures": Counter(), "seconds": [], "bad": 0}
    started = time.perf_counter()
    until = started + given.seconds
    step = max(1, len(requests) // given.clients)
    place = (given.host, given.port)
    await asyncio.gather(*(client(place, requests, n * step, until, found) for n in range(given.clients)))
    return {**found, "wall_s": time.perf_counter() - started}


def main() -> None:
    """Read the arguments, run, print."""
    parser = argparse.ArgumentParser()
    parser.add_argument("host")
    parser.add_argument("port", type=int)
    parser.add_argument("clients", type=int)
    parser.add_argument("seconds", type=float)
    parser.add_argument("photos", type=Path, nargs="+")
    print(json.dumps(asyncio.run(run(parser.parse_args()))))


if __name__ == "__main__":
    main()
