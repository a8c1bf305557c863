"""The tree of commands, as data; each imports what it needs when it is called."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib import import_module
from typing import Any

from headrace.base.errors import HeadraceError

EXIT_CODES = "exit codes: 0 done, 1 the answer is no, 2 the call is wrong, 3 something outside is unavailable"


@dataclass(frozen=True)
class Argument:
    """One argument or option of a command."""

    names: tuple[str, ...]
    help: str
    options: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Command:
    """One command: its words, the function that does it, and what it takes."""

    words: str
    target: str
    help: str
    arguments: tuple[Argument, ...] = ()


def _option(*names: str, text: str, **options: Any) -> Argument:
    return Argument(names, text, options)


JSON = _option("--json", text="print JSON, one object per line", action="store_true")
TOPIC = _option("topic", text="the topic's name")
GROUP = _option("--group", text="the consumer group", required=True)

COMMON = (
    _option("--project", text="the project's folder (default: the one you are in)", metavar="DIR", default="."),
    _option("--profile", text="the profile in headrace.toml (default: laptop, or HEADRACE_PROFILE)", metavar="NAME"),
)

COMMANDS = (
    Command(
        "init",
        "headrace.console.roles:init",
        "write the smallest useful project into a folder",
        (
            _option("dir", text="the folder to make", metavar="DIR"),
            _option("--empty", text="declare no events", action="store_true"),
        ),
    ),
    Command(
        "demo",
        "headrace.console.demo:demo",
        "send a simulated product's clicks through real doors and show that none is lost",
        (
            _option("--seconds", text="how long to send (default 8)", type=float, default=8.0),
            _option("--seed", text="the world's seed (default 7)", type=int, default=7),
            _option("--dir", text="keep the demo's project in this folder", metavar="DIR"),
            JSON,
        ),
    ),
    Command(
        "up",
        "headrace.console.roles:up",
        "run the project's roles under one supervisor",
        (_option("roles", text="the roles to run (default: all)", nargs="*", metavar="ROLE"), JSON),
    ),
    Command(
        "status", "headrace.console.roles:status", "say what runs, how far readers lag, what the disk holds", (JSON,)
    ),
    Command(
        "topic create",
        "headrace.console.topics:create",
        "make a topic",
        (
            TOPIC,
            _option("--partitions", text="how many partitions, for ever (default 4)", type=int, default=4),
            _option("--retention-days", text="forget records after this long (default: never)", type=float),
        ),
    ),
    Command(
        "topic alter",
        "headrace.console.topics:alter",
        "change how long a topic keeps its records",
        (
            TOPIC,
            _option("--retention-days", text="forget records after this long; 0 is never", type=float, required=True),
        ),
    ),
    Command("topic list", "headrace.console.topics:list_topics", "list the topics with their sizes", (JSON,)),
    Command(
        "topic tail",
        "headrace.console.topics:tail",
        "show live messages as they come, until Ctrl-C",
        (
            TOPIC,
            _option("--last", text="begin this many records before the end (default 0)", type=int, default=0),
            _option("--max", text="stop after this many records", type=int),
            JSON,
        ),
    ),
    Command(
        "topic read",
        "headrace.console.topics:read",
        "print what a topic holds, from the start or an instant to the present end",
        (
            TOPIC,
            _option(
                "--from",
                text="earliest, an offset, or an instant like 2026-11-21T12:00",
                dest="start",
                default="earliest",
            ),
            _option("--partition", text="only this partition", type=int),
            _option("--max", text="stop after this many records", type=int),
            JSON,
        ),
    ),
    Command(
        "topic append",
        "headrace.console.topics:append",
        "append lines from stdin: plain values, or with --json objects with key, value, time_us, headers",
        (TOPIC, _option("--key", text="the key of all records"), JSON),
    ),
    Command(
        "topic replay",
        "headrace.console.topics:replay",
        "move a group's positions; its running consumer is stopped by this",
        (
            TOPIC,
            GROUP,
            _option("--to", text="earliest, latest, an offset, or an instant like 2026-11-21T12:00", required=True),
            JSON,
        ),
    ),
    Command(
        "topic groups",
        "headrace.console.topics:groups",
        "list the groups that read a topic, with their positions and lag",
        (TOPIC, JSON),
    ),
)


def build_parser() -> argparse.ArgumentParser:
    """Returns the parser of the whole tree."""
    parser = argparse.ArgumentParser(prog="headrace", description="From click to lift.", epilog=EXIT_CODES)
    parser.add_argument("--version", action="version", version=_version(), help="print the version")
    words = parser.add_subparsers(dest="word", required=True, metavar="COMMAND")
    nouns: dict[str, Any] = {}
    for command in COMMANDS:
        noun, _, verb = command.words.partition(" ")
        if verb and noun not in nouns:
            text = f"{noun} commands: {', '.join(_verbs(noun))}"
            nouns[noun] = words.add_parser(noun, help=text).add_subparsers(dest="verb", required=True, metavar="VERB")
        place = nouns[noun] if verb else words
        leaf = place.add_parser(verb or noun, help=command.help, description=command.help, epilog=EXIT_CODES)
        for argument in (*command.arguments, *COMMON):
            leaf.add_argument(*argument.names, help=argument.help, **argument.options)
        leaf.set_defaults(target=command.target)
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command and returns its exit code."""
    given = build_parser().parse_args(arguments)
    module, _, name = given.target.partition(":")
    try:
        return int(getattr(import_module(module), name)(given) or 0)
    except HeadraceError as error:
        _print_error(error, as_json=getattr(given, "json", False))
        return error.exit_code
    except BrokenPipeError:
        # `headrace topic read clicks | head` ends quietly; what Python still holds has nowhere to go.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except KeyboardInterrupt:
        return 130


def _print_error(error: HeadraceError, *, as_json: bool) -> None:
    name = type(error).__name__
    if as_json:
        print(json.dumps({"error": name, "message": str(error)}), file=sys.stderr)
    else:
        print(f"{name}: {error}", file=sys.stderr)


def _verbs(noun: str) -> list[str]:
    return [command.words.split()[1] for command in COMMANDS if command.words.startswith(f"{noun} ")]


def _version() -> str:
    package = import_module("headrace")
    return f"headrace {package.__version__}"
