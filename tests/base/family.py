"""Supervisors and children for test_process.py: `python family.py LOG NAME ...`.

Every process writes a line into LOG when it starts: its name, its id, the machine's time.
"""

from __future__ import annotations

import hashlib
import os
import signal
import sqlite3
import sys
import time
from pathlib import Path

from headrace.base.process import Program, Supervisor


def say(log, name):
    with Path(log).open("a", encoding="utf-8") as file:
        file.write(f"{name} {os.getpid()} {time.monotonic()}\n")


def program(name, log):
    """Returns a child; `quiet-after-late` is quiet, and begins after `late`."""
    kind, _, first = name.partition("-")
    after = (first.removeprefix("after-"),) if first.startswith("after-") else ()
    return Program(name, f"family:{kind}", {"log": log, "name": name}, after=after)


def quiet(life, *, log, name):
    """Waits, and leaves when told to."""
    signal.signal(signal.SIGTERM, lambda *_: (say(log, "left"), sys.exit(0)))
    say(log, name)
    life.tell_ready()
    while True:
        time.sleep(60)


def deaf(life, *, log, name):
    """Does not hear SIGTERM."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    say(log, name)
    life.tell_ready()
    while True:
        time.sleep(60)


def hashing(life, *, log, name):
    """Spends minutes in one call into native code; its own handler for SIGTERM never runs."""
    signal.signal(signal.SIGTERM, lambda *_: None)
    say(log, name)
    life.tell_ready()
    hashlib.pbkdf2_hmac("sha256", b"a", b"b", 2_000_000_000)


def querying(life, *, log, name):
    """Spends minutes in one SQLite query."""
    signal.signal(signal.SIGTERM, lambda *_: None)
    say(log, name)
    life.tell_ready()
    sqlite3.connect(":memory:").execute(
        "with recursive n(i) as (select 1 union all select i + 1 from n) select count(*) from n"
    ).fetchone()


def dying(_, *, log, name):
    """Ends at once."""
    say(log, name)
    sys.exit(3)


def late(life, *, log, name):
    """Is not ready for a while."""
    say(log, name)
    time.sleep(0.5)
    say(log, "ready")
    life.tell_ready()
    time.sleep(60)


def parent(life, *, log, name):
    """Has children of its own, one of them deaf and one busy."""
    say(log, name)
    life.tell_ready()
    Supervisor([program("deaf-grandchild", log), program("hashing-grandchild", log)]).run()


def main(log, names):
    say(log, "supervisor")
    supervisor = Supervisor([program(name, log) for name in names])
    told = []

    def tick():
        if not told and supervisor.all_ready():
            told.append(True)
            say(log, "all-ready")

    supervisor.run(tick=tick)
    say(log, "stopped")


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
