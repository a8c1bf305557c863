"""Calls that may hang for good, given a deadline."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

from headrace.base.errors import DeadlineError, FormatError

T = TypeVar("T")


def within(seconds: float, what: str, call: Callable[[], T]) -> T:
    """Returns what `call` returns; raises DeadlineError when it has not come back in time.

    The call goes on in a daemon thread that nobody waits for, and may still take effect.
    """
    outcome: list[Any] = []
    failure: list[BaseException] = []

    def run() -> None:
        try:
            outcome.append(call())
        except BaseException as error:  # noqa: BLE001 - it crosses to the caller's thread, panics of Rust included
            failure.append(error)

    thread = threading.Thread(target=run, name=what, daemon=True)
    thread.start()
    thread.join(seconds)
    if failure:
        error = failure[0]
        if not isinstance(error, Exception):
            # A panic is no Exception, and would end a role that can say what is wrong.
            raise FormatError(f"{what}: {str(error)[:500]}") from error
        raise error
    if not outcome:
        raise DeadlineError(
            f"{what}: not done within {seconds:g} s. It may still happen: load the table again and look"
        )
    return outcome[0]  # type: ignore[no-any-return]


def ahead(items: Iterable[T]) -> Iterator[T]:
    """Yields the items, which are made in a thread of their own, at most eight ahead.

    The library reads with its runtime, and may not do so inside a write, which runs on the same one.
    """
    made: queue.Queue[tuple[T | None, BaseException | None]] = queue.Queue(maxsize=8)

    def run() -> None:
        try:
            for item in items:
                made.put((item, None))
            made.put((None, None))
        except BaseException as error:  # noqa: BLE001 - it crosses to the reader's thread
            made.put((None, error))

    threading.Thread(target=run, name="read ahead", daemon=True).start()
    while True:
        item, error = made.get()
        if error is not None:
            raise error
        if item is None:
            return
        yield item
