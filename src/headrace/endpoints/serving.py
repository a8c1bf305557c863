"""What serves a page at one moment: bundles that are open, and the trial that runs. It is swapped whole."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field

from headrace.base.errors import FormatError, HeadraceError, UnknownNameError, unknown_name
from headrace.base.telemetry import get_logger
from headrace.endpoints.carousel import Rule
from headrace.endpoints.endpoint import Page
from headrace.experiments.experiment import ARMS, Trial, decode_trial
from headrace.experiments.promotion import CHAMPION, Champion, decode_champion
from headrace.models import Scorer, open_bundle
from headrace.models.registry import Registry

TRIAL = "trial"
"""The kind of the registry's rows that start and stop trials."""


@dataclass(frozen=True)
class Served:
    """A bundle that is open."""

    hash: str
    model: str
    scorer: Scorer


@dataclass(frozen=True)
class Serving:
    """All that a request for a page needs; it holds on to one from beginning to end."""

    page: Page
    fallback: Served | None
    """The newest bundle of the page's fallback."""
    arms: Mapping[str, Served]
    trial: Trial | None = None
    problems: tuple[str, ...] = ()
    """What is wrong with it, in sentences."""
    is_older: bool = False
    """Whether what serves usually is an older bundle, because a newer one cannot be opened."""
    champion: Served | None = None
    """The bundle that was promoted last."""
    own: Mapping[str, Served] = field(default_factory=dict)
    """What ranks the carousels, by title, that a model of their own ranks, whatever is tested or promoted."""

    @property
    def usual(self) -> Served | None:
        """What serves whoever is in no arm: the champion's bundle, before there is one the fallback's."""
        return self.champion or self.fallback

    def rule(self, above: Collection[str] = ()) -> Rule:
        """Returns how a row is made, in a trial as it was at the start, below rows with these items."""
        source = self.trial or self.page
        return Rule(source.per_row, source.explore, above)


class Shelf:
    """Opens what the registry says should serve, and keeps open what still does.

    `prepare` is told of all that is open whenever the registry was looked at, and before anything new serves.
    """

    def __init__(
        self,
        find_registry: Callable[[], Registry],
        pages: Iterable[Page],
        prepare: Callable[[Iterable[Served]], None] = lambda _: None,
    ) -> None:
        self._prepare = prepare
        # Found when it is needed first: one that is away must not keep the door shut.
        self._find_registry = find_registry
        self._pages = tuple(pages)
        self._open: dict[str, Served] = {}
        self._stamp = -1
        self.servings: Mapping[str, Serving] = {page.name: Serving(page, None, {}) for page in self._pages}
        """What serves each page."""
        self.trouble = ""
        """Why the registry could not be read, or nothing."""

    def refresh(self) -> bool:
        """Takes over what has changed in the registry; returns whether anything did."""
        try:
            changed = self._refresh()
        except HeadraceError as error:
            self.trouble = str(error)
            raise
        self.trouble = ""
        return changed

    def _refresh(self) -> bool:
        registry = self._find_registry()
        stamp = registry.stamp()
        if stamp == self._stamp:
            self._prepare(self._open.values())
            return False
        trials = find_trials(registry)
        servings = {page.name: self._serve(registry, page, trials.get(page.name)) for page in self._pages}
        used = {
            one.hash
            for serving in servings.values()
            for one in (serving.champion, serving.fallback, *serving.arms.values(), *serving.own.values())
            if one
        }
        self._open = {name_hash: served for name_hash, served in self._open.items() if name_hash in used}
        for problem in {problem for serving in servings.values() for problem in serving.problems}:
            get_logger("endpoint").error("%s", problem)
        self._prepare(self._open.values())
        self.servings, self._stamp = servings, stamp
        return True

    def _serve(self, registry: Registry, page: Page, trial: Trial | None) -> Serving:
        problems: list[str] = []
        champion = self._champion(registry, page, problems)
        is_older = bool(problems)
        fallback = self._newest(registry, page.fallback.name, problems)
        if champion is None:
            is_older = bool(problems)
        arms: dict[str, Served] = {}
        for arm in ARMS if trial else ():
            assert trial is not None
            try:
                arms[arm] = self._load(registry, trial.bundle_of(arm))
            except (FormatError, UnknownNameError) as error:
                problems.append(f"trial {trial.id!r}: the bundle of {arm} cannot serve: {error}")
        own = {
            carousel.title: found
            for carousel in page.carousels
            if carousel.ranker != page.ranker
            and (found := self._newest(registry, carousel.ranker.name, problems) or fallback)
        }
        return Serving(page, fallback, arms, trial, tuple(problems), is_older, champion, own)

    def _champion(self, registry: Registry, page: Page, problems: list[str]) -> Served | None:
        """Returns the page's newest champion that can be opened; None where its fallback serves."""
        models = {model.name for model in page.models}
        for entry in reversed(registry.entries(CHAMPION, page.name)):
            try:
                champion = decode_champion(entry.value)
                if not champion.bundle:
                    return None
                return self._open_champion(registry, champion, models)
            except (FormatError, UnknownNameError) as error:
                problems.append(f"the champion of the page {page.name!r}, row {entry.id}, cannot serve: {error}")
        return None

    def _open_champion(self, registry: Registry, champion: Champion, models: Collection[str]) -> Served:
        if champion.model not in models:
            raise unknown_name("model", champion.model, models)
        return self._load(registry, champion.bundle)

    def _newest(self, registry: Registry, model: str, problems: list[str]) -> Served | None:
        """Returns the newest bundle of a model that can be opened."""
        for fitted in registry.bundles(model):
            try:
                return self._load(registry, fitted.hash)
            except FormatError as error:
                problems.append(f"bundle {fitted.hash} of {model!r} cannot serve: {error}")
        return None

    def _load(self, registry: Registry, name_hash: str) -> Served:
        if name_hash not in self._open:
            bundle = registry.load(name_hash)
            self._open[name_hash] = Served(name_hash, bundle.name, open_bundle(bundle))
        return self._open[name_hash]


def find_trials(registry: Registry) -> dict[str, Trial]:
    """Returns the trials that run, by the page that they run on."""
    trials = []
    for entry in registry.newest(TRIAL).values():
        try:
            trials.append(decode_trial(entry.value))
        except FormatError as error:
            raise FormatError(f"row {entry.id} of the registry, on {entry.name!r}, cannot be read: {error}") from error
    return {trial.page: trial for trial in trials if trial.status == "running"}
