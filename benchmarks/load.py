"""The load: prepared requests over many connections, each waiting for its answer. Run as a program of its own."""

from __future__ import annotations

import asyncio
import json
import os
import random
import sys
import time
import uuid

import uvloop


def event(rng: random.Random, visitor: str) -> dict[str, object]:
    """Returns an event of about 330 bytes."""
    return {
        "messageId": str(uuid.UUID(int=rng.getrandbits(128))),
        "anonymousId": visitor,
        "type": "track",
        "event": "Product Clicked",
        "timestamp": "2026-11-21T12:00:00.000Z",
        "properties": {
            "product_id": f"item-{rng.randrange(240):03}",
            "position": rng.randrange(10),
            "list_id": "home",
            "recommendation_id": str(uuid.UUID(int=rng.getrandbits(128))),
        },
    }


def requests(count: int, batch: int, seed: int) -> list[bytes]:
    """Returns whole HTTP requests with `batch` events each; single events go to /v1/track."""
    rng = random.Random(seed)
    made = []
    for _ in range(count):
        visitor = str(uuid.UUID(int=rng.getrandbits(128) % 20_000))
        events = [event(rng, visitor) for _ in range(batch)]
        path, value = (
            ("batch", {"batch": events, "sentAt": "2026-11-21T12:00:00.100Z"}) if batch > 1 else ("track", events[0])
        )
        body = json.dumps(value).encode()
        head = (
            f"POST /v1/{path} HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
            f"user-agent: Mozilla/5.0 (X11; Linux x86_64; rv:145.0) Gecko/20100101 Firefox/145.0\r\n"
            f"authorization: Basic ZGV2Og==\r\ncontent-length: {len(body)}\r\n\r\n"
        )
        made.append(head.encode() + body)
    return made


class Caller(asyncio.Protocol):
    """One connection that sends, waits for the answer, and sends again."""

    def __init__(self, made: list[bytes], run: Run, number: int) -> None:
        self._made, self._run = made, run
        self._at = number * 7919 % len(made)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport
        self._send()

    def _send(self) -> None:
        self._started_at = time.perf_counter()
        self._at = (self._at + 1) % len(self._made)
        self._transport.write(self._made[self._at])

    def data_received(self, data: bytes) -> None:
        # Head and body may come apart.
        if data.startswith(b"HTTP"):
            self._run.refused += data[9:12] != b"200"
        if not data.rstrip().endswith(b"}"):
            return
        now = time.perf_counter()
        self._run.latencies.append(now - self._started_at)
        if now < self._run.ends_at:
            self._send()
        else:
            self._transport.close()

    def connection_lost(self, exc: Exception | None) -> None:
        del exc
        self._run.left -= 1
        if not self._run.left:
            self._run.done.set()


class Run:
    """What all callers share."""

    def __init__(self, callers: int, seconds: float) -> None:
        self.latencies: list[float] = []
        self.refused = 0
        self.left = callers
        self.ends_at = time.perf_counter() + seconds
        self.done = asyncio.Event()


async def main(port: int, callers: int, batch: int, seconds: float) -> None:
    made = requests(1500 if batch == 1 else 300, batch, os.getpid())
    loop = asyncio.get_running_loop()
    run = Run(callers, seconds)
    started_at = time.perf_counter()
    for number in range(callers):
        await loop.create_connection(lambda number=number: Caller(made, run, number), "127.0.0.1", port)
    await run.done.wait()
    took = time.perf_counter() - started_at
    ordered = sorted(run.latencies)
    print(
        json.dumps(
            {
                "events": len(ordered) * batch,
                "seconds": took,
                "p50_ms": ordered[len(ordered) // 2] * 1000,
                "p99_ms": ordered[int(len(ordered) * 0.99)] * 1000,
                "refused": run.refused,
            }
        )
    )


if __name__ == "__main__":
    uvloop.run(main(int(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), float(sys.argv[4])))
