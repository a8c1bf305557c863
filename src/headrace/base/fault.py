"""Named points at which a test can make this process die, stop or fail.

Nothing happens unless the variable HEADRACE_FAULT is set, for example
`HEADRACE_FAULT=topics.written=kill@3` (kill -9 at the third passage) or
`HEADRACE_FAULT=topics.written=kill@3:/tmp/mark` (and leave proof that it was reached).
Several faults are joined by commas.
"""

from __future__ import annotations

import os
import signal
from dataclasses import dataclass
from pathlib import Path

from headrace.base.errors import CallError, unknown_name

VARIABLE = "HEADRACE_FAULT"

POINTS = {
    "collect.parsed": "the door has parsed a request and handed nothing over yet",
    "collect.answering": "the event is durable and the answer is not sent yet",
    "topics.received": "the writer holds the frames of a commit and has written nothing",
    "topics.written": "the rows are in the transaction, which is not committed",
    "settle.folded": "the settler holds what came of some clicks and has committed nothing",
    "settle.committed": "events and position are committed, what the settler remembers is not saved",
    "settle.saved": "what the settler remembers is on disk",
    "sink.committing": "the sink holds rows and has committed nothing",
    "sink.committed": "the rows are in the table, and the sink has not taken note of it",
    "keeper.compacted": "the compaction is in the table, and no checkpoint follows it yet",
    "keeper.checkpointed": "the checkpoint is written",
    "keeper.vacuumed": "files are deleted that no version needs any more",
    "update.folded": "the updater holds what came of some events and has committed nothing",
    "update.committed": "tiles and position are committed, and the updater has not taken note of it",
    "online.written": "tiles and position are in the transaction, which is not committed",
    "endpoint.decided": "the page is made and nothing of it is written down",
    "endpoint.answering": "the decision is durable and the answer is not sent yet",
    "promote.starting": "the A/A gate has passed and the trial is not written yet",
    "promote.started": "the trial runs, and whoever started it has not taken note of it",
    "promote.stopped": "the trial is stopped and not judged yet",
    "promote.judged": "the verdict stands and nothing of it is written",
    "promote.promoted": "verdict and champion are written, and the verdict is in no table yet",
    "topics.synced": "the commit is on disk and no answer has left the writer",
}

ACTIONS = ("kill", "stop", "raise")


class FaultError(Exception):
    """The fault `raise`, planted by HEADRACE_FAULT."""


@dataclass
class _Planted:
    action: str
    countdown: int
    mark: str


def parse(text: str) -> dict[str, _Planted]:
    """Returns the planted faults of a HEADRACE_FAULT value, by point."""
    planted = {}
    for part in filter(None, text.split(",")):
        point, _, rest = part.partition("=")
        action, _, rest = rest.partition("@")
        count, _, mark = rest.partition(":")
        if point not in POINTS:
            raise unknown_name("crash point", point, POINTS)
        if action not in ACTIONS or (count and not count.isdigit()):
            raise CallError(f"{VARIABLE}={text!r}: write POINT=ACTION@COUNT:MARK, ACTION one of {', '.join(ACTIONS)}")
        planted[point] = _Planted(action, int(count or 1), mark)
    return planted


# Read once: a crash point on the hot path may cost one dictionary test and no more.
_PLANTED = parse(os.environ.get(VARIABLE, ""))


def point(name: str) -> None:
    """Returns at once, unless HEADRACE_FAULT names this point and its count is reached."""
    if _PLANTED and name in _PLANTED:
        _reach(name, _PLANTED[name])


def _reach(name: str, planted: _Planted) -> None:
    planted.countdown -= 1
    if planted.countdown:
        return
    if planted.mark:
        # Renamed into place: whoever finds the proof finds it whole.
        fresh = Path(f"{planted.mark}.{os.getpid()}")
        fresh.write_text(f"{name} {os.getpid()}\n", encoding="utf-8")
        fresh.replace(planted.mark)
    if planted.action == "raise":
        raise FaultError(name)
    os.kill(os.getpid(), signal.SIGKILL if planted.action == "kill" else signal.SIGSTOP)
