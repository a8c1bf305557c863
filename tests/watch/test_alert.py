"""The book of alerts: once while it lasts, over after ten quiet seconds, and the same after a restart."""

import json

from headrace.watch.alert import KINDS, Book, Finding, Now, read_alerts, read_lines

SECOND = 1_000_000


def found(kind="drift", subject="genre", *, is_clear=True):
    return Finding(
        kind=kind, subject=subject, text="it has changed", advice="look", evidence={"psi": 0.7}, is_clear=is_clear
    )


def at(second):
    return Now(second * SECOND, 3600 * second * SECOND, second * SECOND)


def test_an_alert_is_said_once_and_closed_when_it_is_over(tmp_path):
    book = Book(tmp_path / "alerts.jsonl")
    said = [book.note([found()] if 3 <= second < 20 else [], at(second)) for second in range(40)]
    told = [(second, one.id, one.state) for second, some in enumerate(said) for one in some]
    assert told == [(3, "a-1", "open"), (30, "a-1", "closed")]
    lines = [json.loads(line) for line in (tmp_path / "alerts.jsonl").read_text().splitlines()]
    assert [line["state"] for line in lines] == ["open", "closed"]
    assert lines[0] == {
        "id": "a-1", "at_us": 3 * SECOND, "project_us": 10_800 * SECOND, "kind": "drift", "subject": "genre",
        "state": "open", "text": "it has changed", "advice": "look", "evidence": {"psi": 0.7},
    }  # fmt: skip


def test_what_is_not_clear_keeps_an_alert_open_and_opens_none(tmp_path):
    book = Book(tmp_path / "alerts.jsonl")
    assert book.note([found(is_clear=False)], at(0)) == []
    assert len(book.note([found()], at(1))) == 1
    assert [book.note([found(is_clear=False)], at(second)) for second in range(2, 60)] == [[]] * 58


def test_what_nobody_looked_at_is_not_over(tmp_path):
    book = Book(tmp_path / "alerts.jsonl")
    book.note([found()], at(0))
    assert [book.note([], at(second), is_whole=False) for second in range(1, 60)] == [[]] * 59
    assert [one.kind for one in book.standing] == ["drift"]
    assert [one.state for one in book.note([], at(70))] == ["closed"]


def test_a_subject_of_its_own_is_an_alert_of_its_own(tmp_path):
    book = Book(tmp_path / "alerts.jsonl")
    said = book.note([found(), found(subject="country"), found(kind="skew")], at(0))
    assert [(one.id, one.kind, one.subject) for one in said] == [
        ("a-1", "drift", "genre"), ("a-2", "drift", "country"), ("a-3", "skew", "genre"),
    ]  # fmt: skip


def test_a_restarted_watcher_goes_on_with_what_is_open(tmp_path):
    path = tmp_path / "alerts.jsonl"
    Book(path).note([found(), found(kind="skew")], at(0))
    book = Book(path)
    assert book.note([found()], at(5)) == []
    assert [(one.id, one.state) for one in book.note([found()], at(16))] == [("a-2", "closed")]
    assert [(one.id, one.state) for one in book.note([], at(27))] == [("a-1", "closed")]
    assert [one.id for one in book.note([found()], at(28))] == ["a-3"]
    assert [(one.id, one.state) for one in read_alerts(path)] == [("a-1", "closed"), ("a-2", "closed"), ("a-3", "open")]


def test_a_line_that_a_kill_has_torn_is_passed_over(tmp_path):
    path = tmp_path / "alerts.jsonl"
    Book(path).note([found()], at(0))
    with path.open("ab") as file:
        file.write(b'{"id":"a-2","at_us"')
    assert [one.id for one in read_alerts(path)] == ["a-1"]
    assert [one.id for one in Book(path).note([found(subject="country")], at(1))] == ["a-2"]
    assert [one.id for one in read_alerts(path)] == ["a-1", "a-2"]
    assert [one.id for one, _ in read_lines(path, path.read_bytes().rindex(b'{"id":"a-2"'))] == ["a-2"]


def test_no_file_has_no_alerts(tmp_path):
    assert read_alerts(tmp_path / "alerts.jsonl") == []
    assert "srm" in KINDS
