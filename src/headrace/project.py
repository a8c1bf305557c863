"""The one place that joins rooms: a project, opened with a profile, and the roles that it runs."""

from __future__ import annotations

import contextlib
import inspect
import re
import socket
import sys
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from hashlib import blake2b
from importlib import import_module
from pathlib import Path
from types import ModuleType, TracebackType
from typing import TYPE_CHECKING, Self, TypeVar, cast

import msgspec

from headrace.base.clock import SCHEMES as CLOCKS
from headrace.base.clock import Clock, WorldClock, machine_us
from headrace.base.errors import CallError, FencedError, OutsideError, ProjectError, did_you_mean
from headrace.base.http import is_loopback, listen
from headrace.base.process import Program
from headrace.collect.app import CLICKS
from headrace.collect.keys import DEV_KEY, Keys
from headrace.endpoints.endpoint import Page
from headrace.events.decision import DECISIONS
from headrace.events.dimension import Dimension
from headrace.events.event import Event
from headrace.events.settle import TOLERANCE_US, WINDOW_US, Rules
from headrace.events.settled import EVENTS, FAILED
from headrace.experiments.experiment import Experiment
from headrace.experiments.verdict import VERDICTS
from headrace.features import Column, Feature, list_columns
from headrace.models import Model
from headrace.models.registry import Entry, Registry, open_registry
from headrace.pipelines import LocalRunner, Pipeline, open_runner
from headrace.profile import DoorTable, Profile, find_folder, read_profile
from headrace.topics import Topic, Topics, open_topics

if TYPE_CHECKING:
    from headrace.engines import Engine, Result
    from headrace.engines.engine import Parameters
    from headrace.features.online import Online
    from headrace.tables import Table, Tables

FILE = "project.py"

_TAKEN = (CLICKS, EVENTS, FAILED, DECISIONS, VERDICTS)

OWNER = "project"
"""The kind of the registry's row, without a name, that says whose it is."""

Named = TypeVar("Named", Event, Model, Dimension, Feature)


@dataclass(frozen=True)
class Project:
    """A product's pages, experiments, pipelines and events, declared once and the same in every profile.

    `events` are those that nothing else of the project names; all of them stand there once it is made.

    >>> Project("shop", events=(Event("Product Clicked", item="product_id"),)).name
    'shop'
    """

    name: str
    events: tuple[Event, ...] = field(default=())
    pages: tuple[Page, ...] = field(default=(), kw_only=True)
    experiments: tuple[Experiment, ...] = field(default=(), kw_only=True)
    pipelines: tuple[Pipeline, ...] = field(default=(), kw_only=True)

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or not self.name.replace("-", "").replace("_", "").isalnum():
            raise ProjectError(f"Project({self.name!r}): a name has letters, digits, '-' and '_'")
        for noun, kind, values in (
            ("events", Event, self.events),
            ("pages", Page, self.pages),
            ("experiments", Experiment, self.experiments),
            ("pipelines", Pipeline, self.pipelines),
        ):
            if not isinstance(values, tuple) or not all(isinstance(value, kind) for value in values):
                raise ProjectError(f"Project({self.name!r}): {noun}={values!r}; write {noun}=(..., ), a tuple of them")
        _refuse_twins(self.name, "event", self.events)
        object.__setattr__(self, "events", _merge("event", self.name, (*self.events, *self._named_events())))
        _refuse_twins(self.name, "page", self.pages)
        _refuse_twins(self.name, "experiment", self.experiments)
        _refuse_twins(self.name, "pipeline", self.pipelines)
        _merge("model", self.name, self.models)
        _merge("feature", self.name, self.features)
        _merge("dimension", self.name, self.dimensions)
        _refuse_topics(self.name, self.dimensions)
        list_columns(self.features)
        self._check_experiments()
        self._check_pipelines()

    @property
    def models(self) -> tuple[Model, ...]:
        """The models of all pages and pipelines."""
        found = [model for page in self.pages for model in page.models]
        steps = (step for pipeline in self.pipelines for step in pipeline.steps)
        found += [cast("Model", step) for step in steps if hasattr(step, "fit")]
        return tuple(dict.fromkeys(found))

    @property
    def features(self) -> tuple[Feature, ...]:
        """The features of all models."""
        return tuple(dict.fromkeys(feature for model in self.models for feature in model.features))

    @cached_property
    def columns(self) -> tuple[Column, ...]:
        """The columns of all features."""
        return list_columns(self.features)

    @cached_property
    def dimensions(self) -> tuple[Dimension, ...]:
        """The dimensions that events name."""
        return tuple(dict.fromkeys(event.of for event in self.events if event.of is not None))

    def _named_events(self) -> list[Event]:
        metrics = [metric for experiment in self.experiments for metric in experiment.metrics]
        return [
            *(event for page in self.pages for event in page.events),
            *(model.clicks for model in self.models),
            *(event for metric in metrics for event in metric.events),
            *(feature.event for feature in self.features),
        ]

    def _check_pipelines(self) -> None:
        for pipeline in self.pipelines:
            strange = [step for step in pipeline.steps if not hasattr(step, "fit")]
            if strange:
                raise ProjectError(f"Pipeline({pipeline.name!r}): the step {strange[0]!r} is no model")
            if pipeline.then is not None and pipeline.then not in self.experiments:
                raise ProjectError(
                    f"Pipeline({pipeline.name!r}): then={pipeline.then.name!r} is no experiment of "
                    f"Project({self.name!r}); add it to experiments"
                )

    def _check_experiments(self) -> None:
        taken: dict[str, str] = {}
        for experiment in self.experiments:
            page = experiment.on
            if page not in self.pages:
                raise ProjectError(
                    f"Experiment({experiment.name!r}): it is on the page {page.name!r}, which Project({self.name!r}) "
                    "does not have; add it to pages"
                )
            if page.name in taken:
                raise ProjectError(
                    f"Project({self.name!r}): the experiments {taken[page.name]!r} and {experiment.name!r} are both on "
                    f"the page {page.name!r}, where only one can change what is shown; leave one for later"
                )
            taken[page.name] = experiment.name
        for experiment in self.experiments:
            _refuse_nothing(experiment, next(page for page in self.pages if page == experiment.on))


def _refuse_nothing(experiment: Experiment, page: Page) -> None:
    ranker = page.ranker
    if ranker == page.fallback:
        raise ProjectError(
            f"Experiment({experiment.name!r}): nothing to test: the page {page.name!r} ranks by its own fallback "
            f"{ranker.name!r}. Give its Carousel another model as rank=, or, where the winner serves already, take "
            "the experiment out of the project"
        )


def _refuse_topics(project: str, dimensions: Sequence[Dimension]) -> None:
    for dimension in dimensions:
        if dimension.name in _TAKEN:
            raise ProjectError(
                f"Project({project!r}): Dimension({dimension.name!r}) would share its topic and table with Headrace's "
                "own; give it another name"
            )


def _refuse_twins(
    project: str, noun: str, values: Sequence[Event] | Sequence[Page] | Sequence[Experiment] | Sequence[Pipeline]
) -> None:
    names = [value.name for value in values]
    for name in names:
        if names.count(name) > 1:
            raise ProjectError(f"Project({project!r}): {noun} {name!r} is declared twice")


def _merge(noun: str, project: str, values: Sequence[Named]) -> tuple[Named, ...]:
    """Returns the values, each once; raises ProjectError if two that differ have one name."""
    found: dict[str, Named] = {}
    for value in values:
        if found.setdefault(value.name, value) != value:
            raise ProjectError(
                f"Project({project!r}): two {noun}s are called {value.name!r} and differ; use one, or another name"
            )
    return tuple(found.values())


class OpenProject:
    """A project with its backends, as the console and a notebook use it."""

    def __init__(self, folder: Path, profile: Profile) -> None:
        self.folder = folder
        self.profile = profile

    @cached_property
    def declared(self) -> Project:
        """What the project file declares."""
        return load_project(self.folder / FILE)

    @cached_property
    def topics(self) -> Topics:
        """The topics of the profile."""
        return open_topics(self.profile.url("topics"))

    @cached_property
    def clock(self) -> Clock:
        """The project's clock."""
        clock: Clock = CLOCKS.open(self.profile.url("clock"))
        return clock

    def topic(self, name: str) -> Topic:
        """Returns a topic that stands."""
        self.topics.describe(name)
        return Topic(self.topics, name)

    @cached_property
    def tables(self) -> Tables:
        """The tables of the profile."""
        # Imported when asked for: Arrow and Delta would cost a door 300 ms at start and 60 MB.
        tables: Tables = import_module("headrace.tables").open_tables(self.profile.url("tables"))
        return tables

    @cached_property
    def engine(self) -> Engine:
        """The engine of the profile."""
        engine: Engine = import_module("headrace.engines").open_engine(self.profile.url("engine"))
        return engine

    @cached_property
    def registry(self) -> Registry:
        """The registry of the profile; raises CallError if it is another project's."""
        registry = open_registry(self.profile.url("registry"))
        with contextlib.ExitStack() as unless_claimed:
            unless_claimed.callback(registry.close)
            self._claim(registry)
            unless_claimed.pop_all()
        return registry

    @cached_property
    def online(self) -> Online:
        """The online store of the profile."""
        online: Online = import_module("headrace.features.online").open_online(self.profile.url("online"))
        return online

    @cached_property
    def runner(self) -> LocalRunner:
        """What runs the project's pipelines, with their history."""
        return open_runner(self.profile.url("runner"))

    def _claim(self, registry: Registry) -> None:
        """Makes a registry this project's, unless it is somebody's; without a project file there is no name to give."""
        if not (self.folder / FILE).is_file():
            return
        name = self.declared.name
        owner = registry.newest(OWNER).get("")
        if owner is None:
            claim = Entry(0, OWNER, "", msgspec.json.encode(name), self.clock.now_us(), self.member)
            # Who comes first wins; one that takes no rows now is claimed when it is opened next.
            with contextlib.suppress(FencedError, OutsideError):
                registry.write(claim)
            owner = registry.newest(OWNER).get("", claim)
        if msgspec.json.decode(owner.value) != name:
            raise CallError(
                f"the registry {self.profile.urls.registry!r} is that of project {msgspec.json.decode(owner.value)!r} "
                f"(since it was opened by {owner.by}), and this is project {name!r}: what both call by one name would "
                f"mix. Give this project a registry of its own under [profile.{self.profile.name}] registry"
            )

    def make_topic(self, name: str, *, partitions: int | None = None) -> Topic:
        """Returns a topic, made as headrace.toml says if it does not stand."""
        table = self.profile.topic(name)
        retention_seconds = int(table.retention_days * 86400) if table.retention_days else None
        self.topics.create(name, partitions=partitions or table.partitions, retention_seconds=retention_seconds)
        return Topic(self.topics, name)

    def make_topics(self) -> None:
        """Makes the topics of the click's way, with the same number of partitions."""
        partitions = self.make_topic(CLICKS).describe().partitions
        for name in (EVENTS, FAILED):
            check_retention(name, self.profile.topic(name).retention_days)
        for name in (EVENTS, FAILED, DECISIONS):
            self.make_topic(name, partitions=partitions)

    @property
    def events(self) -> tuple[Event, ...]:
        """The declared events; none without a project file, as a role in a container may run."""
        return self.declared.events if (self.folder / FILE).is_file() else ()

    def query(
        self, sql: str, *, at: Callable[[Table], Table] = lambda table: table, parameters: Parameters = ()
    ) -> Result:
        """Returns the answer to one SELECT over the project's tables and views; `at` may choose other versions."""
        find_sources = import_module("headrace.tables.catalog").find_sources
        sources, views = find_sources(self.tables, self.events, sql, at=at)
        return self.engine.query(sql, sources=sources, views=views, parameters=parameters)

    @property
    def rules(self) -> Rules:
        """What the settler judges by."""
        rate = self.clock.rate if isinstance(self.clock, WorldClock) else 1.0
        declared = {event.name: event for event in self.declared.events}
        return Rules(declared, tolerance_us=int(TOLERANCE_US * rate))

    @property
    def member(self) -> str:
        """The name of this project on this machine among the members of a group."""
        place = blake2b(str(self.folder).encode(), digest_size=3).hexdigest()
        return f"{socket.gethostname()}-{place}"

    def close(self) -> None:
        """Releases the backends."""
        if "topics" in self.__dict__:
            self.topics.close()
        if "tables" in self.__dict__:
            self.tables.close()
        if "engine" in self.__dict__:
            self.engine.close()
        if "online" in self.__dict__:
            self.online.close()
        if "registry" in self.__dict__:
            self.registry.close()
        if "runner" in self.__dict__:
            self.runner.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def open_project(folder: Path | str = ".", *, profile: str | None = None) -> OpenProject:
    """Returns the project in a folder or above it, with a profile's backends."""
    found = find_folder(Path(folder))
    return OpenProject(found, read_profile(found, profile))


def load_project(path: Path) -> Project:
    """Returns what a project file declares; an error in it names the user's own file and line."""
    if not path.is_file():
        raise ProjectError(f"{path}: no such file. Make a project with: headrace init DIR")
    module = ModuleType("headrace_user_project")
    module.__file__ = str(path)
    try:
        # Not imported: Python would take its compiled copy for a file that was changed within the same second and is as
        # long as before, and leave that copy in the folder of whoever only asks.
        exec(compile(path.read_bytes(), path, "exec", dont_inherit=True), vars(module))  # noqa: S102 - the user's own code
    except (Exception, SystemExit) as error:  # the user's own code may raise anything
        raise ProjectError(f"{_place(path, error)}: {_explain(error, module)}") from error
    return _find_project(path, module)


def _find_project(path: Path, module: ModuleType) -> Project:
    found = list({id(value): value for value in vars(module).values() if isinstance(value, Project)}.values())
    if len(found) != 1:
        raise ProjectError(f"{path}: found {len(found)} projects, need one line like: project = Project('shop')")
    return found[0]


def _place(path: Path, error: BaseException) -> str:
    if isinstance(error, SyntaxError) and error.lineno:
        return f"{error.filename or path}:{error.lineno}"
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(path)]
    return f"{path}:{lines[-1]}" if lines else str(path)


def _explain(error: BaseException, module: ModuleType) -> str:
    hint = ""
    if isinstance(error, NameError) and error.name:
        hint = did_you_mean(error.name, [*sys.modules["headrace"].__all__, *vars(module)])
    missing = re.match(r"cannot import name '(\w+)' from '(headrace[\w.]*)'", str(error))
    if missing:
        place = sys.modules[missing[2]]
        hint = did_you_mean(missing[1], getattr(place, "__all__", None) or vars(place))
    unexpected = re.match(r"([\w.]+)\(\) got an unexpected keyword argument '(\w+)'", str(error))
    if unexpected:
        hint = did_you_mean(unexpected[2], _list_parameters(module, unexpected[1]))
    return f"{type(error).__name__}: {error}{'.' if hint else ''}{hint}"


def _list_parameters(module: ModuleType, called: str) -> list[str]:
    """Returns the parameters of what a project file calls by this name; none if it does not know the name."""
    found: object = module
    for part in called.split("."):
        found = getattr(found, part, None)
    return list(inspect.signature(found).parameters) if callable(found) else []


def check_retention(name: str, days: float | None) -> None:
    """Raises CallError if a topic would forget what the settler may have to rebuild its memory from."""
    least = WINDOW_US / 86_400e6 + 1
    if name in (EVENTS, FAILED) and days and days < least:
        raise CallError(
            f"topic {name!r} must keep its records for {least:g} days at least, or for ever (0), asked for {days:g}: "
            "the settler knows repeats by them when it has lost its own memory"
        )


@dataclass(frozen=True)
class Door:
    """A role that listens: its socket is opened by the supervisor, so that no restart loses a connection."""

    role: str
    listener: socket.socket
    url: str


DOORS: dict[str, str] = {
    "collector": "headrace.doors:open_collector",
    "endpoint": "headrace.doors:open_endpoint",
    "console": "headrace.console.pages:open_console",
}
"""The roles that listen, and what opens the application of each."""


def open_door(project: OpenProject, role: str) -> Door:
    """Returns the open door of a role; refuses to open it to others while the dev key stands."""
    settings = project.profile.settings
    section = "collect" if role == "collector" else role
    table: DoorTable = getattr(settings, section)
    if not is_loopback(table.host) and Keys.read(settings.keys).name_of(DEV_KEY):
        raise CallError(
            f"{section}.host = {table.host!r} is open to others while the write key 'dev' stands, which everybody "
            "knows. Put a key of your own into [keys] of headrace.toml and remove dev"
        )
    try:
        listener = listen(table.host, table.port)
    except CallError as error:
        raise CallError(f"{error} under [{section}] port of headrace.toml, 0 for any free one") from error
    host, port = listener.getsockname()[:2]
    return Door(role, listener, f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}")


def door_programs(project: OpenProject, doors: Sequence[Door]) -> dict[str, list[Program]]:
    """Returns the programs of each door: the first has all of them, the collector's further workers only its own."""
    workers = project.profile.settings.collect.workers
    if not 1 <= workers <= 64:
        raise CallError(f"collect.workers == {workers}, must be 1 to 64")
    Keys.read(project.profile.settings.keys)
    name = "doors" if len(doors) > 1 else f"{doors[0].role}-1"
    first = _door_program(project, name, doors)
    crews = {door.role: [first] for door in doors}
    for door in doors:
        if door.role == "collector":
            crews[door.role] += [
                _door_program(project, f"collector-{number}", [door]) for number in range(2, workers + 1)
            ]
    return crews


def _door_program(project: OpenProject, name: str, doors: Sequence[Door]) -> Program:
    listeners = {door.role: door.listener.fileno() for door in doors}
    arguments = {"folder": str(project.folder), "profile": project.profile.name, "name": name, "listeners": listeners}
    return Program(name, "headrace.doors:run_doors", arguments, descriptors=tuple(listeners.values()))


def stream_program(project: OpenProject, roles: Sequence[str], *, after: Sequence[str] = ()) -> Program:
    """Returns the one program that runs these roles of the stream, a thread each."""
    arguments = {"folder": str(project.folder), "profile": project.profile.name, "roles": list(roles)}
    name = roles[0] if len(roles) == 1 else "stream"
    return Program(name, "headrace.stream:run_stream", {**arguments, "name": name}, after=tuple(after))


STREAM: dict[str, tuple[str, ...]] = {
    "settler": ("settler",),
    "sink": ("sink-events", "sink-failed", "sink-decisions"),
    "keeper": ("keeper",),
    "updater": ("updater",),
}
"""The roles of the stream, with their loops."""

WORK: dict[str, tuple[str, ...]] = {"runner": ("runner", "promoter"), "watcher": ("watcher", "webhook")}
"""The roles of the process `work`, with their loops."""

ROLES = (*DOORS, *STREAM, *WORK)


def work_program(project: OpenProject, roles: Sequence[str], *, after: Sequence[str] = ()) -> Program:
    """Returns the one program that runs the project's pipelines and watches, a thread for each loop."""
    arguments = {"folder": str(project.folder), "profile": project.profile.name, "roles": list(roles)}
    name = roles[0] if len(roles) == 1 else "work"
    return Program(name, "headrace.work:run_work", arguments, after=tuple(after))


def note_failure(project: OpenProject, loop: str, message: str) -> None:
    """Writes down why a loop has stopped, for `headrace status`."""
    folder = project.profile.state / "run"
    folder.mkdir(parents=True, exist_ok=True)
    failure = {"loop": loop, "message": message, "at_us": machine_us()}
    temporary = folder / f"{loop}.failure.new"
    temporary.write_bytes(msgspec.json.encode(failure))
    temporary.replace(folder / f"{loop}.failure")
