"""project.py: what it may declare, and errors at the user's own line."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest

import headrace
from headrace import Event, Project
from headrace.base.errors import ProjectError, UnknownNameError
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


def test_loading_twice_reads_the_file_anew(tmp_path):
    path = write(tmp_path, "from headrace import Project\nproject = Project('a')\n")
    assert load_project(path).name == "a"
    path.write_text("from headrace import Project\nproject = Project('bc')\n")
    assert load_project(path).name == "bc"


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
