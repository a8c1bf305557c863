"""Whether the roles live: processes that die again and again or stay away, and loops that fail at their work."""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from headrace.watch.alert import Finding, Now

DEATHS, WITHIN_SECONDS = 3, 30.0
"""So many deaths of a process in such a time are an alert; one that heals is none."""
AWAY_SECONDS = 8.0
"""A process that stays away so long is an alert."""
FAILING_SECONDS, FAILURES = 20.0, 4
"""A loop that has failed for so long, and so often, is an alert: whose peers are killed in turn fails once for each."""
# A pause of 10 s, and as long as it takes to wait for somebody in vain.
_GAP_SECONDS = 40.0
_HELD_SECONDS = 12.0


@dataclass
class _Process:
    roles: tuple[str, ...]
    pid: int | None
    away_us: int | None = None
    died_us: deque[int] = field(default_factory=lambda: deque(maxlen=DEATHS))


class _Failing(NamedTuple):
    first_us: int
    last_us: int
    times: int
    message: str


class Processes:
    """The processes of a project's roles, as their supervisor notes them down."""

    def __init__(self) -> None:
        self._known: dict[str, _Process] = {}
        self._failing: dict[str, _Failing] = {}

    def add(self, running: Mapping[str, Mapping[str, int]], now: Now) -> None:
        """Takes in the process ids of each role that runs, by the names of its processes."""
        pids: dict[str, int] = {}
        roles = defaultdict(list)
        for role, crew in running.items():
            pids |= crew
            for name in crew:
                roles[name].append(role)
        for name, pid in pids.items():
            one = self._known.setdefault(name, _Process((), pid))
            if one.pid not in (pid, None):
                one.died_us.append(now.watched_us)
            one.pid, one.away_us, one.roles = pid, None, tuple(sorted(roles[name]))
        for name in self._known.keys() - pids.keys():
            self._miss(name, running, now.watched_us)

    def _miss(self, name: str, running: Mapping[str, Mapping[str, int]], watched_us: int) -> None:
        one = self._known[name]
        if not set(one.roles) & running.keys():
            # Its supervisor has ended, and all its processes with it.
            del self._known[name]
        elif one.pid is not None:
            one.died_us.append(watched_us)
            one.pid, one.away_us = None, watched_us

    def add_failure(self, loop: str, message: str, *, at_us: int) -> None:
        """Takes in why a loop has stopped last, and when."""
        one = self._failing.get(loop)
        if one is None or at_us - one.last_us > _GAP_SECONDS * 1e6:
            self._failing[loop] = _Failing(at_us, at_us, 1, message)
        elif at_us > one.last_us:
            self._failing[loop] = _Failing(one.first_us, at_us, one.times + 1, message)

    def judge(self, now: Now) -> Iterator[Finding]:
        """Yields what is wrong."""
        for name, one in self._known.items():
            yield from _judge_process(name, one, now.watched_us)
        for loop, failing in self._failing.items():
            seconds = (failing.last_us - failing.first_us) / 1e6
            lasts = now.machine_us - failing.last_us < _GAP_SECONDS * 1e6
            if lasts and seconds > FAILING_SECONDS and failing.times >= FAILURES:
                yield Finding(
                    kind="dead-role",
                    subject=f"loop {loop}",
                    text=f"{loop} has failed for {seconds:.0f} s, again and again: {failing.message[:300]}",
                    advice="Do what it says; see also: headrace status",
                    evidence={"seconds": round(seconds, 1)},
                )


def _judge_process(name: str, one: _Process, watched_us: int) -> Iterator[Finding]:
    ago = [(watched_us - died_us) / 1e6 for died_us in one.died_us]
    away = 0.0 if one.away_us is None else (watched_us - one.away_us) / 1e6
    died = sum(seconds < WITHIN_SECONDS for seconds in ago)
    is_clear = died >= DEATHS or away > AWAY_SECONDS
    if not is_clear and (not ago or ago[-1] > _HELD_SECONDS):
        return
    how = f"is away since {away:.0f} s" if away > AWAY_SECONDS else f"died {died} times in {WITHIN_SECONDS:.0f} s"
    yield Finding(
        kind="dead-role",
        subject=name,
        text=f"the process {name} ({', '.join(one.roles)}) {how}",
        advice="See what it says last, in the log of headrace up; what a role does meanwhile: headrace status",
        evidence={"deaths": died, "away_seconds": round(away, 1)},
        is_clear=is_clear,
    )
