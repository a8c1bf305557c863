"""The pages are true: their commands run, their examples give what they show, their links lead somewhere."""

import contextlib
import doctest
import importlib.util
import os
import re
import socket
import tomllib
from pathlib import Path

import msgspec
import pytest

import services
from docs.console import PAGE_PORTS, Terminal, matches, read_steps
from headrace.base import fault
from headrace.collect.app import METRICS as COLLECT_METRICS
from headrace.console.cli import COMMANDS, COMMON
from headrace.endpoints.app import METRICS as PAGE_METRICS
from headrace.events.decision import DEGRADED
from headrace.events.settled import FLAGS, REASONS
from headrace.experiments.verdict import OUTCOMES
from headrace.lookout import METRICS as WATCH_METRICS
from headrace.profile import Settings, list_keys
from headrace.project import ROLES, load_project
from headrace.stream import METRICS as STREAM_METRICS
from services.cluster import clear

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
TOP = [ROOT / name for name in ("README.md", "ARCHITECTURE.md", "CONTRIBUTING.md", "CHANGELOG.md")]
PAGES = sorted([*TOP, *DOCS.rglob("*.md")])
NOUNS = ("event", "topic", "table", "profile", "project", "collector", "clock", "role", "page", "model", "experiment")

_LINK = re.compile(r"(?<!!)\[[^\]]+\]\(([^)\s]+)\)")
_HEADING = re.compile(r"^#+ (.*)$", re.MULTILINE)
_REFUSED = re.compile(r"\b(?:simply|just|easy|easily|powerful|obviously|seamless\w*|blazing\w*)\b", re.IGNORECASE)


def _name(path):
    return str(path.relative_to(ROOT))


def _text(path):
    return path.read_text(encoding="utf-8")


def _blocks(page, language):
    return re.findall(rf"^```{language}\n(.*?)^```$", _text(page), re.DOTALL | re.MULTILINE)


def _reference():
    spec = importlib.util.spec_from_file_location("reference", ROOT / "scripts" / "reference.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def ports():
    """Ports of the loopback address at which nobody listens, one for each door."""
    with contextlib.ExitStack() as stack:
        found = [stack.enter_context(socket.socket()) for _ in PAGE_PORTS]
        for one in found:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in found]


def _walk(page, tmp_path, ports, *, kafka=False, broker=None):
    terminal = Terminal(tmp_path, ports=ports, broker=broker)
    try:
        for step in read_steps(_text(page), kafka=kafka):
            terminal.run(step)
    finally:
        terminal.close()


WALKED = [page for page in PAGES if any(True for _ in read_steps(_text(page), kafka=False))]
# Walked by hand before a release: faults that others provoke too, each for ten seconds.
_SOAKED = ("break-it", "metrics-and-logs", "move-on-after-a-topic-was-recreated")
ON_KAFKA = [page for page in PAGES if "```console kafka" in _text(page)]
# What the tutorial does on Kafka the other pages do too; it is walked without, and by hand with it.
_SOAKED_ON_KAFKA = ("tutorial",)
# With a broker all blocks of a page are run, so where there must be one, its pages are not walked twice.
WITHOUT_KAFKA = [
    pytest.param(page, marks=[pytest.mark.soak] if page.stem in _SOAKED else [])
    for page in WALKED
    if page not in ON_KAFKA or page.stem in _SOAKED_ON_KAFKA or os.environ.get(services.REQUIRED) != "required"
]


@pytest.mark.slow
@pytest.mark.parametrize("page", WITHOUT_KAFKA, ids=_name)
def test_commands_of_a_page_run_and_print_what_it_shows(page, tmp_path, ports):
    _walk(page, tmp_path, ports)


@pytest.mark.service("kafka")
@pytest.mark.parametrize(
    "page",
    [pytest.param(one, marks=[pytest.mark.soak] if one.stem in _SOAKED_ON_KAFKA else []) for one in ON_KAFKA],
    ids=_name,
)
def test_commands_of_a_page_run_on_kafka(page, tmp_path, ports, kafka):
    try:
        _walk(page, tmp_path, ports, kafka=True, broker=kafka.address)
    finally:
        # The broker is everybody's; the next test finds it as this one did.
        clear(kafka)


def test_tutorial_is_walked_with_and_without_kafka():
    assert DOCS / "tutorial.md" in WALKED
    assert DOCS / "tutorial.md" in ON_KAFKA
    assert ROOT / "README.md" in WALKED


@pytest.mark.parametrize("page", [page for page in PAGES if ">>> " in _text(page)], ids=_name)
def test_examples_of_a_page_give_what_it_shows(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    found = doctest.testfile(str(page), module_relative=False, optionflags=doctest.ELLIPSIS)
    assert (found.failed, found.attempted > 0) == (0, True)


def _shown(language, word):
    return [
        pytest.param(block, id=f"{_name(page)}-{number}")
        for page in PAGES
        for number, block in enumerate(_blocks(page, language), 1)
        if word in block and ">>>" not in block
    ]


@pytest.mark.parametrize("block", _shown("toml", ""))
def test_settings_that_a_page_shows_are_read(block):
    msgspec.convert(tomllib.loads(block), Settings)


@pytest.mark.parametrize("block", _shown("python", "Project("))
def test_project_file_that_a_page_shows_is_read(block, tmp_path):
    (tmp_path / "project.py").write_text(block)
    assert load_project(tmp_path / "project.py").events


@pytest.mark.parametrize("page", PAGES, ids=_name)
def test_links_of_a_page_lead_somewhere(page):
    targets = [target.partition("#")[0] for target in _LINK.findall(_text(page)) if "://" not in target]
    assert [target for target in targets if target and not (page.parent / target).exists()] == []


@pytest.mark.parametrize("page", PAGES, ids=_name)
def test_links_to_a_section_find_its_heading(page):
    targets = [target.partition("#") for target in _LINK.findall(_text(page)) if "#" in target and "://" not in target]
    found = [(page.parent / name if name else page, section) for name, _, section in targets]
    assert [(to.name, section) for to, section in found if section not in _sections(to)] == []


def _sections(page):
    """Returns the headings of a page as links name them."""
    return {re.sub(r"[^\w\- ]", "", line.lower()).strip().replace(" ", "-") for line in _HEADING.findall(_text(page))}


@pytest.mark.parametrize("page", PAGES, ids=_name)
def test_page_speaks_plainly(page):
    assert _REFUSED.findall(_text(page)) == []


def test_every_page_can_be_reached_from_the_readme():
    reached, waiting = set(), [ROOT / "README.md"]
    while waiting:
        page = waiting.pop()
        if page in reached or page.suffix != ".md":
            continue
        reached.add(page)
        targets = [target.partition("#")[0] for target in _LINK.findall(_text(page)) if "://" not in target]
        for target in filter(None, targets):
            found = (page.parent / target).resolve()
            waiting += sorted(found.glob("*.md")) if found.is_dir() else [found]
    assert [_name(page) for page in PAGES if page not in reached] == []


def test_reference_pages_are_what_the_code_says():
    reference = _reference()
    assert _text(DOCS / "reference" / "cli.md") == reference.write_cli()
    assert _text(DOCS / "reference" / "config.md") == reference.write_config()
    assert _text(DOCS / "reference" / "names.md") == reference.write_names()


def test_every_command_and_option_has_its_sentence():
    page = _text(DOCS / "reference" / "cli.md")
    assert [command.words for command in COMMANDS if f"## {command.words}\n" not in page] == []
    for argument in (*COMMON, *(argument for command in COMMANDS for argument in command.arguments)):
        assert len(argument.help.split()) >= 2, argument.names
        assert argument.help in page


def test_every_key_has_its_sentence():
    page = _text(DOCS / "reference" / "config.md")
    for table, kind in list_keys().items():
        section = page.partition(f"## [{table}]\n")[2].partition("\n## ")[0]
        assert [key for key in kind.__struct_fields__ if f"| `{key}` |" not in section] == []


def test_every_metric_has_its_sentence():
    page = _text(DOCS / "how-to" / "metrics-and-logs.md")
    for metric in (*COLLECT_METRICS, *PAGE_METRICS, *STREAM_METRICS, *WATCH_METRICS):
        labels = f"{{{','.join(metric.labels)}}}" if metric.labels else ""
        assert f"| `{metric.name}{labels}` | {metric.kind} | {metric.help}" in page


def test_every_reason_of_a_failure_has_its_sentence():
    page = _text(DOCS / "how-to" / "mend-and-replay-failed-events.md")
    assert [reason for reason, text in REASONS.items() if f"| `{reason}` | {text} |" not in page] == []


def test_every_flag_of_an_event_has_its_sentence():
    page = _text(DOCS / "concepts" / "event.md")
    assert [flag for flag, text in FLAGS.items() if f"| `{flag}` | {text} |" not in page] == []


def test_everything_that_degrades_a_page_has_its_sentence():
    page = _text(DOCS / "concepts" / "page.md")
    assert [name for name, text in DEGRADED.items() if f"| `{name}` | {text}" not in page] == []


def test_every_outcome_of_a_verdict_has_its_sentence():
    page = _text(DOCS / "concepts" / "experiment.md")
    assert [name for name, text in OUTCOMES.items() if f"| `{name}` | {text} |" not in page] == []


def test_every_role_has_its_sentence():
    page = _text(DOCS / "concepts" / "role.md")
    assert [role for role in ROLES if f"| `{role}` | " not in page] == []


def test_every_crash_point_has_its_sentence():
    page = _text(DOCS / "how-to" / "break-it.md")
    assert _reference().write_points() in page
    assert [action for action in fault.ACTIONS if f"| `{action}` |" not in page] == []


def test_every_noun_has_its_page():
    assert [noun for noun in NOUNS if not (DOCS / "concepts" / f"{noun}.md").is_file()] == []


def test_top_pages_keep_their_length():
    assert len(_text(ROOT / "ARCHITECTURE.md").splitlines()) <= 120
    assert len(_text(ROOT / "CONTRIBUTING.md").splitlines()) <= 80


def test_readme_says_little_before_it_shows_something():
    before = _text(ROOT / "README.md").partition("```")[0]
    assert len(before.split()) <= 90


@pytest.mark.parametrize(
    ("shown", "printed", "agree"),
    [
        (["a"], "a\n", True),
        (["a"], "b\n", False),
        (["at ... s"], "at 0.3 s\n", True),
        (["a", "...", "b"], "a\n1\n2\nb\n", True),
        (["a", "..."], "a\n", True),
        (["a"], "a\nb\n", False),
        (["topic   records"], "topic        records  \n", True),
    ],
)
def test_dots_stand_for_anything(shown, printed, agree):
    assert matches(shown, printed) is agree


@pytest.mark.parametrize(
    "page",
    [
        "```console\n$ echo one\ntwo\n```",
        "```console\n$ false\n```",
        "```console\n$ headrace topic list\n```",
        "```console\n$ cd nowhere\n$ true\n```",
    ],
)
def test_page_that_lies_is_found_out(page, tmp_path, ports):
    (tmp_path / "page.md").write_text(f"{page}\n")
    with pytest.raises(AssertionError):
        _walk(tmp_path / "page.md", tmp_path, ports)
