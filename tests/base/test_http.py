"""The HTTP foundation, spoken to over raw sockets: limits, deadlines, drain, and what is not HTTP."""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import http.client
import json
import re
import signal
import socket
import subprocess
import sys
import threading
import time
import zlib
from pathlib import Path

import pytest

from headrace.base.errors import CallError, RequestError
from headrace.base.http import Request, basic_user, inflate, is_loopback, listen
from running import wait_until

TIGHT = {
    "max_headers": 20,
    "max_header_bytes": 4096,
    "max_body_bytes": 10_000,
    "header_seconds": 0.5,
    "body_seconds": 0.7,
    "idle_seconds": 1,
    "max_connections": 40,
}


class Web:
    """The server of web.py in a process of its own."""

    def __init__(self, **limits):
        command = [sys.executable, str(Path(__file__).with_name("web.py")), json.dumps(limits)]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
        self.port = int(self.process.stdout.readline())

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.kill()
        self.process.wait()
        self.process.stdout.close()

    def connect(self):
        return Wire(self.port)

    def talk(self, *parts):
        with self.connect() as wire:
            for part in parts:
                wire.send(part)
            return wire.answer()

    def memory(self):
        """Returns the most memory that the server ever held, in bytes."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return int(re.search(r"VmHWM:\s+(\d+) kB", status)[1]) * 1024


class Wire:
    """One raw connection."""

    def __init__(self, port):
        self.socket = socket.create_connection(("127.0.0.1", port), timeout=5)
        self.buffer = b""

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.socket.close()

    def send(self, data):
        self.socket.sendall(data)

    def more(self):
        try:
            data = self.socket.recv(1 << 16)
        except ConnectionResetError:
            data = b""
        self.buffer += data
        return bool(data)

    def answer(self, *, head=False):
        """Returns status, headers and body of the next answer; status 0 if the server just closed."""
        while b"\r\n\r\n" not in self.buffer:
            if not self.more():
                return 0, {}, self.buffer
        top, _, self.buffer = self.buffer.partition(b"\r\n\r\n")
        lines = top.decode("latin-1").split("\r\n")
        headers = {k.lower(): v for k, _, v in (line.partition(": ") for line in lines[1:])}
        size = 0 if head else int(headers.get("content-length", 0))
        while len(self.buffer) < size:
            assert self.more(), "cut off inside an answer"
        body, self.buffer = self.buffer[:size], self.buffer[size:]
        return int(lines[0].split()[1]), headers, body

    def is_closed(self):
        """Waits for the end; returns whether nothing more was said."""
        return not self.more() and not self.buffer


@pytest.fixture(scope="module")
def web():
    with Web(**TIGHT) as server:
        yield server


def get(path, *headers):
    return "\r\n".join([f"GET {path} HTTP/1.1", "Host: x", *headers, "", ""]).encode()


def post(body, *headers, path="/echo"):
    lines = [f"POST {path} HTTP/1.1", "Host: x", f"Content-Length: {len(body)}", *headers, "", ""]
    return "\r\n".join(lines).encode() + body


def echoed(answer):
    status, _, body = answer
    assert status == 200, answer
    return json.loads(body)


def test_live_ready_and_metrics_answer(web):
    status, headers, body = web.talk(get("/live"))
    assert (status, json.loads(body), headers["content-type"]) == (200, {"live": True}, "application/json")
    status, _, body = web.talk(get("/ready"))
    assert (status, json.loads(body)) == (200, {"ready": True, "reasons": []})
    status, headers, body = web.talk(get("/metrics"))
    assert (status, headers["content-type"]) == (200, "text/plain; version=0.0.4")
    assert body.startswith(b"# HELP up")


@pytest.mark.parametrize(
    ("path", "status", "name", "retry"),
    [
        ("/errors/overloaded", 429, "OverloadedError", "1"),
        ("/errors/unavailable", 503, "UnavailableError", "1"),
        ("/errors/fenced", 500, "FencedError", None),
        ("/errors/teapot", 418, "RequestError", None),
        ("/errors/bug", 500, "InternalError", None),
        ("/nowhere", 404, "RequestError", None),
    ],
)
def test_an_error_is_json_with_its_name_and_says_when_to_come_again(web, path, status, name, retry):
    found, headers, body = web.talk(get(path))
    assert (found, json.loads(body)["error"], headers.get("retry-after")) == (status, name, retry)
    assert "bug" not in json.loads(body)["message"], "the inside of a bug is not the client's business"


def test_head_is_answered_as_get_without_the_body(web):
    with web.connect() as wire:
        # Twice on one connection: a body that is sent all the same would be read as the second answer.
        for _ in range(2):
            wire.send(get("/live").replace(b"GET", b"HEAD"))
            status, headers, _ = wire.answer(head=True)
            assert (status, headers["content-length"]) == (200, "13")


def test_an_unknown_path_is_quoted_in_the_answer(web):
    _, _, body = web.talk(get("/nowhere?a=1"))
    assert json.loads(body)["message"] == "nothing answers GET '/nowhere'"


def test_trailers_of_a_chunked_body_are_no_headers(web):
    head = b"POST /echo HTTP/1.1\r\nUser-Agent: a\r\nTransfer-Encoding: chunked\r\n\r\n"
    trailers = b"User-Agent: b\r\nAuthorization: Basic YW5uOg==\r\n\r\n"
    with web.connect() as wire:
        wire.send(head + b"2\r\nhi\r\n0\r\n" + trailers + post(b"next", "User-Agent: c"))
        first, second = echoed(wire.answer()), echoed(wire.answer())
    assert (first["agent"], first["user"], first["length"]) == ("a", "", 2)
    assert (second["agent"], second["length"]) == ("c", 4)


# Limits.


@pytest.mark.parametrize(
    ("name", "request_bytes", "status"),
    [
        ("too many headers", get("/live", *[f"X-{n}: 1" for n in range(100_000)]), 431),
        ("too long a header", get("/live", "X: " + "a" * 100_000), 431),
        ("too many header bytes", get("/live", *[f"X-{n}: {'a' * 400}" for n in range(15)]), 431),
        ("too long a URL", get("/" + "a" * 100_000), 431),
        ("too long a query", get("/live?" + "a" * 5_000), 431),
        ("too large a body", post(b"x" * 10_001), 413),
        ("a body announced too large", b"POST /echo HTTP/1.1\r\nContent-Length: 99999999999\r\n\r\n", 413),
        (
            "a body announced too large to one who waits",
            b"POST /echo HTTP/1.1\r\nContent-Length: 99999999999\r\nExpect: 100-continue\r\n\r\n",
            413,
        ),
        (
            "chunks that become too large",
            b"POST /echo HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n" + (b"400\r\n" + b"x" * 1024 + b"\r\n") * 10,
            413,
        ),
        (
            "too many trailers",
            b"POST /echo HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n" + b"X: 1\r\n" * 1000 + b"\r\n",
            431,
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_is_too_much_is_refused_and_cut_off(web, name, request_bytes, status):
    with web.connect() as wire:
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            wire.send(request_bytes)
        found, headers, body = wire.answer()
        assert (found, headers["connection"]) == (status, "close"), name
        assert json.loads(body)["error"] == "RequestError"
        assert wire.is_closed()
    assert web.talk(get("/live"))[0] == 200


def test_what_is_just_within_the_limits_is_served(web):
    assert echoed(web.talk(post(b"x" * 10_000)))["length"] == 10_000
    assert web.talk(get("/live", *[f"X-{n}: 1" for n in range(19)]))[0] == 200
    assert web.talk(get("/live", *[f"X-{n}: 1" for n in range(20)]))[0] == 431


def test_a_header_that_never_ends_takes_no_memory():
    with Web(max_header_bytes=4096, header_seconds=30.0) as server, server.connect() as wire:
        before = server.memory()
        wire.send(b"GET /live HTTP/1.1\r\nX: ")
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            for _ in range(100):
                wire.send(b"a" * 1_000_000)
        assert wire.answer()[0] == 431
        assert server.memory() - before < 16 << 20


def test_a_long_body_before_the_next_request_is_no_long_header(web):
    with web.connect() as wire:
        first, second = post(b"x" * 9_000), get("/live")
        wire.send(first[:50])
        wire.send(first[50:] + second[:10])
        assert echoed(wire.answer())["length"] == 9_000
        wire.send(second[10:])
        assert wire.answer()[0] == 200


def test_more_connections_than_allowed_are_told_to_come_again():
    with Web(max_connections=3) as server, contextlib.ExitStack() as stack:
        held = [stack.enter_context(server.connect()) for _ in range(3)]
        for wire in held:
            wire.send(get("/live"))
            assert wire.answer()[0] == 200
        status, headers, _ = server.talk(get("/live"))
        assert (status, headers["retry-after"], headers["connection"]) == (503, "1", "close")
        held[0].socket.close()
        wait_until(lambda: server.talk(get("/live"))[0] == 200, seconds=5)


def test_more_body_than_allowed_in_all_is_told_to_come_again():
    half = b"POST /echo HTTP/1.1\r\nHost: x\r\nContent-Length: 9000\r\n\r\n" + bytes(5000)
    with Web(max_open_body_bytes=14_000) as server, contextlib.ExitStack() as stack:
        held = [stack.enter_context(server.connect()) for _ in range(2)]
        for wire in held:
            wire.send(half)
        third = stack.enter_context(server.connect())
        third.send(half)
        status, headers, _ = third.answer()
        assert (status, headers["retry-after"]) == (503, "1")
        third.socket.close()
        held[0].send(bytes(4000))
        assert held[0].answer()[0] == 200
        held[1].socket.close()
        wait_until(lambda: server.talk(post(bytes(9000)))[0] == 200, seconds=5)


# Deadlines.


def ended(wire):
    """Returns the status that a slow client was told, and after how long it was cut off."""
    started = time.monotonic()
    status, _, _ = wire.answer()
    assert wire.is_closed()
    return status, time.monotonic() - started


@pytest.mark.parametrize(
    ("sent", "status", "most_seconds"),
    [
        (b"", 0, 2.5),
        (b"POST /ec", 408, 2.5),
        (b"POST /echo HTTP/1.1\r\nHost: x\r\n", 408, 2.5),
        (b"POST /echo HTTP/1.1\r\nContent-Length: 100\r\n\r\n", 408, 2.5),
        (b"POST /echo HTTP/1.1\r\nContent-Length: 100\r\n\r\nhalf of", 408, 2.5),
        (b"POST /echo HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhe", 408, 2.5),
        (b"POST /echo HTTP/1.1\r\nContent-Length: 100\r\nExpect: 100-continue\r\n\r\n", 100, 2.5),
    ],
    ids=["silent", "half a line", "half a head", "no body", "half a body", "half a chunk", "waits for 100"],
)
def test_a_half_sent_request_is_cut_off_in_time(web, sent, status, most_seconds):
    with web.connect() as wire:
        wire.send(sent)
        if status == 100:
            assert wire.answer()[0] == 100
            status = 408
        found, seconds = ended(wire)
        assert (found, seconds < most_seconds) == (status, True), seconds


@pytest.mark.parametrize(
    "sent",
    [
        get("/live", "X: " + "a" * 200),
        post(b"x" * 200),
        b"POST /echo HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n" + b"1\r\nx\r\n" * 50,
    ],
    ids=["head", "body", "chunks"],
)
def test_a_client_that_drips_gets_no_more_time(web, sent):
    with web.connect() as wire:
        started = time.monotonic()
        wire.socket.settimeout(0.02)
        told = b""
        # Bodies begin with their head at once, so that it is the body that drips.
        head, mark, rest = sent.partition(b"\r\n\r\n")
        if rest:
            wire.send(head + mark)
            sent = rest
        for byte in sent:
            try:
                wire.send(bytes([byte]))
                told += wire.socket.recv(1000)
            except TimeoutError:
                continue
            except OSError:
                break
            if told:
                break
        assert told.startswith(b"HTTP/1.1 408 ")
        assert time.monotonic() - started < 1.5


def test_a_kept_connection_is_closed_when_idle_and_not_before(web):
    with web.connect() as wire:
        for _ in range(3):
            wire.send(get("/live"))
            assert wire.answer()[0] == 200
            time.sleep(0.3)
        started = time.monotonic()
        assert wire.is_closed()
        assert time.monotonic() - started < 2


def test_a_slow_answer_is_no_slow_request(web):
    assert web.talk(get("/slow?seconds=1.5"))[0] == 200


# What HTTP allows.


def test_pipelined_requests_are_answered_in_order(web):
    with web.connect() as wire:
        wire.send(get("/slow?seconds=0.2") + get("/echo?n=2") + post(b"three") + get("/nowhere") + get("/echo?n=5"))
        assert echoed(wire.answer())["path"] == "/slow"
        assert echoed(wire.answer())["query"] == {"n": "2"}
        assert echoed(wire.answer())["length"] == 5
        assert wire.answer()[0] == 404
        assert echoed(wire.answer())["query"] == {"n": "5"}


def test_a_body_may_come_in_chunks_and_in_any_cut(web):
    sent = (
        b"POST /echo HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n6;x=1\r\n world\r\n0\r\nT: 1\r\n\r\n"
    )
    for size in (1, 7, len(sent)):
        parts = [sent[at : at + size] for at in range(0, len(sent), size)]
        assert echoed(web.talk(*parts))["sha"] == hashlib.sha256(b"hello world").hexdigest()


def test_http_1_0_is_answered_and_closed(web):
    with web.connect() as wire:
        wire.send(b"POST /echo HTTP/1.0\r\nContent-Length: 2\r\n\r\nhi")
        assert echoed(wire.answer())["length"] == 2
        assert wire.is_closed()


def test_head_says_the_length_and_sends_no_body(web):
    with web.connect() as wire:
        wire.send(b"HEAD /echo HTTP/1.1\r\nHost: x\r\n\r\n" + get("/live"))
        status, headers, _ = wire.answer(head=True)
        assert (status, int(headers["content-length"]) > 0) == (200, True)
        assert wire.answer()[0] == 200


def test_connection_close_is_kept(web):
    with web.connect() as wire:
        wire.send(get("/live", "Connection: close"))
        status, headers, _ = wire.answer()
        assert (status, headers["connection"]) == (200, "close")
        assert wire.is_closed()


def test_expect_100_continue_is_told_to_go_on(web):
    with web.connect() as wire:
        wire.send(b"POST /echo HTTP/1.1\r\nContent-Length: 2\r\nExpect: 100-continue\r\n\r\n")
        assert wire.answer()[0] == 100
        wire.send(b"hi")
        assert echoed(wire.answer())["length"] == 2


H2C = (
    "Connection: Upgrade, HTTP2-Settings",
    "Upgrade: h2c",
    "HTTP2-Settings: AAEAAEAAAAIAAAABAAMAAABkAAQBAAAAAAUAAEAA",
)


def test_a_wish_for_http_2_keeps_the_body_and_the_connection(web):
    # Java's HttpClient sends this head with its first request.
    with web.connect() as wire:
        sent = post(b"hello", *H2C) + get("/echo?n=2", *H2C) + get("/echo?n=3")
        for at in range(0, len(sent), 9):
            wire.send(sent[at : at + 9])
        assert echoed(wire.answer())["sha"] == hashlib.sha256(b"hello").hexdigest()
        assert echoed(wire.answer())["query"] == {"n": "2"}
        assert echoed(wire.answer())["query"] == {"n": "3"}


def test_a_wish_for_http_2_knows_the_same_limits(web):
    assert web.talk(post(b"x" * 10_001, *H2C))[0] == 413
    assert web.talk(get("/live", *H2C, *[f"X-{n}: 1" for n in range(30)]))[0] == 431
    with web.connect() as wire:
        wire.send(post(b"x" * 100, *H2C)[:-50])
        assert ended(wire)[0] == 408


def test_many_wishes_in_one_packet_are_all_served(web):
    with web.connect() as wire:
        wire.send(get("/live", "Connection: close, Upgrade", "Upgrade: websocket"))
        assert wire.answer()[0] == 200
        assert wire.is_closed()
    with web.connect() as wire:
        wire.send(get("/live", "Connection: Upgrade", "Upgrade: h2c") * 1200)
        for _ in range(1200):
            assert wire.answer()[0] == 200


@pytest.mark.parametrize(
    ("line", "status"),
    [
        ("CONNECT a.example:443", 405),
        ("OPTIONS *", 404),
        ("GET http://a.example/live", 200),
        ("GET http://a.example", 400),
        ("GET /%zz%ff", 404),
        ("GET /%00", 404),
        ("GET //live", 404),
        ("GET /live/", 404),
        ("GET /%6Cive", 200),
        ("GET /ü", 400),
        ("GET ?", 400),
        ("BREW /live", 400),
        ("DELETE /live", 404),
        ("PRI *", 400),
    ],
)
def test_odd_request_lines_are_answered(web, line, status):
    assert web.talk(f"{line} HTTP/1.1\r\nHost: x\r\n\r\n".encode())[0] == status
    assert web.talk(get("/live"))[0] == 200


@pytest.mark.parametrize(
    "sent",
    [
        post(b"hello")[:-5].replace(b"Length: 5", b"Length: 2") + b"hello",
        b"POST /echo HTTP/1.1\r\nContent-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        b"POST /echo HTTP/1.1\r\nContent-Length: -2\r\n\r\n",
        b"POST /echo HTTP/1.1\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\nabc",
        b"POST /echo HTTP/1.1\r\nContent-Length: 99999999999999999999999\r\n\r\n",
        b"POST /echo HTTP/1.1\r\nTransfer-Encoding: gzip\r\n\r\n",
        b"POST /echo HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        b"GET /live HTTP/1.1\r\nA header without a colon\r\n\r\n",
        b"GET /live HTTP/1.1\r\nX: a\x00b\r\n\r\n",
        b"GET /live HTTP/7.3\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        b"\x00" * 100,
    ],
)
def test_what_is_not_http_is_400_and_cut_off(web, sent):
    with web.connect() as wire:
        wire.send(sent)
        assert wire.answer()[0] == 400
        assert wire.is_closed()


def test_a_client_that_leaves_costs_nothing(web):
    for sent in (b"POST /echo HTTP/1.1\r\nContent-Length: 9\r\n\r\nhalf", get("/slow?seconds=0.2"), b"GET", b""):
        with web.connect() as wire:
            wire.send(sent)
    assert web.talk(get("/live"))[0] == 200


# Packed bodies.


def test_gzip_and_deflate_bodies_are_unpacked(web):
    for name, packed in (
        ("gzip", gzip.compress(b"hello", mtime=0)),
        ("GZIP", gzip.compress(b"hello", mtime=0)),
        ("x-gzip", gzip.compress(b"hello", mtime=0)),
        ("deflate", zlib.compress(b"hello")),
        ("identity", b"hello"),
    ):
        assert echoed(web.talk(post(packed, f"Content-Encoding: {name}")))["length"] == 5


def test_a_zip_bomb_is_cut_off_and_takes_no_memory(web):
    bomb = zlib.compress(gzip_zeros := bytes(8 << 20), 9)
    assert len(bomb) < 10_000 < len(gzip_zeros)
    before = web.memory()
    for _ in range(20):
        status, _, body = web.talk(post(bomb, "Content-Encoding: deflate"))
        assert (status, "more than 1,048,576 bytes once unpacked" in json.loads(body)["message"]) == (400, True)
    assert web.memory() - before < 8 << 20


@pytest.mark.parametrize(
    ("body", "encoding", "status", "message"),
    [
        (gzip.compress(b"hello", mtime=0)[:-4], "gzip", 400, "the gzip body ends too early"),
        (b"", "gzip", 400, "the gzip body ends too early"),
        (b"hello", "gzip", 400, "the body is not gzip"),
        (
            gzip.compress(b"a", mtime=0) + gzip.compress(b"b", mtime=0),
            "gzip",
            400,
            "the gzip body goes on after its end",
        ),
        (b"hello", "br", 415, "content-encoding 'br' is not known. Use gzip, deflate or none"),
        (b"hello", "gzip, gzip", 415, "is not known"),
    ],
)
def test_a_body_that_cannot_be_unpacked_is_refused(body, encoding, status, message):
    with pytest.raises(RequestError, match=message) as caught:
        inflate(body, encoding, 100)
    assert caught.value.status == status


def test_inflate_knows_the_limit_to_the_byte():
    assert inflate(gzip.compress(b"x" * 100, mtime=0), "gzip", 100) == b"x" * 100
    with pytest.raises(RequestError, match="more than 100 bytes once unpacked"):
        inflate(gzip.compress(b"x" * 101, mtime=0), "gzip", 100)


# Small parts.


@pytest.mark.parametrize("value", [b"Basic !!!", b"Basic \xff\xfe", b"Basic /w==", b"Bearer abc", b"Basic", b""])
def test_an_authorization_that_is_none_is_nobody(value):
    assert basic_user(Request({"headers": [(b"authorization", value)]}, b"")) == ""


@pytest.mark.parametrize("value", [b"Basic d2s6", b"Basic d2s=", b"basic d2s6cGFzcw=="])
def test_basic_user_needs_no_colon_and_no_password(value):
    assert basic_user(Request({"headers": [(b"authorization", value)]}, b"")) == "wk"


def test_only_this_machine_is_loopback():
    for host in ("127.0.0.1", "127.3.2.1", "::1", "localhost"):
        assert is_loopback(host), host
    for host in ("0.0.0.0", "::", "10.0.0.1", "example.org", ""):
        assert not is_loopback(host), host


def test_listening_on_a_taken_port_says_so():
    with listen("127.0.0.1", 0) as first:
        port = first.getsockname()[1]
        with pytest.raises(CallError) as caught:
            listen("127.0.0.1", port)
    assert str(caught.value) == f"cannot listen on 127.0.0.1:{port}: Address already in use. Choose another port"


# Drain.


def test_sigterm_says_not_ready_first_then_finishes_what_runs():
    with Web(drain_seconds=5.0) as server:
        seen = []

        def look():
            try:
                while True:
                    status, _, body = server.talk(get("/ready"))
                    seen.append((status, tuple(json.loads(body)["reasons"]) if body else ()))
                    time.sleep(0.01)
            except OSError:
                seen.append("closed")

        with server.connect() as slow, server.connect() as idle:
            slow.send(get("/slow?seconds=1"))
            idle.send(get("/live"))
            assert idle.answer()[0] == 200
            watcher = threading.Thread(target=look)
            watcher.start()
            wait_until(lambda: seen)
            server.process.send_signal(signal.SIGTERM)
            assert idle.is_closed()
            status, headers, body = slow.answer()
            assert (status, headers["connection"], json.loads(body)["path"]) == (200, "close", "/slow")
        watcher.join(5)
        assert server.process.wait(5) == 0
    distinct = list(dict.fromkeys(seen))
    assert distinct[:2] == [(200, ()), (503, ("draining",))]
    assert distinct[-1] == "closed"


def test_a_drain_ends_at_its_deadline():
    with Web(drain_seconds=0.3) as server, server.connect() as wire:
        wire.send(get("/slow?seconds=30"))
        time.sleep(0.1)
        started = time.monotonic()
        server.process.send_signal(signal.SIGTERM)
        assert server.process.wait(5) == 0
        assert time.monotonic() - started < 1.0


def test_the_ordinary_client_of_python_is_served(web):
    connection = http.client.HTTPConnection("127.0.0.1", web.port, timeout=5)
    for number in range(3):
        connection.request(
            "POST", "/echo", iter([b"a" * 100] * number), {"Transfer-Encoding": "chunked"}, encode_chunked=True
        )
        answer = connection.getresponse()
        assert json.loads(answer.read())["length"] == 100 * number
    connection.close()
