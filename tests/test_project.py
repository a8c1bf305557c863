"""project.py: what it may declare, and errors at the user's own line."""

from __future__ import annotations

import contextlib
import re
import socket
import sqlite3
import subprocess
import sys
import threading

import pytest

import headrace
from headrace import Event, Project
from headrace.base.errors import CallError, ProjectError, UnknownNameError
from headrace.models import registry_sqlite
from headrace.models.registry import open_registry
from headrace.project import load_project
from running import project_toml


def write(folder, text):
    (folder / "headrace.toml").write_text(project_toml())
    path = folder / "project.py"
    path.write_text(text)
    return path


def error_of(folder, text):
    path = write(folder, text)
    with pytest.raises(ProjectError) as caught:
        load_project(path)
    return str(caught.value).replace(str(path), "project.py")


def test_a_project_is_found_under_any_name(tmp_path):
    path = write(
        tmp_path,
        "from headrace import Event, Project\nclick = Event('Click')\nshop = Project('shop', events=(click,))\n",
    )
    assert load_project(path) == Project("shop", events=(Event("Click"),))


def test_loading_twice_reads_the_file_anew_and_leaves_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "dont_write_bytecode", False)
    path = write(tmp_path, "from headrace import Project\nproject = Project('a')\n")
    files = sorted(tmp_path.rglob("*"))
    assert load_project(path).name == "a"
    # Within the same second, and as long as before.
    path.write_text("from headrace import Project\nproject = Project('b')\n")
    assert load_project(path).name == "b"
    assert sorted(tmp_path.rglob("*")) == files


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("project = \n", r"project\.py:1: SyntaxError: invalid syntax"),
        ("a = 1\n\nb = (1,\n", r"project\.py:3: SyntaxError: '\(' was never closed"),
        (
            "a = 1\nproject = Projekt('a')\n",
            r"project\.py:2: NameError: name 'Projekt' is not defined\. Did you mean Project\?",
        ),
        (
            "from headrace import Project\n\nfrom headrace import Evnt\n",
            r"project\.py:3: ImportError: cannot import name 'Evnt' from 'headrace'.*\. Did you mean Event\?",
        ),
        (
            "from headrace import Zebra\n",
            r"project\.py:1: ImportError: cannot import name 'Zebra' from 'headrace'[^?]*$",
        ),
        ("import surely_missing\n", r"project\.py:1: ModuleNotFoundError: No module named 'surely_missing'"),
        (
            "from headrace import Event, Project\nproject = Project('a', evnts=())\n",
            r"project\.py:2: TypeError: .*unexpected keyword argument 'evnts'",
        ),
        (
            "from headrace import Project\ndef make():\n    return 1 / 0\nproject = make()\n",
            r"project\.py:3: ZeroDivisionError: division by zero",
        ),
        (
            "from headrace import Project\nproject = Project('a b')\n",
            r"project\.py:2: ProjectError: Project\('a b'\): a name has",
        ),
        ("raise SystemExit(1)\n", r"project\.py:1: SystemExit: 1"),
        ("a = 1\n", r"project\.py: found 0 projects, need one line like: project = Project\('shop'\)"),
        (
            "from headrace import Project\na = Project('a')\nb = Project('b')\n",
            r"project\.py: found 2 projects, need one line like: project = Project\('shop'\)",
        ),
        ("x = '\x00'\n", r"project\.py(:1)?: (Syntax|Value)Error: source code string cannot contain null bytes"),
    ],
)
def test_an_error_names_the_users_own_file_and_line(tmp_path, text, message):
    assert re.search("^" + message, error_of(tmp_path, text)), error_of(tmp_path, text)


def test_one_project_under_two_names_is_one_project(tmp_path):
    path = write(tmp_path, "from headrace import Project\na = Project('a')\nproject = a\n")
    assert load_project(path).name == "a"


def test_a_missing_file_says_how_to_make_one(tmp_path):
    with pytest.raises(ProjectError) as caught:
        load_project(tmp_path / "project.py")
    assert str(caught.value) == f"{tmp_path / 'project.py'}: no such file. Make a project with: headrace init DIR"


def test_the_console_shows_the_place_without_a_trace(tmp_path):
    write(tmp_path, "from headrace import Project\n\nproject = Projct('a')\n")
    done = subprocess.run(
        [sys.executable, "-m", "headrace", "up"], cwd=tmp_path, capture_output=True, text=True, check=False, timeout=20
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == (
        f"ProjectError: {tmp_path}/project.py:3: NameError: name 'Projct' is not defined. Did you mean Project?\n"
    )


@pytest.mark.parametrize("name", ["", "a b", "a/b", "ä!", "-", "_"])
def test_a_project_has_a_plain_name(name):
    with pytest.raises(ProjectError, match="a name has letters, digits, '-' and '_'"):
        Project(name)


def test_an_event_is_declared_once():
    with pytest.raises(ProjectError, match="event 'Click' is declared twice"):
        Project("shop", events=(Event("Click"), Event("Click")))


# The graph: pages, models, metrics, experiments.

GRAPH = """from headrace import Carousel, Event, Experiment, Metric, Page, Project
from headrace.models import popularity, taste

views = Event("Product List Viewed", item="products[].product_id")
clicks = Event("Product Clicked", item="product_id")
ctr = Metric.ratio("ctr", clicks, views, within="30m")
popular = popularity("popular", clicks, half_life="3d")
tastes = taste("tastes", clicks, base=popular)
home = Page("home", fallback=popular, carousels=(Carousel("For you", candidates=(popular,), rank=tastes),))
trial = Experiment("taste-home", on=home, goal=ctr)
project = Project("shop", pages=(home,), experiments=(trial,))
"""


def test_a_project_knows_the_events_and_models_of_its_graph(tmp_path):
    project = load_project(write(tmp_path, GRAPH))
    assert [event.name for event in project.events] == ["Product Clicked", "Product List Viewed"]
    assert [model.name for model in project.models] == ["popular", "tastes"]


def test_an_event_that_is_listed_and_used_is_one_event(tmp_path):
    text = GRAPH.replace('Project("shop",', 'Project("shop", events=(views, Event("Seat Chosen")),')
    names = [event.name for event in load_project(write(tmp_path, text)).events]
    assert names == ["Product List Viewed", "Seat Chosen", "Product Clicked"]


_IMPORTS = "from headrace import Carousel, Event, Experiment, Metric, Page, Project"
_TRIAL = 'trial = Experiment("taste-home", on=home, goal=ctr)'
_FALLBACK = 'half_life="3d")'


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (
            "experiments=(trial,))",
            'experiments=(trial, Experiment("other", on=home, goal=ctr)))',
            "project.py:11: ProjectError: Project('shop'): the experiments 'taste-home' and 'other' are both on the ",
        ),
        (
            "experiments=(trial,))",
            "experiments=(trial, trial))",
            "project.py:11: ProjectError: Project('shop'): experiment 'taste-home' is declared twice",
        ),
        (
            "pages=(home,), ",
            "",
            "project.py:11: ProjectError: Experiment('taste-home'): it is on the page 'home', which Project('shop') ",
        ),
        (
            "pages=(home,)",
            "pages=(home, home)",
            "project.py:11: ProjectError: Project('shop'): page 'home' is declared twice",
        ),
        (
            "pages=(home,)",
            "pages=home",
            "project.py:11: ProjectError: Project('shop'): pages=Page(",
        ),
        (
            "fallback=popular",
            'fallback=popularity("popular", clicks, half_life="1d")',
            "project.py:11: ProjectError: Project('shop'): two models are called 'popular' and differ; use one, or ",
        ),
        (
            'tastes = taste("tastes", clicks, base=popular)',
            'tastes = taste("tastes", Event("Product Clicked", item="sku"), base=popular)',
            "project.py:11: ProjectError: Project('shop'): two events are called 'Product Clicked' and differ; use ",
        ),
        (
            "fallback=popular",
            "fallback=populr",
            "project.py:9: NameError: name 'populr' is not defined. Did you mean popular?",
        ),
        (
            _IMPORTS,
            _IMPORTS.replace("Metric", "Metrik"),
            "project.py:1: ImportError: cannot import name 'Metrik' from 'headrace'",
        ),
        (
            "import popularity, taste",
            "import populrity, taste",
            "project.py:2: ImportError: cannot import name 'populrity' from 'headrace.models' (",
        ),
        (
            _FALLBACK,
            'half_life="3 days")',
            "project.py:7: ProjectError: popularity('popular'): half_life is '3 days'; write a number and s, m, h or d",
        ),
        (
            'within="30m"',
            "within=30",
            "project.py:6: ProjectError: Metric('ctr'): within is 30; write a number and s, m, h or d",
        ),
        (
            'Metric.ratio("ctr", clicks, views',
            'Metric.ratio("ctr", clicks, Event("page")',
            "project.py:6: ProjectError: Metric('ctr'): Event(name='page'",
        ),
        (
            _TRIAL,
            'trial = Experiment("taste home", on=home, goal=ctr)',
            "project.py:10: ProjectError: Experiment('taste home'): a name has letters, digits, '-' and '_'",
        ),
        (
            _TRIAL,
            'trial = Experiment("taste-home", on=home, goal=ctr, mde=0)',
            "project.py:10: ProjectError: Experiment('taste-home'): mde=0 must be between 0 and 10",
        ),
        (
            _TRIAL,
            'trial = Experiment("taste-home", on=home, goal="ctr")',
            "project.py:10: ProjectError: Experiment('taste-home'): goal='ctr' is no Metric",
        ),
        (
            _TRIAL,
            'trial = Experiment("taste-home", on=home, goal=Metric.mean("orders", Event("Order Completed")))',
            "project.py:10: ProjectError: Experiment('taste-home'): the goal 'orders' is a mean, and a trial is ",
        ),
        (
            _TRIAL,
            'trial = Experiment("taste-home", on=home, goal=ctr, guardrails=ctr)',
            "project.py:10: ProjectError: Experiment('taste-home'): guardrails=RatioMetric(name='ctr'",
        ),
        (
            _TRIAL,
            'trial = Experiment("taste-home", on=home, goal=ctr, guardrails=(Metric.mean("one", clicks, cap=2),))',
            "project.py:10: ProjectError: Metric('one'): cap=2 must be above 0 and up to 1",
        ),
        (
            'Page("home",',
            'Page("home", per_row=0,',
            "project.py:9: ProjectError: Page('home'): per_row=0 must be 1 to 200",
        ),
        (
            'Page("home",',
            'Page("home", explore=2,',
            "project.py:9: ProjectError: Page('home'): explore=2 must be 0 to 1",
        ),
        (
            _TRIAL,
            'trial = Experiment("taste-home", on="home", goal=ctr)',
            "project.py:10: ProjectError: Experiment('taste-home'): on='home' is no Page; write on=home for home = ",
        ),
        (
            _TRIAL,
            'trial = Experiment("taste-home", on=home, goal=ctr, alpha="0.05")',
            "project.py:10: ProjectError: Experiment('taste-home'): alpha='0.05' must be between 0 and 0.5; write a ",
        ),
        (
            ", rank=tastes",
            "",
            "project.py:11: ProjectError: Experiment('taste-home'): nothing to test: the page 'home' ranks by its own ",
        ),
        (
            "fallback=popular",
            "fallback=tastes",
            "project.py:11: ProjectError: Experiment('taste-home'): nothing to test: the page 'home' ranks by its own ",
        ),
        (
            "rank=tastes),)",
            "rank=tastes))",
            "project.py:9: ProjectError: Page('home'): give it Carousels, in a tuple: carousels=(Carousel(...),)",
        ),
        ('Page("home"', 'Page(""', "project.py:9: ProjectError: Page(''): give it the name that is asked for"),
        ('Page("home"', "Page(7", "project.py:9: ProjectError: Page(7): give it the name that is asked for"),
        ('"For you"', "None", "project.py:9: ProjectError: Carousel(None): give it the title that people read"),
        ('y("popular"', "y(None", "project.py:7: ProjectError: popularity(None): give it a name, such as 'popular'"),
        ('e("tastes"', "e(7", "project.py:8: ProjectError: taste(7): give it a name, such as 'tastes'"),
        (
            "base=popular",
            'base=popular, prior="2"',
            "project.py:8: ProjectError: taste('tastes'): prior='2' must be a number above 0",
        ),
        ('"ctr"', "None", "project.py:6: ProjectError: Metric(None): give it a name, such as 'ctr'"),
        ('t("taste-home"', "t(7", "project.py:10: ProjectError: Experiment(7): a name has letters, digits"),
        ('"shop"', "7", "project.py:11: ProjectError: Project(7): a name has letters, digits"),
        (
            "candidates=(popular,)",
            "candidates=(popular)",
            "project.py:9: ProjectError: Carousel('For you'): candidates=Popularity(",
        ),
        (
            "candidates=(popular,)",
            "candidates=[popular]",
            "project.py:9: ProjectError: Carousel('For you'): candidates=[Popularity(",
        ),
        (
            "candidates=(popular,)",
            "candidates=()",
            "project.py:9: ProjectError: Carousel('For you'): candidates=(); give it models, as a tuple",
        ),
        (
            "fallback=popular",
            "fallbak=popular",
            "project.py:9: TypeError: Page.__init__() got an unexpected keyword argument 'fallbak'",
        ),
    ],
)
def test_an_error_in_the_graph_names_the_users_own_line(tmp_path, old, new, message):
    assert GRAPH.count(old) == 1
    found = error_of(tmp_path, GRAPH.replace(old, new))
    assert found.startswith(message), found


@pytest.mark.parametrize(
    ("old", "new", "nearest"),
    [
        ("fallback=popular", "fallback=populr", "popular"),
        ("fallback=popular", "fallbak=popular", "fallback"),
        ("goal=ctr", "gaol=ctr", "goal"),
        ('within="30m"', 'withn="30m"', "within"),
        ("base=popular", "basis=popular", "base"),
        ("import popularity, taste", "import populrity, taste", "popularity"),
        (_IMPORTS, _IMPORTS.replace("Metric", "Metrik"), "Metric"),
    ],
)
def test_a_wrong_name_in_the_graph_gets_the_nearest_one(tmp_path, old, new, nearest):
    assert error_of(tmp_path, GRAPH.replace(old, new)).endswith(f". Did you mean {nearest}?")


WHOLE = """from headrace import Attribute, Carousel, Dimension, Event, Experiment, Metric, Page, Pipeline, Project
from headrace import item, person
from headrace.features import count, last
from headrace.models import click_model, popularity

title, genre, available = Attribute("title"), Attribute("genre"), Attribute("available")
items = Dimension("items", key="product_id", attributes=(title, genre, available))
views = Event("Product List Viewed", item="products[].product_id", of=items)
clicks = Event("Product Clicked", item="product_id", of=items)
beats = Event("Video Content Playing", item="asset_id", of=items)          # a heartbeat every 10 s

taste = count("taste", clicks, by=(person, genre), windows=("1d", "28d"))
appeal = count("appeal", clicks, by=item, windows=("1d", "7d"))
latest = last("latest", clicks, item, by=person, windows=("1h",))

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
project = Project("streamline", pages=(home,), experiments=(trial,), pipelines=(nightly,))
"""


def test_a_whole_project_is_read_with_all_that_hangs_on_it(tmp_path):
    path = tmp_path / "project.py"
    path.write_text(WHOLE)
    project = load_project(path)
    assert [event.name for event in project.events] == [
        "Product Clicked",
        "Product List Viewed",
        "Video Content Playing",
    ]
    assert [model.name for model in project.models] == ["popular", "ranker"]
    assert [dimension.names for dimension in project.dimensions] == [("title", "genre", "available")]
    assert [column.name for column in project.columns] == [
        "taste_1d",
        "taste_28d",
        "appeal_1d",
        "appeal_7d",
        "latest_1h",
    ]
    (page,) = project.pages
    assert [carousel.ranker.name for carousel in page.carousels] == ["ranker", "popular"]
    assert page.ranker.name == "ranker"


def test_open_gives_the_same_project_from_a_folder_below(tmp_path):
    write(tmp_path, "from headrace import Project\nproject = Project('shop')\n")
    below = tmp_path / "a" / "b"
    below.mkdir(parents=True)
    with headrace.open(below) as project:
        assert (project.folder, project.declared.name) == (tmp_path, "shop")
        with pytest.raises(UnknownNameError):
            project.topic("clicks")
        assert project.make_topic("clicks").describe().retention_seconds == 7 * 86400
        assert project.topic("clicks").describe().partitions == 4


def test_a_topic_is_made_as_headrace_toml_says(tmp_path):
    write(tmp_path, "")
    (tmp_path / "headrace.toml").write_text(project_toml(extra="[topic.clicks]\npartitions = 2\nretention_days = 0\n"))
    with headrace.open(tmp_path) as project:
        made = project.make_topic("clicks").describe()
        assert (made.partitions, made.retention_seconds) == (2, None)


# The registry: one project's alone.


def write_named(folder, name, registry):
    folder.mkdir()
    write(folder, f"from headrace import Project\nproject = Project({name!r})\n")
    toml = folder / "headrace.toml"
    toml.write_text(
        toml.read_text().replace("[profile.laptop]\n", f'[profile.laptop]\nregistry = "sqlite:///{registry}"\n')
    )
    return folder


def test_a_registry_is_one_projects_alone(tmp_path):
    shared = tmp_path / "registry.db"
    for folder in ("one", "again"):
        with headrace.open(write_named(tmp_path / folder, "shop", shared)) as project:
            (row,) = project.registry.entries("project", "")
            assert (row.value, row.by.startswith(socket.gethostname())) == (b'"shop"', True)
    other = write_named(tmp_path / "other", "films", shared)
    with headrace.open(other) as project, pytest.raises(CallError) as caught:
        _ = project.registry
    told = str(caught.value)
    assert "is that of project 'shop'" in told
    assert "this is project 'films'" in told
    assert told.endswith("Give this project a registry of its own under [profile.laptop] registry")
    # Without a project file there is no name to claim it with, and none to refuse it to.
    (other / "project.py").unlink()
    with headrace.open(other) as project:
        assert len(project.registry.entries("project", "")) == 1


def test_of_two_projects_that_open_a_registry_at_once_one_is_refused(tmp_path):
    folders = [write_named(tmp_path / name, name, tmp_path / "registry.db") for name in ("shop", "films")]
    barrier, found = threading.Barrier(2), []

    def claim(folder):
        with headrace.open(folder) as project:
            barrier.wait()
            try:
                _ = project.registry
                found.append("opened")
            except CallError:
                found.append("refused")

    threads = [threading.Thread(target=claim, args=(folder,)) for folder in folders]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(found) == ["opened", "refused"]


def test_a_registry_that_takes_no_rows_now_is_claimed_later(tmp_path, monkeypatch):
    monkeypatch.setattr(registry_sqlite, "_PATIENCE_SECONDS", 0.1)
    shared = tmp_path / "registry.db"
    folder = write_named(tmp_path / "one", "shop", shared)
    open_registry(f"sqlite:///{shared}").close()
    with contextlib.closing(sqlite3.connect(shared, isolation_level=None)) as locked:
        locked.execute("begin immediate")
        with headrace.open(folder) as project:
            assert project.registry.bundles() == []
        locked.execute("rollback")
    with headrace.open(folder) as project:
        assert len(project.registry.entries("project", "")) == 1
