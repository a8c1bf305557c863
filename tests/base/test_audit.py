"""The audit log: whatever is done to its lines is found, and a death costs no line that was told of."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import stat
import subprocess
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace.base.audit import BEGUN, FILE, HEAD, Act, audited, check_audit, write_line
from headrace.base.errors import FencedError, UnavailableError

ACT = Act("ann", "admin", "model promote", "home", {"bundle": "af3e"}, "192.0.2.7")


def _fill(folder, count=6):
    """Writes lines; returns them as they stand."""
    for number in range(count):
        write_line(folder, ACT, f"outcome {number}", at_us=1_000 + number)
    return (folder / FILE).read_bytes().splitlines(keepends=True)


def _check(folder, lines):
    (folder / FILE).write_bytes(b"".join(lines))
    return check_audit(folder)


def _change(line, **values):
    return json.dumps(json.loads(line) | values, separators=(",", ":"), ensure_ascii=False).encode() + b"\n"


def test_an_act_stands_in_the_log_before_it_is_done_and_after(tmp_path):
    clock = iter((1_000, 2_000))
    with audited(tmp_path, ACT, now_us=lambda: next(clock)) as outcome:
        (begun,) = map(json.loads, (tmp_path / FILE).read_text().splitlines())
        outcome.text = "exit code 1"
    before, after = map(json.loads, (tmp_path / FILE).read_text().splitlines())
    assert before == begun
    assert {name: begun[name] for name in ("seq", "at_us", "who", "level", "address", "what", "subject")} == {
        "seq": 1, "at_us": 1_000, "who": "ann", "level": "admin", "address": "192.0.2.7", "what": "model promote",
        "subject": "home",
    }  # fmt: skip
    assert (begun["outcome"], begun["given"], begun["previous"]) == (BEGUN, {"bundle": "af3e"}, "")
    assert (after["outcome"], after["given"], after["previous"]) == ("exit code 1", {"begun": "1"}, begun["hash"])
    found = check_audit(tmp_path)
    assert (found.num_lines, found.is_whole, found.head) == (2, True, after["hash"])
    assert {stat.S_IMODE((tmp_path / name).stat().st_mode) for name in (FILE, HEAD)} == {0o600}


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (FencedError("somebody newer"), "FencedError: somebody newer"),
        (ZeroDivisionError("secret"), "ZeroDivisionError"),
        (KeyboardInterrupt(), "KeyboardInterrupt"),
    ],
)
def test_an_act_that_fails_says_so(tmp_path, error, told):
    with pytest.raises(type(error)), audited(tmp_path, ACT):
        raise error
    assert json.loads((tmp_path / FILE).read_text().splitlines()[1])["outcome"] == told
    assert check_audit(tmp_path).is_whole


def test_an_act_that_cannot_be_written_down_is_not_begun(tmp_path):
    (tmp_path / FILE).mkdir()
    done = []
    with pytest.raises(UnavailableError, match="'model promote' was not begun"), audited(tmp_path, ACT):
        done.append(1)
    assert done == []


def test_a_log_that_nobody_has_written_to_is_whole(tmp_path):
    found = check_audit(tmp_path)
    assert (found.num_lines, found.is_whole, found.head) == (0, True, "")


def test_text_of_any_length_and_kind_is_one_line(tmp_path):
    nasty = Act("\ud800", "x" * 5_000, "a\nb\u2028", "\x00", {str(number): "y" * 900 for number in range(99)})
    write_line(tmp_path, nasty, "ok", at_us=1)
    write_line(tmp_path, ACT, "ok", at_us=1)
    assert len((tmp_path / FILE).read_bytes().split(b"\n")) == 3
    assert check_audit(tmp_path).is_whole


# What somebody may do to the lines.


def _forge(line, previous, **values):
    """Returns a line with a hash that fits it, as somebody makes it who knows how."""
    made = json.loads(line) | values | {"previous": previous, "hash": ""}
    raw = json.dumps(made, separators=(",", ":")).encode()
    return raw.replace(b'"hash":""', f'"hash":"{hashlib.sha256(raw).hexdigest()}"'.encode()) + b"\n"


TAMPERINGS = {
    "a name changed": lambda a: [*a[:2], _change(a[2], who="bob"), *a[3:]],
    "an outcome changed": lambda a: [*a[:5], _change(a[5], outcome="done")],
    "a space put in": lambda a: [*a[:2], a[2].replace(b'"who":', b'"who": '), *a[3:]],
    "a member put in": lambda a: [*a[:2], a[2].replace(b'{"seq"', b'{"seq":3,"seq"'), *a[3:]],
    "the first removed": lambda a: a[1:],
    "one removed": lambda a: [*a[:3], *a[4:]],
    "two exchanged": lambda a: [*a[:2], a[3], a[2], *a[4:]],
    "one twice": lambda a: [*a[:3], a[2], *a[3:]],
    "one forged": lambda a: [*a[:2], _forge(a[2], json.loads(a[1])["hash"], who="bob"), *a[3:]],
    "one inserted": lambda a: [*a[:3], _forge(a[3], json.loads(a[2])["hash"], who="bob"), *a[3:]],
    "a blank line": lambda a: [*a[:3], b"\n", *a[3:]],
    "no line at all": lambda a: [*a[:3], b"hello\n", *a[3:]],
    "the last removed": lambda a: a[:-1],
    "the last three removed": lambda a: a[:-3],
    "all removed": lambda _: [],
    "the last cut": lambda a: [*a[:-1], a[-1][:40]],
    "the last without its end": lambda a: [*a[:-1], a[-1][:-1]],
    "the last forged": lambda a: [*a[:-1], _forge(a[-1], json.loads(a[-2])["hash"], who="bob")],
    "two forged at the end": lambda a: [*a, *_forge_two(a)],
    "made anew": lambda a: [_forge(a[0], "", who="bob"), *a[1:]],
}


def _forge_two(lines):
    first = _forge(lines[-1], json.loads(lines[-1])["hash"], seq=7)
    return first, _forge(lines[-1], json.loads(first)["hash"], seq=8)


@pytest.mark.parametrize("name", TAMPERINGS)
def test_tampering_is_found_and_stays_found(tmp_path, name):
    lines = _fill(tmp_path)
    assert not _check(tmp_path, TAMPERINGS[name](lines)).is_whole
    with audited(tmp_path, ACT):
        pass
    # Neither lost nor taken for an accident once work has gone on; a line's end alone can be put back.
    assert check_audit(tmp_path).is_whole == (name == "the last without its end")


def test_the_place_of_the_damage_is_told(tmp_path):
    lines = _fill(tmp_path)
    changed = _check(tmp_path, [*lines[:2], _change(lines[2], who="bob"), *lines[3:]])
    assert changed.damages == ("line 3, the act 3, was changed",)
    removed = _check(tmp_path, [*lines[:3], *lines[4:]])
    assert removed.damages == ("line 4, the act 5, does not follow the act 3",)
    cut = _check(tmp_path, lines[:4])
    assert cut.damages == ("the end is missing: audit.head knows 6 acts, the log 4",)


def test_a_head_that_is_gone_or_another_is_found(tmp_path):
    _fill(tmp_path)
    head = tmp_path / HEAD
    kept = head.read_bytes()
    head.unlink()
    assert not check_audit(tmp_path).is_whole
    for text in (b"", b"{}", b"no JSON", kept.replace(b'"seq":6', b'"seq":5'), kept.replace(b'"seq":6', b'"seq":7')):
        head.write_bytes(text)
        assert not check_audit(tmp_path).is_whole, text
    head.write_bytes(kept)
    assert check_audit(tmp_path).is_whole


def test_a_log_that_is_gone_is_found(tmp_path):
    _fill(tmp_path)
    (tmp_path / FILE).unlink()
    assert not check_audit(tmp_path).is_whole


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    folder = tmp_path_factory.mktemp("written")
    return folder, b"".join(_fill(folder))


@given(st.data())
@settings(max_examples=150, deadline=None)
def test_no_edit_of_the_bytes_goes_unseen(written, data):
    folder, whole = written
    start = data.draw(st.integers(0, len(whole)))
    end = data.draw(st.integers(start, min(len(whole), start + 700)))
    edited = whole[:start] + data.draw(st.binary(max_size=20)) + whole[end:]
    (folder / FILE).write_bytes(edited)
    found = check_audit(folder)
    # What stands behind the last line was never told of: it is torn, and said to be.
    assert (found.is_whole and not found.torn_bytes) == (edited == whole)


# What was written before lines were chained.


OLD = [
    b'{"at": "2026-11-21T10:00:00+00:00", "action": "topic replay", "by": "ann", "topic": "clicks", "partition": 0}\n',
    b'{"at": "2026-11-21T11:00:00+00:00", "action": "table load", "by": "bob", "table": "items", "new": 40}\n',
]


@pytest.mark.parametrize("torn", [b"", b'{"at": "2026-', b'{"seq":1,"at_us":'])
def test_a_log_from_before_the_chain_is_told_as_such_and_gone_on_with(tmp_path, torn):
    found = _check(tmp_path, [*OLD, torn])
    assert (found.num_lines, found.num_unchained, found.is_whole, found.head) == (2, 2, True, "")
    lines = _fill(tmp_path, 2)
    found = check_audit(tmp_path)
    assert (found.num_unchained, found.is_whole, lines[:2]) == (2, True, OLD)
    chained, *acts = map(json.loads, lines[2 + bool(torn) :])
    assert (chained["seq"], chained["what"], chained["given"]["lines"]) == (1, "audit chained", "2")
    assert [one["what"] for one in acts] == ["model promote"] * 2


@pytest.mark.parametrize(
    "forge",
    [
        lambda a: [a[0].replace(b"ann", b"eve"), *a[1:]],
        lambda a: a[1:],
        lambda a: a[2:],
        lambda a: [*a[:2], OLD[0], *a[2:]],
        lambda a: [*a[:3], OLD[0], *a[3:]],
        lambda a: [*a[:2], *a[3:]],
        lambda a: a[:2],
    ],
)
def test_what_the_chain_began_with_is_held_by_it(tmp_path, forge):
    (tmp_path / FILE).write_bytes(b"".join(OLD))
    lines = _fill(tmp_path, 2)
    for _ in range(2):
        assert not _check(tmp_path, forge(lines)).is_whole
        lines = _fill(tmp_path, 1)
        forge = list


def test_lines_without_a_chain_are_none_that_it_began_with(tmp_path):
    lines = _fill(tmp_path, 1)
    for forged in ([OLD[0], *lines], [*lines, OLD[0]]):
        assert not _check(tmp_path, forged).is_whole


# Deaths and company.


def test_a_line_that_was_noted_nowhere_is_not_missed(tmp_path):
    _fill(tmp_path, 5)
    noted = (tmp_path / HEAD).read_bytes()
    _fill(tmp_path, 1)
    (tmp_path / HEAD).write_bytes(noted)
    assert check_audit(tmp_path).is_whole
    _fill(tmp_path, 1)
    assert (check_audit(tmp_path).num_lines, check_audit(tmp_path).is_whole) == (7, True)


@pytest.mark.parametrize("torn", [b"{", b'{"seq":7,"at_us":1', b"\x00" * 30, b"\xff"])
def test_a_torn_line_is_named_by_the_next_and_breaks_nothing(tmp_path, torn):
    _fill(tmp_path)
    with (tmp_path / FILE).open("ab") as file:
        file.write(torn)
    found = check_audit(tmp_path)
    assert (found.num_lines, found.is_whole, found.torn_bytes) == (6, True, len(torn))
    _fill(tmp_path, 1)
    found = check_audit(tmp_path)
    assert (found.num_lines, found.is_whole, found.torn_bytes) == (9, True, 0)
    healed = json.loads((tmp_path / FILE).read_bytes().splitlines()[7])
    assert (healed["what"], healed["seq"]) == ("audit healed", 7)


def test_a_line_that_lacks_nothing_but_its_end_gets_it(tmp_path):
    *_, last = _fill(tmp_path)
    with (tmp_path / FILE).open("ab") as file:
        file.write(_forge(last, json.loads(last)["hash"], seq=7)[:-1])
    _fill(tmp_path, 1)
    assert (check_audit(tmp_path).is_whole, check_audit(tmp_path).num_lines) == (True, 8)


def test_the_first_line_may_be_torn_too(tmp_path):
    (tmp_path / FILE).write_bytes(b'{"seq":1,')
    _fill(tmp_path, 1)
    assert (check_audit(tmp_path).is_whole, check_audit(tmp_path).num_lines) == (True, 3)


WRITER = """
import sys
from pathlib import Path
from headrace.base.audit import Act, audited
print("ready", flush=True)
sys.stdin.readline()
for number in range(int(sys.argv[2])):
    with audited(Path(sys.argv[1]), Act("ann", "admin", "act", str(number))):
        pass
    print(number, flush=True)
"""


def _writer(folder, count):
    return subprocess.Popen(
        [sys.executable, "-c", WRITER, str(folder), str(count)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        bufsize=0,
    )


def test_processes_at_once_keep_one_chain(tmp_path):
    writers = [_writer(tmp_path, 25) for _ in range(3)]
    for one in writers:
        one.stdout.readline()
    for one in writers:
        one.stdin.write(b"\n")
    for one in writers:
        assert len(one.communicate()[0].splitlines()) == 25
    found = check_audit(tmp_path)
    assert (found.num_lines, found.damages) == (150, ())


def test_a_killed_writer_leaves_a_whole_log(tmp_path):
    told = 0
    for count in (1, 4, 7):
        writer = _writer(tmp_path, 10_000)
        writer.stdout.readline()
        writer.stdin.write(b"\n")
        for _ in range(count):
            assert writer.stdout.readline()
            told += 1
        os.kill(writer.pid, signal.SIGKILL)
        told += len(writer.communicate()[0].splitlines())
        found = check_audit(tmp_path)
        assert found.is_whole
        assert found.num_lines >= 2 * told
