"""headrace topic: every command, its output and its errors."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime

import pytest

import headrace as package
from running import call, headrace, lines, project_toml, running, wait_until


@pytest.fixture
def shop(tmp_path):
    (tmp_path / "project.py").write_text("from headrace import Project\nproject = Project('shop')\n")
    (tmp_path / "headrace.toml").write_text(project_toml())
    return tmp_path


@pytest.fixture
def topic(shop):
    """Runs `headrace topic ...` in a project that has the topic `notes` with one partition."""

    def run(*words, **options):
        return call("topic", *words, "--project", shop, **options)

    run.folder = shop
    assert run("create", "notes", "--partitions", "1")[0] == 0
    return run


def values(out):
    return [line["value"] for line in lines(out)]


# create, list, alter.


def test_create_list_and_alter(topic):
    code, out, _ = topic("create", "more", "--partitions", "3", "--retention-days", "0.5")
    assert code == 0
    assert out.startswith("topic more: 3 partitions, incarnation ")
    assert topic("create", "more", "--partitions", "3")[1] == out, "it stands: the same again"
    more, notes = lines(topic("list", "--json")[1])
    assert (more["topic"], more["partitions"], more["records"], more["retention_seconds"]) == ("more", 3, 0, 43_200)
    assert (more["start"], more["end"], notes["retention_seconds"]) == ([0, 0, 0], [0, 0, 0], None)
    assert topic("alter", "more", "--retention-days", "2")[1] == "topic more: records are kept for 2 days\n"
    assert topic("alter", "more", "--retention-days", "0")[1] == "topic more: records are kept for ever\n"
    code, out, _ = topic("list")
    assert code == 0
    assert [line.split()[:3] for line in out.splitlines()] == [
        ["topic", "partitions", "records"], ["more", "3", "0"], ["notes", "1", "0"],
    ]  # fmt: skip


def test_a_project_without_topics_says_what_makes_them(shop):
    assert call("topic", "list", cwd=shop)[1].split() == (
        ["no", "topics", "yet.", "`headrace", "up`", "makes", "them,", "or:", "headrace", "topic", "create", "NAME"]
    )
    assert call("topic", "list", "--json", cwd=shop)[:2] == (0, "")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("create", "notes", "--partitions", "2"), "CallError: topic 'notes' stands with 1 partitions, asked for 2."),
        (("create", "a b"), "CallError: topic name 'a b': use 1 to 200 letters, digits, '.', '_' and '-'"),
        (("create", "x", "--partitions", "0"), "CallError: topic 'x': partitions == 0, must be 1 to 1024"),
        (("create", "x", "--retention-days", "-1"), "CallError: --retention-days -1: must be 0 or more"),
        (("create", "x", "--retention-days", "nan"), "CallError: --retention-days nan: must be 0 or more"),
        (("create", "x", "--retention-days", "inf"), "CallError: --retention-days inf: must be 0 or more"),
        (
            ("alter", "note", "--retention-days", "1"),
            "UnknownNameError: no topic 'note'. Did you mean notes?  known: notes",
        ),
        (("read", "note"), "UnknownNameError: no topic 'note'. Did you mean notes?  known: notes"),
        (("tail", "note"), "UnknownNameError: no topic 'note'. Did you mean notes?  known: notes"),
        (("append", "note"), "UnknownNameError: no topic 'note'. Did you mean notes?  known: notes"),
        (("groups", "note"), "UnknownNameError: no topic 'note'. Did you mean notes?  known: notes"),
        (("replay", "note", "--group", "g", "--to", "earliest"), "UnknownNameError: no topic 'note'. Did you mean"),
        (("read", "notes", "--partition", "1"), "CallError: --partition 1: topic 'notes' has partitions 0 to 0"),
        (("read", "notes", "--from", "soon"), "CallError: 'soon' is no place: write earliest, latest, an offset or"),
        (("read", "notes", "--from", "-5"), "CallError: '-5' is no place: write earliest, latest, an offset or"),
        (("replay", "notes", "--group", "g", "--to", "soon"), "CallError: 'soon' is no place: write earliest, latest"),
    ],
    ids=" ".join,
)
def test_a_wrong_call_is_code_2_with_its_reason(topic, words, message):
    words = ["=".join(words[-2:]) if word == words[-2] and words[-1] == "-5" else word for word in words]
    words = [word for word in words if word != "-5"]
    code, out, error = topic(*words, stdin="")
    assert (code, out) == (2, "")
    assert error.startswith(message)
    assert error.count("\n") == 1, "one line, no trace"


def test_an_error_is_json_where_json_was_asked_for(topic):
    code, out, error = topic("read", "note", "--json")
    assert (code, out) == (2, "")
    assert json.loads(error) == {
        "error": "UnknownNameError", "message": "no topic 'note'. Did you mean notes?  known: notes",
    }  # fmt: skip


@pytest.mark.parametrize(
    "words", [("reed", "notes"), (), ("create",), ("read", "notes", "--max", "x"), ("read", "notes", "--nope")]
)
def test_words_that_are_no_command_are_code_2(topic, words):
    code, out, error = topic(*words)
    assert (code, out) == (2, "")
    assert error.startswith("usage: headrace")


@pytest.mark.slow
@pytest.mark.soak
def test_an_unreachable_broker_is_code_3(shop):
    pytest.importorskip("confluent_kafka")
    (shop / "headrace.toml").write_text(project_toml(topics="kafka://127.0.0.1:1"))
    code, out, error = call("topic", "list", cwd=shop)
    assert (code, out) == (3, "")
    assert error.splitlines()[-1].startswith("UnavailableError: ")


# append, read.


def test_append_and_read_plain_lines(topic):
    code, out, _ = topic("append", "notes", "--key", "ann", stdin="hello\nwörld\n\n{}\n")
    assert (code, out) == (0, "topic notes: 4 records appended\n")
    code, out, _ = topic("read", "notes", "--json")
    assert code == 0
    first, *_ = found = lines(out)
    assert [line["value"] for line in found] == ["hello", "wörld", "", {}]
    assert [line["offset"] for line in found] == [0, 1, 2, 3]
    assert {line["key"] for line in found} == {"ann"}
    assert list(first) == ["partition", "offset", "key", "time_us", "value"]
    assert abs(first["time_us"] / 1e6 - time.time()) < 60
    code, out, _ = topic("read", "notes", "--max", "1")
    assert (code, out.split()[1:]) == (0, ["0/0", "ann", "hello"])


def test_append_json_objects_with_key_value_and_time(topic):
    sent = [
        {"key": "ann", "value": {"a": 1}, "time_us": 1_700_000_000_123_000},
        {"value": "text"},
        {"key": None, "value": None},
        {"key": "", "value": [1.5, "ü"]},
    ]
    code, out, _ = topic("append", "notes", "--json", "--key", "default", stdin="\n".join(map(json.dumps, sent)))
    assert (code, lines(out)) == (0, [{"topic": "notes", "records": 4}])
    found = lines(topic("read", "notes", "--json")[1])
    assert [(line["key"], line["value"]) for line in found] == [
        ("ann", {"a": 1}), ("default", "text"), ("default", None), ("", [1.5, "ü"]),
    ]  # fmt: skip
    assert found[0]["time_us"] == 1_700_000_000_123_000


def test_what_read_prints_append_takes(topic):
    topic("append", "notes", "--key", "ann", stdin="one\ntwo\n")
    out = topic("read", "notes", "--json")[1]
    assert topic("create", "copy", "--partitions", "1")[0] == 0
    assert topic("append", "copy", "--json", stdin=out)[0] == 0
    assert topic("read", "copy", "--json")[1] == out


def test_a_copy_keeps_the_headers(topic):
    line = '{"key":"ann","value":{"a":1},"headers":{"door":{"version":1,"source":"http/track"},"note":"plain"}}'
    assert topic("append", "notes", "--json", stdin=line)[0] == 0
    out = topic("read", "notes", "--json")[1]
    assert '"headers":{"door":{"version":1,"source":"http/track"},"note":"plain"}' in out
    assert topic("create", "copy", "--partitions", "1")[0] == 0
    assert topic("append", "copy", "--json", stdin=out)[0] == 0
    assert topic("read", "copy", "--json")[1] == out


@pytest.mark.parametrize(
    "line",
    [
        "{",
        "42",
        "[]",
        '{"key":"a"}',
        '{"key":5,"value":1}',
        '{"value":1,"time_us":"x"}',
        '{"value":1,"time_us":-5}',
        '{"value":1,"time_us":true}',
        '{"key":"\\ud800","value":1}',
        "[" * 100_000,
    ],
)
def test_a_line_that_is_no_record_is_named_and_nothing_after_it_is_appended(topic, line):
    code, out, error = topic("append", "notes", "--json", stdin=f'{{"value":1}}\n{line}\n{{"value":2}}\n')
    assert (code, out) == (2, "")
    assert json.loads(error)["message"].startswith(f"stdin line 2: found {line.encode()[:80]!r}, need ")


def test_read_from_an_offset_an_instant_and_the_end(topic):
    for n, second in enumerate((10, 20, 30)):
        record = {"value": n, "time_us": int(datetime(2026, 11, 21, 12, 0, second, tzinfo=UTC).timestamp()) * 1_000_000}
        assert topic("append", "notes", "--json", stdin=json.dumps(record))[0] == 0
    for start, expected in (
        ("earliest", [0, 1, 2]),
        ("latest", []),
        ("1", [1, 2]),
        ("99", []),
        ("2026-11-21T12:00", [0, 1, 2]),
        ("2026-11-21T12:00:20", [1, 2]),
        ("2026-11-21T12:00:20.001+00:00", [2]),
        ("2026-11-21T13:00:30+01:00", [2]),
        ("2026-11-22", []),
    ):
        code, out, _ = topic("read", "notes", "--json", "--from", start)
        assert (code, values(out)) == (0, expected), start
    assert values(topic("read", "notes", "--json", "--partition", "0", "--max", "2")[1]) == [0, 1]
    assert topic("read", "notes", "--json", "--max", "0")[:2] == (0, "")


def test_any_bytes_can_be_shown(topic):
    shown = (
        (b"\xff\x00", "\ufffd\x00"),
        (b'{\n "price" : 1.10,\r\n "n": 12345678901234567890123 }', {"price": 1.1, "n": 12345678901234567890123}),
        (b"[" * 300 + b"]" * 300, json.loads("[" * 300 + "]" * 300)),
        (b"[" * 5000 + b"]" * 5000, "[" * 5000 + "]" * 5000),
        (b"NaN", "NaN"),
        (b'"\\ud800"', '"\\ud800"'),
        (b"a\nb\x1b[2J", "a\nb\x1b[2J"),
    )
    with package.open(topic.folder) as project:
        project.topic("notes").append([package.Record(b"\xff", value) for value, _ in shown])
    code, out, error = topic("read", "notes", "--json")
    assert (code, error) == (0, "")
    found = [json.loads(line, parse_constant=refuse) for line in out.split("\n")[:-1]]
    assert [line["value"] for line in found] == [value for _, value in shown]
    assert '"price":1.10' in out, "numbers are shown as they were written"
    assert found[0]["key"] == "\ufffd"
    assert topic("read", "notes")[0] == 0


def refuse(name):
    raise AssertionError(f"{name} is not JSON")


def test_a_reader_that_stops_ends_it_quietly(topic):
    topic("append", "notes", stdin="x" * 200 + "\n" + "y\n" * 50_000)
    for command in ("topic read notes", "topic read notes --json", "topic tail notes --last 50000"):
        pipe = f"{sys.executable} -m headrace {command} | head -n 1"
        done = subprocess.run(
            ["bash", "-c", f"set -o pipefail; {pipe}"],
            cwd=topic.folder,
            capture_output=True,
            text=True,
            timeout=20,
            check=False,
        )
        assert (done.returncode, done.stderr, done.stdout.count("\n")) == (0, "", 1), command


# tail.


def test_tail_shows_what_comes_and_ends_with_ctrl_c(topic):
    topic("append", "notes", stdin="old\nlast\n")
    process = subprocess.Popen(
        [sys.executable, "-m", "headrace", "topic", "tail", "notes", "--last", "1", "--json"],
        cwd=topic.folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        assert json.loads(process.stdout.readline())["value"] == "last"
        topic("append", "notes", stdin="new\n")
        assert json.loads(process.stdout.readline())["value"] == "new"
        process.send_signal(signal.SIGINT)
        assert (process.wait(5), process.stderr.read()) == (130, "")
    finally:
        process.kill()
        process.communicate()


def test_tail_stops_after_max(topic):
    topic("append", "notes", stdin="1\n2\n3\n")
    code, out, _ = topic("tail", "notes", "--last", "3", "--max", "2", "--json")
    assert (code, values(out)) == (0, [1, 2])


# groups, replay.


def test_groups_and_replay(topic):
    topic("append", "notes", stdin="".join(f"{n}\n" for n in range(10)))
    assert topic("groups", "notes")[1] == "no group has read topic notes yet\n"
    with package.open(topic.folder) as project, project.topic("notes").consume("mail") as consumer:
        assert len(consumer.poll(max_records=4)) == 4
        consumer.commit()
    (group,) = lines(topic("groups", "notes", "--json")[1])
    assert (group["group"], group["topic"], group["partition"], group["position"], group["lag"]) == (
        "mail",
        "notes",
        0,
        4,
        6,
    )
    code, out, _ = topic("replay", "notes", "--group", "mail", "--to", "2", "--json")
    assert (code, lines(out)) == (0, [{"topic": "notes", "group": "mail", "partition": 0, "from": 4, "to": 2}])
    for to, lag in (("earliest", 10), ("latest", 0), ("2026-01-01", 10), ("2100-01-01", 0)):
        assert topic("replay", "notes", "--group", "mail", "--to", to)[0] == 0
        assert lines(topic("groups", "notes", "--json")[1])[0]["lag"] == lag
    audit = lines((topic.folder / ".headrace" / "audit.jsonl").read_text())
    moved = [one for one in audit if (one["what"], one["outcome"]) == ("topic replay", "moved")]
    assert [(one["subject"], *(one["given"][name] for name in ("group", "from", "to"))) for one in moved][:2] == [
        ("notes", "mail", "4", "2"), ("notes", "mail", "2", "0"),
    ]  # fmt: skip
    assert len(moved) == 5
    assert all(one["who"] for one in audit)


def test_a_groups_name_steers_neither_table_nor_terminal(topic):
    name = "[bold]x[/nope] \x1b[2J"
    topic("append", "notes", stdin="1\n")
    with package.open(topic.folder) as project, project.topic("notes").consume(name) as consumer:
        consumer.poll()
        consumer.commit()
    for words in (("groups", "notes"), ("replay", "notes", "--group", name, "--to", "latest")):
        code, out, error = topic(*words)
        assert (code, error) == (0, "")
        assert "[bold]x[/nope] \\x1b[2J" in " ".join(out.split())
        assert "\x1b" not in out


def test_replay_stops_the_groups_running_consumer(topic):
    topic("append", "notes", stdin="1\n2\n")
    with package.open(topic.folder) as project, project.topic("notes").consume("mail") as consumer:
        consumer.poll()
        assert topic("replay", "notes", "--group", "mail", "--to", "earliest")[0] == 0
        with pytest.raises(package.HeadraceError, match="mail"):
            consumer.commit()


def test_replay_to_an_offset_beyond_a_partition_goes_to_its_end_and_says_so(topic):
    topic("append", "notes", stdin="1\n2\n")
    code, out, _ = topic("replay", "notes", "--group", "mail", "--to", "3")
    assert (code, out.split()) == (0, ["mail", "on", "notes", "partition", "from", "to", "0", "-", "2"])


# Two writers.


def test_appending_while_up_runs_goes_through_its_writer(topic):
    with running(topic.folder) as up:
        stop = threading.Event()
        sent = []

        def send():
            while not stop.is_set():
                assert up.post("/v1/t", {"anonymousId": "ann", "n": len(sent)}).status == 200
                sent.append(len(sent))

        thread = threading.Thread(target=send)
        thread.start()
        try:
            with ThreadPoolExecutor(2) as pool:
                text = "".join(f'{{"line": {n}}}\n' for n in range(500))
                words = ("topic", "append", "clicks", "--key", "cli")
                done = list(pool.map(lambda _: headrace(*words, cwd=topic.folder, stdin=text), range(2)))
            assert [code for code, _, _ in done] == [0, 0]
            wait_until(lambda: len(sent) > 5)
        finally:
            stop.set()
            thread.join()
        clicks = up.read()
        assert [click["value"]["n"] for click in clicks if click["key"] == "ann"] == sent
        assert sorted(click["value"]["line"] for click in clicks if click["key"] == "cli") == sorted(2 * [*range(500)])
        assert values(topic("read", "clicks", "--json")[1]), "and reading needs no writer"


def test_reading_works_while_nothing_runs(topic):
    topic("append", "notes", stdin="1\n")
    with running(topic.folder):
        pass
    assert values(topic("read", "notes", "--json")[1]) == [1]
