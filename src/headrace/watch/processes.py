"""Whether the roles live: processes that die again and again or stay away, and loops that fail at their work."""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from headrace.watch.alert import Finding, Now

DEATHS, WITHIN_SECONDS = 3, 30.0
"""So many deaths of a process in such a time are an alert; one that heals is none."""
AWAY_SECONDS = 8.0
"""A process that stays away so long is an alert."""
FAILING_SECONDS = 20.0
"""A loop that has failed for so long, again and again, is an alert."""
_GAP_SECONDS = 15.0
_HELD_SECONDS = 12.0


@dataclass
class _Process:
    roles: tuple[str, ...]
    pid: int | None
    away_us: int | None = None
    died_us: deque[int] = field(default_factory=lambda: deque(maxlen=DEATHS))


class Processes:
    """The processes of a project's roles, as their supervisor notes them down."""

    def __init__(self) -> None:
        self._known: dict[str, _Process] = {}
        self._failing: dict[str, tuple[int, int, str]] = {}

    def add(self, running: Mapping[str, Mapping[str, int]], *, machine_us: int) -> None:
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
                one.died_us.append(machine_us)
            one.pid, one.away_us, one.roles = pid, None, tuple(sorted(roles[name])) or one.roles
        for name in self._known.keys() - pids.keys():
            self._miss(name, running, machine_us)

    def _miss(self, name: str, running: Mapping[str, Mapping[str, int]], machine_us: int) -> None:
        one = self._known[name]
        if not set(one.roles) & running.keys():
            # Its supervisor has ended, and all its processes with it.
            del self._known[name]
        elif one.pid is not None:
            one.died_us.append(machine_us)
            one.pid, one.away_us = None, machine_us

    def add_failure(self, loop: str, message: str, *, at_us: int) -> None:
        """Takes in why a loop has stopped last, and when."""
        first, last, _ = self._failing.get(loop, (at_us, at_us, ""))
        if at_us - last > _GAP_SECONDS * 1e6:
            first = at_us
        self._failing[loop] = (first, at_us, message)

    def judge(self, now: Now) -> Iterator[Finding]:
        """Yields what is wrong."""
        for name, one in self._known.items():
            yield from _judge_process(name, one, now.machine_us)
        for loop, (first, last, message) in self._failing.items():
            seconds = (last - first) / 1e6
            if now.machine_us - last < _GAP_SECONDS * 1e6 and seconds > FAILING_SECONDS:
                yield Finding(
                    kind="dead-role",
                    subject=f"loop {loop}",
                    text=f"{loop} has failed for {seconds:.0f} s, again and again: {message[:300]}",
                    advice="Do what it says; see also: headrace status",
                    evidence={"seconds": round(seconds, 1)},
                )


def _judge_process(name: str, one: _Process, machine_us: int) -> Iterator[Finding]:
    ago = [(machine_us - died_us) / 1e6 for died_us in one.died_us]
    away = 0.0 if one.away_us is None else (machine_us - one.away_us) / 1e6
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
