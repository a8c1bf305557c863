"""headrace key: who may log in to the console's pages, and which write keys stand."""

from __future__ import annotations

import argparse
import getpass
import sys
from contextlib import closing
from pathlib import Path
from typing import Any

from headrace.base.clock import machine_us
from headrace.base.errors import CallError
from headrace.console.login import MAX_PASSWORD, MIN_PASSWORD, load_passwords
from headrace.console.show import format_time, print_lines, print_table
from headrace.console.users import User, Users
from headrace.profile import find_folder, read_profile


def create(given: argparse.Namespace) -> None:
    """Adds a user of the console."""
    passwords = load_passwords()
    with closing(_open_users(given)) as users:
        users.refuse(given.name)
        password = _read_password(from_stdin=given.password_stdin)
        users.add(User(given.name, given.console, machine_us()), passwords.hash_password(password))
    if given.json:
        print_lines([{"name": given.name, "console": given.console}])
    else:
        print(f"{given.name} may log in to the console as {given.console}")


def list_keys(given: argparse.Namespace) -> None:
    """Lists the users of the console and the write keys."""
    profile = read_profile(find_folder(Path(given.project)), given.profile)
    with closing(_open_users(given)) as users:
        found: list[dict[str, Any]] = [
            {"name": user.name, "for": "console", "level": user.level, "made_us": user.made_us}
            for user in users.users()
        ]
    found += [{"name": name, "for": "events", "level": None, "made_us": None} for name in profile.settings.keys]
    if given.json:
        print_lines(found)
        return
    rows = [
        (one["name"], one["for"], one["level"] or "-", format_time(one["made_us"])[:19] if one["made_us"] else "-")
        for one in found
    ]
    print_table(("name", "for", "level", "made"), rows, empty="no keys and no users")


def revoke(given: argparse.Namespace) -> None:
    """Takes a user of the console away, who is logged out at once."""
    with closing(_open_users(given)) as users:
        users.remove(given.name)
    print(f"{given.name} may no longer log in, and is logged out")


def _open_users(given: argparse.Namespace) -> Users:
    return Users(read_profile(find_folder(Path(given.project)), given.profile).state)


def _read_password(*, from_stdin: bool) -> str:
    if from_stdin:
        try:
            password = sys.stdin.buffer.readline().decode().rstrip("\r\n")
        except UnicodeDecodeError as error:
            raise CallError("the password is no UTF-8. Write it as the browser will send it") from error
    elif not sys.stdin.isatty():
        raise CallError("there is no terminal to ask for a password. Give it as a line with --password-stdin")
    else:
        password = getpass.getpass("password: ")
        if getpass.getpass("again: ") != password:
            raise CallError("the two passwords differ")
    if not MIN_PASSWORD <= len(password) <= MAX_PASSWORD:
        raise CallError(
            f"the password has {len(password)} characters, it must have {MIN_PASSWORD} to {MAX_PASSWORD}. "
            "Four random words are easy to remember"
        )
    return password
