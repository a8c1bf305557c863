"""Runs the ```console blocks of a page as a reader would type them.

One folder per page. A line that begins with `$ ` is run by bash, `> ` continues it; lines below it are its output, in
which `...` stands for any text, or on a line of its own for any lines. A command without a line below may print
anything. A command must end with code 0. `headrace up` and a `headrace topic tail` without --max stay in a terminal of
their own, until a line `^C` interrupts the newest of them; lines at the top of its block are what that one printed.
```console kafka is run only where a broker is. The ports of
the three doors become free ones, and Kafka's port 9092 the broker's.
"""

import os
import re
import shlex
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

from running import wait_until

PAGE_PORTS, BROKER = ("7070", "7071", "7072"), "127.0.0.1:9092"
_BLOCK = re.compile(r"^```console(?P<kafka> kafka)?\n(?P<text>.*?)^```$", re.DOTALL | re.MULTILINE)
_PATIENCE_SECONDS = 20.0
# Of 0.1 s each, and of processor time: no command of ours has read its project after 0.1 s of it.
_IDLE_LOOKS, _BEGUN_TICKS = 8, 10


@dataclass
class Step:
    """One command with the output that the page shows."""

    command: str
    shown: list[str] = field(default_factory=list)

    @property
    def stays(self):
        """Whether the command runs on while others are typed."""
        return bool(re.match(r"headrace (up|topic tail(?!.*--max))\b[^;|&]*$", self.command))


def read_steps(page, *, kafka):
    """Yields the commands of a page; a step whose command is `^C` interrupts."""
    for block in _BLOCK.finditer(page):
        if kafka or not block["kafka"]:
            yield from _read_block(block["text"].splitlines())


def _read_block(lines):
    steps = [Step("")]
    for line in lines:
        if line.startswith("$ "):
            steps.append(Step(line.removeprefix("$ ")))
        elif line == "^C":
            # What stands above it and below no command is what the interrupted one printed.
            early = [steps[0].shown] if len(steps) == 1 else [[]]
            steps.append(Step("^C", *early))
        elif line.startswith("> ") and not steps[-1].shown:
            steps[-1].command += "\n" + line.removeprefix("> ")
        else:
            steps[-1].shown.append(line)
    return steps[1:]


def matches(shown, printed):
    """Returns whether a page's lines tell what was printed, `...` standing for anything."""
    return re.fullmatch("".join(map(_pattern, shown)) + r"\n*", printed) is not None


def _pattern(line):
    return r"(?:.*\n)*?" if line == "..." else ".*".join(map(_loose, line.split("..."))) + r"[ ]*\n"


def _loose(text):
    # Widths of columns depend on their content.
    return r"[ ]+".join(map(re.escape, re.split(r" {2,}", text)))


class Terminal:
    """The folder and the processes of one page."""

    def __init__(self, folder, *, ports, broker=None):
        self._folder = folder
        self._where = folder
        self._ports = dict(zip(PAGE_PORTS, map(str, ports), strict=True))
        self._broker = broker
        self._variables = folder / ".variables"
        self._variables.write_text("")
        self._running = []
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        self._env = {**os.environ, "PATH": path, "HOME": str(folder), "COLUMNS": "120", "TERM": "dumb"}
        for name in ("HEADRACE_PROFILE", "HEADRACE_FAULT"):
            self._env.pop(name, None)

    def run(self, step):
        """Runs one step and asserts that it does what the page shows."""
        shown = [self._here(line) for line in step.shown]
        if step.command == "^C":
            self._interrupt(shown)
        elif step.stays:
            self._start(self._here(step.command), shown)
        else:
            self._finish(self._here(step.command), shown)
        for file in self._folder.rglob("headrace.toml"):
            text = file.read_text()
            if self._here(text) != text:
                file.write_text(self._here(text))

    def close(self):
        """Ends what still runs."""
        for process, _ in self._running:
            if process.poll() is None:
                process.terminate()
                process.wait(10)

    def _here(self, text):
        text = re.sub(rf"\b({'|'.join(PAGE_PORTS)})\b", lambda found: self._ports[found[1]], text)
        return text.replace(BROKER, self._broker) if self._broker else text

    def _prelude(self):
        return f"set -a; . {shlex.quote(str(self._variables))}; set +a; "

    def _finish(self, command, shown):
        where = self._folder / ".where"
        script = f"{self._prelude()}{command}\ncode=$?; pwd > {shlex.quote(str(where))}; exit $code"
        done = subprocess.run(
            ["bash", "-c", script],
            cwd=self._where,
            env=self._env,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=120,
            check=False,
        )
        assert done.returncode == 0, f"$ {command}\nended with {done.returncode}:\n{done.stdout}"
        printed = done.stdout if done.stdout.endswith("\n") or not done.stdout else done.stdout + "\n"
        assert not shown or matches(shown, printed), _difference(command, shown, printed)
        self._where = Path(where.read_text().strip())
        exported = re.fullmatch(r"export (\w+=.*)", command)
        if exported:
            with self._variables.open("a") as file:
                file.write(exported[1] + "\n")

    def _start(self, command, shown):
        log = self._folder / f".terminal-{len(self._running)}"
        with log.open("wb") as file:
            arguments = ["bash", "-c", f"{self._prelude()}exec {command}"]
            process = subprocess.Popen(
                arguments, cwd=self._where, env=self._env, stdin=subprocess.DEVNULL, stdout=file, stderr=file
            )
        self._running.append((process, log))
        if shown:
            _wait(
                lambda: matches(shown, _without_log(log.read_text())),
                lambda: _difference(command, shown, log.read_text()),
            )
        else:
            _wait_idle(process)

    def _interrupt(self, shown):
        process, log = self._running.pop()
        if shown:
            _wait(
                lambda: matches(shown, _without_log(log.read_text())), lambda: _difference("^C", shown, log.read_text())
            )
        process.send_signal(signal.SIGINT)
        assert process.wait(10) in (0, 130)


def _without_log(text):
    return "".join(f"{line}\n" for line in text.splitlines() if not line.startswith('{"at":'))


def _wait_idle(process):
    """Waits until a command that prints nothing yet has begun to wait: it sleeps, and needs no more processor time."""
    still, used = 0, -1
    deadline = time.monotonic() + _PATIENCE_SECONDS
    while still < _IDLE_LOOKS and time.monotonic() < deadline:
        time.sleep(0.1)
        # A field by its number in proc(5), less those before the command's closing bracket.
        fields = Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()
        state, now = fields[0], int(fields[11]) + int(fields[12])
        still = still + 1 if state == "S" and now - used <= 1 and now >= _BEGUN_TICKS else 0
        used = now


def _wait(condition, complain):
    try:
        wait_until(condition, seconds=_PATIENCE_SECONDS)
    except AssertionError as error:
        raise AssertionError(complain()) from error


def _difference(command, shown, printed):
    return f"$ {command}\nthe page shows:\n" + "\n".join(shown) + f"\n\nit printed:\n{printed}"
