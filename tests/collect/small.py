"""Programs for test_collector.py: `python small.py writer|door FOLDER`.

`writer` becomes the writer of the topic; `door` is a collector whose buffer takes 200 kB.
"""

from __future__ import annotations

import sys
import time

from headrace.base.http import Service, listen, run, serve
from headrace.base.telemetry import Metrics
from headrace.collect.app import ACK_SECONDS, CLICKS, LIMITS, METRICS, Collector, CollectorOptions, build_app
from headrace.collect.keys import Keys
from headrace.project import open_project
from headrace.topics import Record


def write(project):
    topic = project.make_topic(CLICKS)
    topic.topics._seat.resident = True  # as a role, which keeps the seat while it is quiet
    topic.append([Record(b"ann", b"{}")])
    print("writer", flush=True)
    time.sleep(600)


async def answer(project):
    sender = project.topics.open_sender(deadline_seconds=ACK_SECONDS, max_pending_bytes=200_000)
    metrics = Metrics(METRICS)
    keys = Keys.read(project.profile.settings.keys)
    collector = Collector(sender, keys, project.clock, metrics, CollectorOptions())
    listener = listen("127.0.0.1", 0)
    port = listener.getsockname()[1]
    app = build_app(collector, metrics_text=metrics.text)
    await serve([Service(app, listener, LIMITS)], drain_seconds=0.2, ready=lambda: print(port, flush=True))


if __name__ == "__main__":
    with open_project(sys.argv[2]) as opened:
        write(opened) if sys.argv[1] == "writer" else run(answer(opened))
