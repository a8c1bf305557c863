"""headrace.toml: profiles, and errors that name file, place and the nearest key."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest

from headrace.base.errors import ProjectError, UnknownNameError
from headrace.profile import find_folder, read_profile
from running import project_toml

TWO = '[profile.laptop]\n[profile.cluster]\ntopics = "kafka://broker:9092"\nclock = "world://?rate=60"\n'


def write(folder, text):
    (folder / "headrace.toml").write_text(text)
    return folder


def test_the_laptop_is_the_default_and_the_variable_and_the_argument_choose(tmp_path, monkeypatch):
    write(tmp_path, TWO)
    monkeypatch.delenv("HEADRACE_PROFILE", raising=False)
    assert read_profile(tmp_path).name == "laptop"
    monkeypatch.setenv("HEADRACE_PROFILE", "cluster")
    assert str(read_profile(tmp_path).url("topics")) == "kafka://broker:9092"
    assert read_profile(tmp_path, "laptop").name == "laptop"


def test_what_is_not_said_has_a_default(tmp_path):
    profile = read_profile(write(tmp_path, "[profile.laptop]\n"), "laptop")
    assert profile.url("topics").local_path() == tmp_path / ".headrace" / "topics"
    assert str(profile.url("clock")) == "real://"
    collect = profile.settings.collect
    assert (collect.host, collect.port, collect.workers, collect.trust_proxy) == ("127.0.0.1", 7070, 1, False)
    assert str(profile.url("registry")) == "sqlite:///.headrace/registry.db"
    assert (profile.settings.endpoint.port, profile.settings.console.port) == (7071, 7072)
    assert {name: profile.topic(name).retention_days for name in ("events", "failed", "decisions")} == {
        "events": 14.0, "failed": 14.0, "decisions": 14.0,
    }  # fmt: skip
    assert (profile.topic("clicks").partitions, profile.topic("clicks").retention_days) == (4, 7.0)


def test_an_unknown_profile_names_the_nearest(tmp_path):
    write(tmp_path, TWO)
    with pytest.raises(UnknownNameError) as caught:
        read_profile(tmp_path, "claster")
    assert str(caught.value) == "no profile 'claster'. Did you mean cluster?  known: cluster, laptop"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "[profile.laptop]\ntopic = 'x'\n",
            "[profile.laptop] no key 'topic'. Did you mean topics?  known: clock, engine, online, registry, runner",
        ),
        (
            "[colect]\nport = 1\n",
            "no key 'colect'. Did you mean collect?  known: collect, console, endpoint, keys, profile",
        ),
        ("port = 1\n", "no key 'port'.  known: collect, console, endpoint, keys, profile, sink, table, topic"),
        (
            "[topic.clicks]\npartition = 1\n",
            "[topic.clicks] no key 'partition'. Did you mean partitions?  known: partitions, retention_days",
        ),
        ("[collect]\nworker = 1\n", "[collect] no key 'worker'. Did you mean workers?  known: "),
        ("[endpoint]\nworkers = 2\n", "[endpoint] no key 'workers'.  known: host, port"),
        (
            "[console]\nprot = 1\n",
            "[console] no key 'prot'. Did you mean port?  known: host, hosts, port, session_hours",
        ),
        ("[endpoint]\nport = 70000\n", "Expected `int` <= 65535 - at `$.endpoint.port`"),
        ("[collect]\nport = 'x'\n", "Expected `int`, got `str` - at `$.collect.port`"),
        ("[collect]\nport = 70000\n", "Expected `int` <= 65535 - at `$.collect.port`"),
        ("[collect]\nport = -1\n", "Expected `int` >= 0 - at `$.collect.port`"),
        ("[collect]\ntrust_proxy = 1\n", "Expected `bool`, got `int` - at `$.collect.trust_proxy`"),
        ("[collect]\ncookie_same_site = 'Loose'\n", "Invalid enum value 'Loose' - at `$.collect.cookie_same_site`"),
        ("[collect]\ncookie_domain = 'a; Secure'\n", "- at `$.collect.cookie_domain`"),
        ("[topic.clicks]\nretention_days = -1\n", "Expected `float` >= 0.0 - at `$.topic.clicks.retention_days`"),
        ("[topic.clicks]\nretention_days = inf\n", "Expected `float` <= 36500.0 - at `$.topic.clicks.retention_days`"),
        ("[topic.clicks]\nretention_days = nan\n", "Expected `float` >= 0.0 - at `$.topic.clicks.retention_days`"),
        ("[topic.clicks]\npartitions = 0\n", "Expected `int` >= 1 - at `$.topic.clicks.partitions`"),
        ("[topic.clicks]\npartitions = 1025\n", "Expected `int` <= 1024 - at `$.topic.clicks.partitions`"),
        ("[profile]\nlaptop = 'x'\n", "Expected `object`, got `str` - at `$.profile[...]`"),
        ("profile = 1\n", "Expected `object`, got `int` - at `$.profile`"),
        ("topic = 'x'\n", "Expected `object`, got `str` - at `$.topic`"),
        ("collect = 'x'\n", "Expected `object`, got `str` - at `$.collect`"),
        ("[keys]\ndev = 1\n", "Expected `str`, got `int` - at `$.keys[...]`"),
        ("[collect\n", "(at line 1, column 9)"),
        ("[collect]\nport = 1\nport = 2\n", "Cannot overwrite a value (at line 3, column 9)"),
    ],
)
def test_an_error_names_the_file_and_the_place(tmp_path, text, message):
    write(tmp_path, text)
    with pytest.raises(ProjectError) as caught:
        read_profile(tmp_path, "laptop")
    assert str(caught.value).startswith(f"{tmp_path / 'headrace.toml'}: ")
    assert message in str(caught.value)


def test_a_file_that_is_not_utf_8_is_said(tmp_path):
    (tmp_path / "headrace.toml").write_bytes(b"[profile.laptop]\n# \xff\n")
    with pytest.raises(ProjectError, match=r"headrace\.toml: .*utf-8"):
        read_profile(tmp_path, "laptop")


def test_the_folder_is_the_nearest_one_upwards(tmp_path):
    outer = write(tmp_path, TWO)
    inner = tmp_path / "a" / "b"
    inner.mkdir(parents=True)
    assert find_folder(inner) == outer
    write(inner, TWO)
    assert find_folder(inner) == inner


def test_no_project_anywhere_says_how_to_make_one(tmp_path):
    with pytest.raises(ProjectError) as caught:
        find_folder(tmp_path)
    assert str(caught.value) == (
        f"no headrace.toml in {str(tmp_path)!r} or above it. Make a project with: headrace init DIR"
    )


def run(folder, *words):
    command = [sys.executable, "-m", "headrace", *words]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False, timeout=20)
    return done.returncode, done.stdout, done.stderr


def test_the_console_shows_each_of_these_without_a_trace(tmp_path):
    code, out, error = run(tmp_path, "status")
    assert (code, out) == (2, "")
    assert re.match(r"ProjectError: no headrace\.toml in ", error)
    write(tmp_path, project_toml())
    code, out, error = run(tmp_path, "status", "--profile", "lapto")
    assert (code, out, error) == (2, "", "UnknownNameError: no profile 'lapto'. Did you mean laptop?  known: laptop\n")
    write(tmp_path, project_toml(topics="sqlit:///.headrace/topics"))
    code, _, error = run(tmp_path, "status")
    assert code == 2
    assert error.startswith(
        "UnknownSchemeError: no topic backend for 'sqlit:///.headrace/topics'. Did you mean sqlite://?"
    )
    write(tmp_path, project_toml(topics="kafka://ann:hunter2@broker:9092"))
    code, _, error = run(tmp_path, "status")
    assert (code, "hunter2" in error, error.partition(":")[0]) == (2, False, "SecretError")
