"""headrace.toml: the profiles that name a URL for each noun, and the few settings beside them."""

from __future__ import annotations

import os
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec

from headrace.base.errors import ProjectError, did_you_mean, unknown_name
from headrace.base.urls import Url
from headrace.topics.topic import MAX_PARTITIONS

FILE = "headrace.toml"
VARIABLE = "HEADRACE_PROFILE"
DEFAULT_PROFILE = "laptop"

# The settler rebuilds what it remembers of the last 7 days from these two.
_RETENTION_DAYS = {"events": 14.0, "failed": 14.0, "decisions": 14.0}


class ProfileTable(msgspec.Struct, forbid_unknown_fields=True):
    """[profile.NAME]: where things live."""

    topics: str = "sqlite:///.headrace/topics"
    """Where the topics are: `memory://`, `sqlite:///folder` or `kafka://broker:9092`."""
    tables: str = "file:///.headrace/lake"
    """Where the tables are: `file:///folder` or `hdfs://namenode:8020/folder`."""
    engine: str = "duckdb://"
    """Where SQL runs: `duckdb://`, with `?memory=2GB&threads=2&spill=folder`."""
    online: str = "sqlite:///.headrace/online.db"
    """Where the features of people and items are kept for serving: `sqlite:///file`."""
    registry: str = "sqlite:///.headrace/registry.db"
    """Where bundles and trials are: `sqlite:///file`."""
    runner: str = "local://"
    """What runs pipelines: `local://`, this project's own runner."""
    clock: str = "real://"
    """The project's time: `real://`, `world://?rate=3600` or `stepped://`."""


Port = Annotated[int, msgspec.Meta(ge=0, le=65_535)]


class DoorTable(msgspec.Struct, forbid_unknown_fields=True):
    """Where a role listens."""

    host: str = "127.0.0.1"
    """The address to listen at. Another than loopback is refused while the key `dev` stands."""
    port: Port = 0
    """The port to listen at; 0 takes any free one, which `headrace up` prints."""


class EndpointTable(DoorTable, forbid_unknown_fields=True):
    """[endpoint]: the door that answers requests for pages; for the servers of your pages, not for everybody."""

    port: Port = 7071
    """The port to listen at; 0 takes any free one, which `headrace up` prints."""


class ConsoleTable(DoorTable, forbid_unknown_fields=True):
    """[console]: the door of the web pages, for those who run the project."""

    port: Port = 7072
    """The port to listen at; 0 takes any free one, which `headrace up` prints."""
    hosts: list[Annotated[str, msgspec.Meta(pattern=r"^[A-Za-z0-9.:-]+$")]] = []
    """Names under which a proxy passes the pages on. Each but loopback makes everybody log in."""
    session_hours: Annotated[float, msgspec.Meta(gt=0, le=8760)] = 12.0
    """For how long a login lasts; unused for two hours it ends before."""


class CollectTable(DoorTable, forbid_unknown_fields=True):
    """[collect]: the collector's door."""

    port: Port = 7070
    """The port to listen at; 0 takes any free one, which `headrace up` prints."""
    workers: int = 1
    """How many processes answer at the door, 1 to 64."""
    cookie_days: Annotated[int, msgspec.Meta(ge=0)] = 365
    """For how many days a browser keeps the cookie with the visitor's id."""
    cookie_domain: Annotated[str, msgspec.Meta(pattern=r"^[A-Za-z0-9.-]*$")] = ""
    """The domain of that cookie; nothing for the collector's own host."""
    cookie_same_site: Literal["Strict", "Lax", "None"] = "Lax"
    """The cookie's SameSite: Strict, Lax or None; browsers keep None under TLS only."""
    trust_proxy: bool = False
    """Whether the client's address and TLS are taken from the headers of a proxy in front."""


class TopicTable(msgspec.Struct, forbid_unknown_fields=True):
    """[topic.NAME]: how a topic is made."""

    partitions: Annotated[int, msgspec.Meta(ge=1, le=MAX_PARTITIONS)] = 4
    """How many partitions the topic gets when it is made; fixed from then on."""
    retention_days: Annotated[float, msgspec.Meta(ge=0, le=36_500)] = 7.0
    """How long the topic keeps its records when it is made; 0 is for ever. 14 for `events`, `failed`, `decisions`."""


class SinkTable(msgspec.Struct, forbid_unknown_fields=True):
    """[sink]: how topics move into tables."""

    flush_seconds: Annotated[float, msgspec.Meta(ge=0.05, le=3600)] = 5.0
    """How long a record may wait before it is committed to its table."""


class WatchTable(msgspec.Struct, forbid_unknown_fields=True):
    """[watch]: whom the watcher tells, and what it wants."""

    webhook: str = ""
    """Where each alert is posted to as JSON: an http(s) URL, or env:NAME if it is a secret; nothing for nowhere."""
    free_gb: Annotated[float, msgspec.Meta(ge=0)] = 1.0
    """How many gigabytes should be free on the project's disk; with less there is an alert."""


class LakeTable(msgspec.Struct, forbid_unknown_fields=True):
    """[table.NAME]: how a table is kept."""

    retention_days: Annotated[float, msgspec.Meta(ge=0, le=36_500)] = 0.0
    """How long the table keeps its rows, by the day of their arrival; 0 keeps them for ever."""


class Settings(msgspec.Struct, forbid_unknown_fields=True):
    """All of headrace.toml."""

    profile: dict[str, ProfileTable] = {}
    collect: CollectTable = msgspec.field(default_factory=CollectTable)
    endpoint: EndpointTable = msgspec.field(default_factory=EndpointTable)
    console: ConsoleTable = msgspec.field(default_factory=ConsoleTable)
    topic: dict[str, TopicTable] = {}
    sink: SinkTable = msgspec.field(default_factory=SinkTable)
    watch: WatchTable = msgspec.field(default_factory=WatchTable)
    table: dict[str, LakeTable] = {}
    keys: dict[str, str] = {}


@dataclass(frozen=True)
class Profile:
    """One profile of a project's headrace.toml, with the settings that all profiles share."""

    folder: Path
    name: str
    urls: ProfileTable
    settings: Settings

    def url(self, noun: str) -> Url:
        """Returns the URL of a noun: topics, tables, engine, online, registry, runner, clock."""
        return Url.parse(getattr(self.urls, noun), root=self.folder)

    def topic(self, name: str) -> TopicTable:
        """Returns how a topic is to be made."""
        return self.settings.topic.get(name) or TopicTable(retention_days=_RETENTION_DAYS.get(name, 7.0))

    def table(self, name: str) -> LakeTable:
        """Returns how a table is to be kept."""
        return self.settings.table.get(name, LakeTable())

    @property
    def state(self) -> Path:
        """The folder for what a running project leaves: locks, metrics, the clock."""
        return state_of(self.folder)


def state_of(folder: Path) -> Path:
    """Returns the folder for what a running project leaves, whatever its profile."""
    return folder / ".headrace"


def find_folder(start: Path) -> Path:
    """Returns the project's folder: the nearest one upwards that holds a headrace.toml."""
    for folder in (start.absolute(), *start.absolute().parents):
        if (folder / FILE).is_file():
            return folder
    raise ProjectError(f"no {FILE} in {str(start.absolute())!r} or above it. Make a project with: headrace init DIR")


def read_profile(folder: Path, name: str | None = None) -> Profile:
    """Returns a profile by name, by HEADRACE_PROFILE, or the laptop's."""
    settings = _read(folder / FILE)
    chosen = name or os.environ.get(VARIABLE) or DEFAULT_PROFILE
    if chosen not in settings.profile:
        raise unknown_name("profile", chosen, settings.profile)
    return Profile(folder, chosen, settings.profile[chosen], settings)


def _read(path: Path) -> Settings:
    try:
        with path.open("rb") as file:
            table = tomllib.load(file)
    except OSError as error:
        raise ProjectError(f"{path}: {error.strerror}") from error
    except ValueError as error:  # no TOML, or no UTF-8
        raise ProjectError(f"{path}: {error}") from error
    _refuse_unknown(path, table)
    try:
        return msgspec.convert(table, Settings)
    except msgspec.ValidationError as error:
        raise ProjectError(f"{path}: {error}") from error


def list_keys() -> dict[str, type[msgspec.Struct]]:
    """Returns every table of headrace.toml with the keys that it may have.

    >>> sorted(list_keys())
    ['collect', 'console', 'endpoint', 'profile.NAME', 'sink', 'table.NAME', 'topic.NAME', 'watch']
    """
    return {
        "profile.NAME": ProfileTable,
        "collect": CollectTable,
        "endpoint": EndpointTable,
        "console": ConsoleTable,
        "topic.NAME": TopicTable,
        "sink": SinkTable,
        "watch": WatchTable,
        "table.NAME": LakeTable,
    }


def _refuse_unknown(path: Path, table: dict[str, Any]) -> None:
    _refuse_keys(path, "", table, Settings.__struct_fields__)
    for name, kind in list_keys().items():
        section, named, _ = name.partition(".NAME")
        found = table.get(section, {})
        if not isinstance(found, dict):
            continue
        parts = {f"{section}.{part}": value for part, value in found.items()} if named else {section: found}
        for place, keys in parts.items():
            if isinstance(keys, dict):
                _refuse_keys(path, place, keys, kind.__struct_fields__)
                _refuse_values(path, place, keys, kind)


def _refuse_values(path: Path, place: str, table: dict[str, Any], kind: type[msgspec.Struct]) -> None:
    try:
        msgspec.convert(table, kind)
    except msgspec.ValidationError as error:
        # msgspec calls every key of a dict [...]; this names the table.
        raise ProjectError(f"{path}: {str(error).replace('`$.', f'`$.{place}.', 1)}") from error


def _refuse_keys(path: Path, place: str, table: dict[str, Any], known: tuple[str, ...]) -> None:
    for key in table:
        if key not in known:
            where = f"[{place}] " if place else ""
            raise ProjectError(
                f"{path}: {where}no key {key!r}.{did_you_mean(key, known)}  known: {', '.join(sorted(known))}"
            )
