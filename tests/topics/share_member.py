"""A member of a shared group, run by tests that kill and freeze it: copies each id once, in transactions."""

from __future__ import annotations

import sys
import time

from headrace.base.errors import FencedError, OutsideError
from headrace.topics import Move, Record, open_topics


def rebuild(topics, output, partition):
    """Returns the ids that were copied already."""
    bound = topics.bounds(output)[partition]
    seen, offset = set(), bound.start
    while messages := topics.read(output, {partition: offset}, max_records=10_000, wait_seconds=0):
        seen |= {message.value for message in messages}
        offset = messages[-1].offset + 1
    return seen


class Copy:
    """What a member knows of one partition."""

    def __init__(self, topics, share, output, partition):
        saved = share.saved(partition)
        self.partition = partition
        self.offset = saved.offset if saved else 0
        self.seen = rebuild(topics, output, partition)

    def step(self, output, messages):
        new = []
        for message in messages:
            if message.value not in self.seen:
                self.seen.add(message.value)
                new.append(Record(message.key, message.value, message.time_us, (("source", b"%d" % message.offset),)))
            self.offset = message.offset + 1
        return Move(self.partition, self.offset, {output: new})


def work(topics, share, source, output):
    """Copies until the share is lost."""
    copies = {}
    while True:
        held = share.held()
        for partition in copies.keys() - held:
            del copies[partition]
        for partition in held - copies.keys():
            copies[partition] = Copy(topics, share, output, partition)
            print(f"took {partition} at {copies[partition].offset}", flush=True)
        if not copies:
            time.sleep(0.02)
            continue
        offsets = {partition: copy.offset for partition, copy in copies.items()}
        started = time.monotonic()
        messages = topics.read(source, offsets, max_records=5000, wait_seconds=0.1)
        if messages:
            by_partition = {}
            for message in messages:
                by_partition.setdefault(message.partition, []).append(message)
            moves = [copies[partition].step(output, found) for partition, found in by_partition.items()]
            share.transact(moves, deadline_seconds=10)
        time.sleep(max(started + 0.1 - time.monotonic(), 0))


def main(url, source, output, member):
    topics = open_topics(url)
    while True:
        share = topics.share(source, "copiers", member=member, lease_seconds=6)
        try:
            work(topics, share, source, output)
        except (FencedError, OutsideError) as error:
            print(f"lost: {error}", flush=True)
        finally:
            share.close()


if __name__ == "__main__":
    main(*sys.argv[1:])
