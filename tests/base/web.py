"""A server on our HTTP foundation, run by test_http.py as a process of its own.

python web.py '{"max_headers": 10, ...}'     prints its port, serves until SIGTERM
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import sys

from headrace.base.errors import FencedError, OverloadedError, RequestError, UnavailableError
from headrace.base.http import (
    App,
    Limits,
    Request,
    Response,
    Service,
    basic_user,
    inflate,
    json_response,
    listen,
    run,
    serve,
)

ERRORS = {
    "/errors/overloaded": OverloadedError("too much"),
    "/errors/unavailable": UnavailableError("nobody there"),
    "/errors/fenced": FencedError("somebody newer"),
    "/errors/teapot": RequestError(418, "short and stout"),
}


async def echo(request: Request) -> Response:
    """Says what arrived."""
    body = inflate(request.body, request.header(b"content-encoding"), 1 << 20)
    return json_response(
        {
            "method": request.method,
            "path": request.path,
            "query": request.query,
            "agent": request.header(b"user-agent"),
            "user": basic_user(request),
            "length": len(body),
            "sha": hashlib.sha256(body).hexdigest(),
        }
    )


async def slow(request: Request) -> Response:
    """Answers after a while."""
    await asyncio.sleep(float(request.query["seconds"]))
    return await echo(request)


async def fail(request: Request) -> Response:
    """Raises what the path asks for."""
    if request.path == "/errors/bug":
        raise ZeroDivisionError("a bug")
    raise ERRORS[request.path]


def main(limits: Limits, drain_seconds: float) -> None:
    app = App(
        {
            ("POST", "/echo"): echo,
            ("GET", "/echo"): echo,
            ("GET", "/slow"): slow,
            **{("GET", path): fail for path in (*ERRORS, "/errors/bug")},
        },
        metrics_text=lambda: "# HELP up Up.\n# TYPE up gauge\nup 1\n",
    )
    listener = listen("127.0.0.1", 0)
    port = listener.getsockname()[1]
    run(serve([Service(app, listener, limits)], drain_seconds=drain_seconds, ready=lambda: print(port, flush=True)))


if __name__ == "__main__":
    given = json.loads(sys.argv[1])
    drain = given.pop("drain_seconds", 2.0)
    main(Limits(**given), drain)
