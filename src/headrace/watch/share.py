"""Shares: how much of what comes is late, failed, repeated or a robot's, against limits far from a healthy site.

A share is of about a day by the project's clock, older things counting ever less: nights are quiet, and what phones
send late comes then. An alert needs both, that day's share and that of the last seconds.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from headrace.watch.alert import Finding, Now

_HALF_LIFE_US = 12 * 3_600_000_000
_RECENT_US = 10_000_000
_STEP_US = 250_000
_MOST_VISITORS = 200_000


@dataclass(frozen=True)
class Limit:
    """From which share on a kind is an alert, and below which it is over."""

    kind: str
    subject: str
    opens: float
    closes: float
    least: int
    """So many must have come before anything is said."""
    text: str
    """A sentence with {share}, {bad} and {all}."""
    advice: str


LIMITS = (
    Limit(
        "lateness",
        "events",
        opens=0.2,
        closes=0.1,
        least=300,
        text="{share} of the events come more than {late} after they have happened ({bad} of {all})",
        advice="Look which clients hold them back: headrace table sql 'SELECT door, browser, count(*) FROM events "
        "WHERE received_us - event_us > 3600e6 GROUP BY ALL'",
    ),
    Limit(
        "failed",
        "events",
        opens=0.05,
        closes=0.02,
        least=300,
        text="{share} of the events cannot be settled ({bad} of {all})",
        advice="See why, mend it, and replay them: headrace table failed --group",
    ),
    Limit(
        "duplicates",
        "events",
        opens=0.1,
        closes=0.05,
        least=500,
        text="{share} of the clicks are repeats of earlier ones, and are folded away ({bad} of {all})",
        advice="Look for a client that does not take 200 for an answer: headrace topic tail clicks --last 20",
    ),
    Limit(
        "bots",
        "visitors",
        opens=0.2,
        closes=0.1,
        least=200,
        text="{share} of the visitors are robots ({bad} of {all}); they count in no metric, and cost their pages",
        advice="See which: headrace table sql 'SELECT address, count(*) FROM events WHERE bot GROUP BY ALL'; then keep "
        "them out at your proxy",
    ),
)


class Visitors:
    """Who came in the last half day by the project's clock, of many the newest: of a crawl each page is no visit."""

    def __init__(self) -> None:
        self._met_us: OrderedDict[str, int] = OrderedDict()

    def meet(self, name: str, project_us: int) -> bool:
        """Returns whether somebody comes for the first time in half a day."""
        if project_us - self._met_us.get(name, -_HALF_LIFE_US) < _HALF_LIFE_US:
            return False
        self._met_us[name] = project_us
        self._met_us.move_to_end(name)
        if len(self._met_us) > _MOST_VISITORS:
            self._met_us.popitem(last=False)
        return True


class Share:
    """One share, while things come."""

    def __init__(self, limit: Limit, **words: str) -> None:
        self._limit = limit
        self._words = words
        self._bad = self._all = 0.0
        self._project_us = 0
        self._recent: deque[list[int]] = deque()

    def add(self, bad: int, whole: int, *, machine_us: int, project_us: int) -> None:
        """Takes in so many of `whole` that were bad, and when that was by both clocks."""
        newest_us = max(project_us, self._project_us)
        left, counts = (0.5 ** ((newest_us - at_us) / _HALF_LIFE_US) for at_us in (self._project_us, project_us))
        self._bad, self._all = self._bad * left + bad * counts, self._all * left + whole * counts
        self._project_us = newest_us
        step = machine_us // _STEP_US
        if not self._recent or self._recent[-1][0] < step:
            self._recent.append([step, 0, 0])
        # The partitions of a topic are read in turns: one may be hours behind the one before.
        if step > self._recent[-1][0] - _RECENT_US // _STEP_US:
            self._recent[-1][1] += bad
            self._recent[-1][2] += whole

    def judge(self, now: Now) -> Iterator[Finding]:
        """Yields the finding, if there is one."""
        while self._recent and self._recent[0][0] * _STEP_US < now.machine_us - _RECENT_US:
            self._recent.popleft()
        bad, whole = (sum(one[place] for one in self._recent) for place in (1, 2))
        limit, share = self._limit, self._bad / self._all if self._all else 0.0
        if not whole or bad < limit.closes * whole:
            return
        # What was folded in before is said to be over only when nothing more comes.
        is_clear = self._all >= limit.least and share >= limit.opens and bad >= limit.opens * whole
        words = {"share": f"{share:.0%}", "bad": f"{self._bad:,.0f}", "all": f"{self._all:,.0f}", **self._words}
        yield Finding(
            kind=limit.kind,
            subject=limit.subject,
            text=limit.text.format(**words),
            advice=limit.advice,
            evidence={"share": round(share, 4), "bad": round(self._bad), "all": round(self._all), "limit": limit.opens},
            is_clear=is_clear,
        )


def make_shares(limits: Iterable[Limit] = LIMITS, **words: str) -> dict[str, Share]:
    """Returns a share for each limit, by its kind; `words` stand in their texts."""
    return {limit.kind: Share(limit, **words) for limit in limits}
