"""Writes docs/reference/cli.md, config.md and names.md from the code: `python scripts/reference.py`. A test compares them."""

from __future__ import annotations

import ast
import inspect
import sys
import textwrap
from collections.abc import Callable, Iterator
from importlib import import_module
from pathlib import Path

import msgspec

import headrace
from headrace.base import fault
from headrace.console.cli import COMMANDS, COMMON, Argument, Command
from headrace.profile import (
    CollectTable,
    ConsoleTable,
    EndpointTable,
    LakeTable,
    ProfileTable,
    SinkTable,
    TopicTable,
    WatchTable,
)

FOLDER = Path(__file__).parents[1] / "docs" / "reference"

_CLI_HEAD = """# Command line

`headrace <noun> <verb>`. Written by `python scripts/reference.py` from the commands themselves.

Every command takes these two:

| option | meaning |
|---|---|
{common}

`--help` after any of them prints the same sentences, `headrace --version` the version.

## Exit codes

| code | meaning | for example |
|---|---|---|
| 0 | done | |
| 1 | the answer is no | a position that does not fit the topic, a verdict of `experiment stop` that is early or unhealthy, a check of `demo` that fails |
| 2 | the call is wrong | no such topic, an option that does not exist, a mistake in `headrace.toml` or `project.py` |
| 3 | something outside is unavailable; the same call may work later | the broker does not answer, the disk is full |
| 130 | ended by Ctrl-C | |

An error is one line on stderr, `NameOfError: what was asked, what was found, what to do next`; with `--json` it is
`{{"error": ..., "message": ...}}`. Nothing but results goes to stdout.
"""

_CONFIG_HEAD = """# headrace.toml

Written by `python scripts/reference.py` from `headrace.profile`. Every key may be left out; one that is not listed here
is an error that names the nearest. [Configure](../how-to/configure.md) shows a whole file.
"""

_NAMES_HEAD = """# Public names

What may be imported, and stays: written by `python scripts/reference.py` from the package itself. All else is
Headrace's own and may change with any version.
"""

_MODULES = (
    ("headrace", "What a project file and a notebook need.", tuple(headrace.__all__)),
    ("headrace.features", "What is known of people and items.", ("count", "item", "last", "person", "total")),
    ("headrace.models", "What is fitted.", ("click_model", "popularity", "taste")),
    ("headrace.testing", "What a backend of yours must pass.", ("check_online", "check_topics")),
)

_TABLES = (
    (
        "[profile.NAME]",
        ProfileTable,
        "One table per profile; `--profile NAME` or `HEADRACE_PROFILE` chooses, else `laptop`.",
    ),
    ("[collect]", CollectTable, "The collector's door, the same in all profiles."),
    ("[endpoint]", EndpointTable, "The door that answers requests for pages."),
    ("[console]", ConsoleTable, "The door of the web pages."),
    (
        "[topic.NAME]",
        TopicTable,
        "How a topic is made when `headrace up` first needs it. One that stands is not changed.",
    ),
    ("[sink]", SinkTable, "How topics move into tables."),
    ("[watch]", WatchTable, "Whom the watcher tells, and what it wants."),
    ("[table.NAME]", LakeTable, "How a table is kept."),
)

_CONFIG_TAIL = """## [keys]

| key | meaning |
|---|---|
| `NAME` | A write key under a name of your choice: `sha256:` and the hash of the key in 64 hexadecimal digits. |

## Variables

| variable | meaning |
|---|---|
| `HEADRACE_PROFILE` | The profile, where `--profile` is not given. |
| `HEADRACE_FAULT` | Plants a fault at a named point, for tests: see [Break it](../how-to/break-it.md). |

A URL may name further variables, as in `kafka://ann:env:KAFKA_PASSWORD@broker:9092`; passwords stand nowhere else.

## URLs

Local paths are resolved against the project's folder: three slashes are relative to it, four are absolute.

| URL | options | meaning |
|---|---|---|
| `memory://` | none | Topics in this process's memory, for tests. |
| `sqlite:///FOLDER` | none | Topics in one file of that folder, see [the embedded log](../contracts/embedded-log.md). |
| `kafka://BROKER:PORT,...` | `linger_ms`, `replication` | Topics on a Kafka cluster, see [Topic](../concepts/topic.md). |
| `file:///FOLDER` | `deadline_seconds` | Tables in a folder of this machine. |
| `hdfs://NAMENODE:PORT/FOLDER` | `deadline_seconds`, `cache`, `cache_bytes` | Tables on HDFS, with copies for SQL in the folder `cache`. |
| `sqlite:///FILE.db` | none | Bundles and trials in that file, as `registry`. |
| `duckdb://` | `memory`, `threads`, `spill`, `spill_limit`, `deadline_seconds` | SQL by DuckDB in the process that asks. |
| `real://` | none | The machine's time. |
| `world://` | `rate`: how many times faster than the machine, 1 if not given | A simulated world's time, see [Clock](../concepts/clock.md). |
| `stepped://` | none | Time that stands until it is stepped. |
"""


def write_cli() -> str:
    """Returns the page of all commands."""
    parts = [_CLI_HEAD.format(common="\n".join(_row(argument) for argument in COMMON))]
    parts += [_command(command) for command in COMMANDS]
    return "\n".join(parts)


def write_config() -> str:
    """Returns the page of all keys of headrace.toml."""
    parts = [_CONFIG_HEAD]
    for title, kind, text in _TABLES:
        rows = [f"| `{key}` | {_default(kind, key)} | {sentence} |" for key, sentence in sentences(kind)]
        parts.append(
            "\n".join([f"## {title}\n", f"{text}\n", "| key | default | meaning |", "|---|---|---|", *rows, ""])
        )
    return "\n".join([*parts, _CONFIG_TAIL])


def write_names() -> str:
    """Returns the page of all public names, each with its signature and what it says of itself."""
    parts = [_NAMES_HEAD]
    for module, text, names in _MODULES:
        listed = textwrap.fill(f">>> from {module} import ({', '.join(names)})", 110, subsequent_indent="...     ")
        parts.append(f"## {module}\n\n{text}\n\n{textwrap.indent(listed, '    ')}\n")
        parts += [_describe(name, getattr(import_module(module), name)) for name in sorted(names, key=str.lower)]
    return "\n".join(parts)


def _describe(name: str, value: object) -> str:
    if not callable(value):
        return f"### {name}\n\nThe constant `{value!r}`: {inspect.cleandoc(type(value).__doc__ or '')}\n"
    text, _, example = inspect.cleandoc(value.__doc__ or "").partition("\n>>> ")
    told = [f"### {name}\n", f"    {_signature(name, value)}\n", text.strip() + "\n"]
    if example:
        told.append(textwrap.indent(f">>> {example.strip()}\n", "    "))
    return "\n".join(told)


def _signature(name: str, value: Callable[..., object]) -> str:
    if isinstance(value, type) and issubclass(value, Exception):
        return name
    found = inspect.signature(value)
    plain = [one.replace(annotation=inspect.Parameter.empty) for one in found.parameters.values() if one.name != "self"]
    return f"{name}{found.replace(parameters=plain, return_annotation=inspect.Signature.empty)}"


def write_points() -> str:
    """Returns the table of crash points, as docs/how-to/break-it.md shows it."""
    return "\n".join(
        ["| point | when it is passed |", "|---|---|", *(f"| `{n}` | {t} |" for n, t in fault.POINTS.items())]
    )


def sentences(kind: type) -> Iterator[tuple[str, str]]:
    """Yields the fields of a table with the sentence that stands under each."""
    found: dict[str, str] = {}
    # A field of a class above may have another default and sentence in the one below.
    for one in reversed(kind.__mro__[: kind.__mro__.index(msgspec.Struct)]):
        (definition,) = ast.parse(inspect.getsource(one)).body
        assert isinstance(definition, ast.ClassDef)
        for field, text in zip(definition.body, definition.body[1:], strict=False):
            if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name):
                assert isinstance(text, ast.Expr), f"{one.__name__}.{field.target.id} has no sentence under it"
                found[field.target.id] = ast.literal_eval(text.value)
    yield from found.items()


def _default(kind: type, key: str) -> str:
    value = getattr(kind(), key)
    shown = {True: "true", False: "false"}.get(value, value) if isinstance(value, bool) else value
    return f"`{shown}`" if shown != "" else "empty"


def _command(command: Command) -> str:
    usage = " ".join(["headrace", command.words, *(_usage(argument) for argument in command.arguments)])
    lines = [f"## {command.words}\n", f"{command.help[0].upper()}{command.help[1:]}.\n", f"    {usage}\n"]
    if command.arguments:
        lines += [
            "| argument or option | meaning |",
            "|---|---|",
            *(_row(argument) for argument in command.arguments),
            "",
        ]
    return "\n".join(lines)


def _name(argument: Argument) -> str:
    value = argument.options.get("metavar") or argument.names[-1].lstrip("-").upper()
    if not argument.names[0].startswith("-"):
        return str(value)
    return argument.names[0] if argument.options.get("action") else f"{argument.names[0]} {value}"


def _usage(argument: Argument) -> str:
    name = _name(argument)
    if argument.options.get("nargs") == "*":
        return f"[{name} ...]"
    if argument.options.get("nargs") == "?":
        return f"[{name}]"
    return name if argument.options.get("required") or not name.startswith("-") else f"[{name}]"


def _row(argument: Argument) -> str:
    return f"| `{_name(argument)}` | {argument.help} |"


def main() -> None:
    """Writes the pages."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    for name, text in (("cli.md", write_cli()), ("config.md", write_config()), ("names.md", write_names())):
        (FOLDER / name).write_text(text, encoding="utf-8")
        sys.stdout.write(f"{FOLDER / name}\n")


if __name__ == "__main__":
    main()
