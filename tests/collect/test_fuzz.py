"""Whatever arrives at a running collector: never a 5xx, never a hang, and it still answers afterwards.

HEADRACE_FUZZ_EXAMPLES=20000 makes a soak of it, with new examples each time.
"""

from __future__ import annotations

import contextlib
import gzip
import json
import os
import re
import socket
import string
import time

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from running import project_toml, running

pytestmark = pytest.mark.slow

SOAK = os.environ.get("HEADRACE_FUZZ_EXAMPLES")
FUZZ = settings(
    max_examples=int(SOAK or 100),
    derandomize=not SOAK,
    deadline=None,
    suppress_health_check=list(HealthCheck),
    database=None,
)

PATHS = ("/v1/track", "/v1/batch", "/v1/b", "/batch", "/alias", "/v1/projects/dev/settings", "/live", "/metrics", "/")


@pytest.fixture(scope="module")
def up(tmp_path_factory):
    with running(tmp_path_factory.mktemp("fuzz"), toml=project_toml()) as found:
        pids = found.pids
        yield found
        assert found.post("/v1/track", {"messageId": "last"}).status == 200
        assert "last" in [click["value"].get("messageId") for click in found.read() if isinstance(click["value"], dict)]
        assert found.pids == pids, "no worker died"
        assert " failed" not in found.log.read_text(), "no request met a bug"


def talk(up, data, *, whole):
    """Returns all that the server says to `data`; it must answer or close in time."""
    with socket.create_connection(up.address, timeout=0.1) as wire:
        said = b""
        sent = whole
        started = time.monotonic()
        with contextlib.suppress(ConnectionResetError, BrokenPipeError):
            wire.sendall(data)
            while time.monotonic() - started < 10:
                try:
                    part = wire.recv(1 << 16)
                except TimeoutError:
                    if not sent:
                        # It waits for more, or for the next request: there is none.
                        wire.shutdown(socket.SHUT_WR)
                        sent = True
                    continue
                if not part:
                    return said
                said += part
        assert time.monotonic() - started < 10, f"neither an answer nor an end to {data[:200]!r}"
        return said


def check(up, data, *, whole=False):
    said = talk(up, data, whole=whole)
    statuses = [int(found) for found in re.findall(rb"HTTP/1\.1 (\d{3}) ", said)]
    assert all(status < 500 for status in statuses), (statuses, said[:500], data[:500])
    return statuses


def post(path, body, *headers):
    lines = [b"POST " + path.encode() + b" HTTP/1.1", b"Host: x", b"Connection: close"]
    lines += [b"Content-Length: " + str(len(body)).encode(), *headers]
    return b"\r\n".join([*lines, b"", b""]) + body


KEY = b"Authorization: Basic ZGV2Og=="

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters(), max_size=20),
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(st.text(max_size=10), inner, max_size=5),
    max_leaves=30,
)
names = st.sampled_from(
    ["anonymousId", "userId", "messageId", "writeKey", "sentAt", "context", "integrations", "batch", "type", "x"]
)
events = st.dictionaries(names, json_values, max_size=6) | json_values
batches = st.fixed_dictionaries(
    {"batch": st.lists(events, max_size=10) | json_values},
    optional=dict.fromkeys(("context", "integrations", "sentAt", "writeKey"), json_values),
)
documents = (batches | events).map(lambda value: json.dumps(value).encode())


@st.composite
def mutated(draw):
    """A batch of which some bytes were changed, lost or doubled."""
    data = bytearray(draw(documents))
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, len(data)))
        kind = draw(st.sampled_from(["insert", "cut", "double"]))
        if kind == "insert":
            data[at:at] = draw(
                st.sampled_from(
                    [
                        b'"',
                        b"\\",
                        b"[",
                        b"]",
                        b"{",
                        b"}",
                        b",",
                        b"NaN",
                        b"\\ud800",
                        b"\x00",
                        b"\xff",
                        b"1e999",
                        b"\xed\xa0\x80",
                        b"9" * 400,
                        b"[" * 600,
                    ]
                )
            )
        elif kind == "cut":
            del data[at : at + draw(st.integers(1, 20))]
        else:
            data[at:at] = data[at : at + draw(st.integers(1, 200))]
    return bytes(data)


bodies = st.binary(max_size=300) | documents | mutated() | documents.map(gzip.compress)


@FUZZ
@given(st.sampled_from(PATHS), bodies, st.sampled_from([b"", b"Content-Encoding: gzip", b"Content-Encoding: deflate"]))
def test_bodies(up, path, body, encoding):
    statuses = check(up, post(path, body, KEY, *filter(None, [encoding])), whole=True)
    assert len(statuses) == 1, "a whole request gets its answer"


HEADERS = (
    "authorization",
    "cookie",
    "origin",
    "host",
    "content-type",
    "content-encoding",
    "user-agent",
    "sec-ch-ua",
    "x-forwarded-for",
    "connection",
    "x-forwarded-proto",
    "upgrade",
    "expect",
    "transfer-encoding",
    "content-length",
    "access-control-request-headers",
    "te",
    "trailer",
    "range",
    "accept-encoding",
    "http2-settings",
)
header_names = st.sampled_from(HEADERS) | st.text(string.ascii_letters + "-_:; é", max_size=12)
header_values = (
    st.text(st.characters(max_codepoint=255), max_size=60).map(lambda text: text.encode("latin-1"))
    | st.binary(max_size=60)
    | st.sampled_from(
        [
            b"Basic \xff",
            b"Basic ZGV2",
            b"chunked",
            b"gzip, chunked",
            b"upgrade",
            b"h2c",
            b"websocket",
            b"close",
            b"keep-alive, upgrade",
            b"100-continue",
            b"-1",
            b"0",
            b"99999999999",
            b"1, 1",
            b"a" * 20_000,
            b"headrace_visitor=%ff%00;;=",
            b"headrace_visitor=" + b"%f0%9f" * 50,
        ]
    )
)


@FUZZ
@given(
    st.sampled_from(["GET", "POST", "OPTIONS", "HEAD", "PUT", "CONNECT", "TRACE", "get", "X" * 30, ""]),
    st.sampled_from(PATHS),
    st.lists(st.tuples(header_names, header_values), max_size=8),
    documents,
)
def test_headers(up, method, path, headers, body):
    lines = [f"{method} {path} HTTP/1.1".encode(), KEY, b"Content-Length: " + str(len(body)).encode()]
    lines += [name.encode() + b": " + value for name, value in headers]
    check(up, b"\r\n".join([*lines, b"", b""]) + body)


targets = (
    st.text(st.characters(max_codepoint=0x7FF), max_size=60)
    | st.text("/%?#&=:@.*;v1track\\ ", max_size=40)
    | st.text("0123456789abcdefABCDEF%u/", max_size=40).map(lambda text: "/v1/projects/" + text + "/settings")
    | st.text(max_size=20).map(lambda text: "/v1/track?writeKey=" + text)
    | st.integers(1, 20_000).map(lambda size: "/" + "a" * size)
)


@FUZZ
@given(st.sampled_from(["GET", "POST", "OPTIONS", "HEAD"]), targets, st.sampled_from(["1.1", "1.0", "2.0", "9", ""]))
def test_urls(up, method, target, version):
    line = f"{method} {target} HTTP/{version}\r\n".encode("utf-8", "replace")
    check(up, line + b"Host: x\r\nConnection: close\r\n" + KEY + b"\r\nContent-Length: 2\r\n\r\n{}")


whole = st.builds(post, st.sampled_from(PATHS), documents, st.just(KEY))


@FUZZ
@given(st.lists(whole | st.binary(max_size=200), min_size=1, max_size=4).map(b"".join), st.data())
def test_anything_on_the_wire(up, data, draw):
    start = draw.draw(st.integers(0, len(data) // 2))
    check(up, data[start : start + draw.draw(st.integers(0, len(data)))])


def test_the_fuzzed_server_answers_well_formed_requests_meanwhile(up):
    for number in range(20):
        assert up.post("/v1/track", {"n": number}).status == 200
