"""headrace init: writes a project's first two files."""

from __future__ import annotations

import argparse
import shlex
from pathlib import Path

from headrace.base.errors import CallError
from headrace.collect.keys import DEV_KEY, hash_key
from headrace.profile import FILE as PROFILE_FILE
from headrace.project import FILE as PROJECT_FILE

_PROJECT = '''"""The project {name}: what it shows, learns and tests. `headrace up` runs it."""

from headrace import Attribute, Carousel, Dimension, Event, Experiment, Metric, Page, Pipeline, Project, item, person
from headrace.features import count, last
from headrace.models import click_model, popularity

title, genre = Attribute("title"), Attribute("genre")
items = Dimension("items", key="product_id", attributes=(title, genre))
views = Event("Product List Viewed", item="products[].product_id", of=items)
clicks = Event("Product Clicked", item="product_id", of=items)
beats = Event("Video Content Playing", item="asset_id")  # a heartbeat every 10 s

taste = count("taste", clicks, by=(person, genre), windows=("1d", "28d"))
appeal = count("appeal", clicks, by=item, windows=("1d", "7d"))
latest = last("latest", clicks, genre, by=person, windows=("1h",))

ctr = Metric.ratio("ctr", clicks, views, within="30m")
minutes = Metric.mean("watch_minutes", beats, each=1 / 6, cap=0.99)
popular = popularity("popular", clicks, half_life="3d")
ranker = click_model("ranker", ctr, features=(taste, appeal, latest))

home = Page("home", per_row=10, explore=0.1, fallback=popular, carousels=(
    Carousel("For you", candidates=(popular,), rank=ranker),
    Carousel("Trending now", candidates=(popular,)),
))
trial = Experiment("ranked-home", on=home, goal=ctr, guardrails=(minutes,), mde=0.25, power=0.8)
nightly = Pipeline("nightly", every="1d", steps=(popular, ranker), then=trial)

project = Project("{name}", pages=(home,), experiments=(trial,), pipelines=(nightly,))
'''

_EMPTY = '''"""The project {name}. `headrace up` runs it; docs/tutorial.md goes on from here."""

from headrace import Project

project = Project("{name}")
'''

_TOML = """# Where everything lives. The project in Python stays the same in every profile.
[profile.laptop]
topics = "sqlite:///.headrace/topics"
tables = "file:///.headrace/lake"
clock = "{clock}"

[profile.cluster]
topics = "kafka://127.0.0.1:9092"
tables = "hdfs://127.0.0.1:8020/lake"
registry = "sqlite:///.headrace/registry-cluster.db"
online = "sqlite:///.headrace/online-cluster.db"
clock = "real://"

[collect]
host = "127.0.0.1"
port = {ports[0]}
workers = 1

[endpoint]
port = {ports[1]}

[console]
port = {ports[2]}

[sink]
flush_seconds = {flush_seconds}

# Write keys, hashed. `dev` is known to everybody: it works on this machine only.
[keys]
dev = "{dev}"
"""


def init(given: argparse.Namespace) -> None:
    """Writes the smallest useful project."""
    folder = Path(given.dir)
    write_project(folder, empty=given.empty)
    print(f"{folder / PROJECT_FILE}\n{folder / PROFILE_FILE}\n")
    print(f"next:\n  cd {shlex.quote(str(folder))}\n  headrace up")


def write_project(
    folder: Path,
    *,
    empty: bool = False,
    ports: tuple[int, int, int] = (7070, 7071, 7072),
    clock: str = "real://",
    flush_seconds: float = 5,
) -> None:
    """Writes project.py and headrace.toml; refuses to overwrite either."""
    for name in (PROJECT_FILE, PROFILE_FILE):
        if (folder / name).exists():
            raise CallError(f"{str(folder / name)!r} stands already; choose another folder")
    name = "".join(c if c.isalnum() or c in "-_" else "-" for c in folder.absolute().name).strip("-_") or "project"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / PROJECT_FILE).write_text((_EMPTY if empty else _PROJECT).format(name=name), encoding="utf-8")
        (folder / PROFILE_FILE).write_text(
            _TOML.format(ports=ports, clock=clock, dev=hash_key(DEV_KEY), flush_seconds=flush_seconds), encoding="utf-8"
        )
    except OSError as error:
        raise CallError(f"cannot write into {str(folder)!r}: {error.strerror}") from error
