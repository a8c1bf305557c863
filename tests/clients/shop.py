"""A shop's page on an origin of its own, with the browser SDK from its npm package."""

from __future__ import annotations

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

_PAGE = """\
<!doctype html>
<html lang="en">
<meta charset="utf-8">
<title>The shop</title>
<link rel="icon" href="data:,">
<style>body {{ font: 20px/1.6 sans-serif; margin: 40px; color: #223 }} code {{ background: #e4ecff }}</style>
<h1>Movies for you</h1>
<ol><li>The Headrace<li>Tailwater<li>Surge Tank</ol>
<p>You are <code id="visitor">nobody yet</code>.</p>
{script}
"""

# Segment's snippet form: calls are kept in an array until the SDK has come.
SNIPPET = """\
<script>
  var analytics = (window.analytics = window.analytics || [])
  for (const call of ["track", "page", "identify", "group", "screen", "alias", "ready"]) {{
    analytics[call] = (...rest) => analytics.push([call, ...rest])
  }}
  analytics._writeKey = "dev"
  analytics._cdn = "{door}"
  analytics._loadOptions = {options}
  analytics.page("Shop", "Home")
  analytics.ready(() => {{ document.all.visitor.textContent = analytics.user().anonymousId() }})
</script>
<script async src="/umd/standalone.js"></script>
"""

# The form of applications that bundle the npm package; here its own UMD bundle.
PACKAGE = """\
<script src="/umd/index.js"></script>
<script>
  const {{ AnalyticsBrowser }} = window.AnalyticsNext
  window.analytics = AnalyticsBrowser.load({{ writeKey: "dev", cdnURL: "{door}" }}, {options})
  window.analytics.page("Shop", "Home")
  window.analytics.ready(async () => {{
    document.all.visitor.textContent = (await window.analytics.user()).anonymousId()
  }})
</script>
"""

# The cookie that scripts can't read outlives what they store: the settings answer hands the visitor back.
REMEMBERED = """\
<script src="/umd/index.js"></script>
<script>
  window.analytics = new window.AnalyticsNext.AnalyticsBrowser()
  async function start() {{
    const answer = await fetch("{door}/v1/projects/dev/settings", {{ credentials: "include" }})
    const cdnSettings = await answer.json()
    if (cdnSettings.visitor) window.analytics.setAnonymousId(cdnSettings.visitor)
    window.analytics.load({{ writeKey: "dev", cdnSettings }}, {options})
    window.analytics.page("Shop", "Home")
    document.all.visitor.textContent = (await window.analytics.user()).anonymousId()
  }}
  start()
</script>
"""

FORMS = {"snippet": SNIPPET, "package": PACKAGE, "remembered": REMEMBERED}


class Shop:
    """The shop's server, on a free port of the loopback address."""

    def __init__(self, umd: Path) -> None:
        self._server = _Server(("127.0.0.1", 0), umd)
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,), name="shop")
        self._thread.start()

    @property
    def origin(self) -> str:
        """The origin of the shop's pages."""
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    def page(self, form: str, door: str, options: Any, *, update: str = "(settings) => settings") -> str:
        """Returns the address of a page that loads the SDK in one of its forms and points it at a door.

        `update` is the page's own function over the settings that it got.
        """
        chosen = f"{{ ...{json.dumps(options)}, updateCDNSettings: {update} }}"
        script = FORMS[form].format(door=door, options=chosen)
        return self.serve(script)

    def serve(self, script: str) -> str:
        """Returns the address of a page with the given HTML at its end."""
        path = f"/page-{len(self._server.pages)}"
        self._server.pages[path] = _PAGE.format(script=script).encode()
        return self.origin + path

    def close(self) -> None:
        """Stops the server."""
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False

    def __init__(self, address: tuple[str, int], umd: Path) -> None:
        super().__init__(address, _Pages)
        self.umd = umd
        self.pages: dict[str, bytes] = {}


class _Pages(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Server

    def do_GET(self) -> None:
        path = urlsplit(self.path).path
        file = self.server.umd / Path(path).name
        if path in self.server.pages:
            self._answer(200, "text/html; charset=utf-8", self.server.pages[path])
        elif path.startswith("/umd/") and file.is_file():
            self._answer(200, "text/javascript; charset=utf-8", file.read_bytes())
        elif path == "/favicon.ico":
            # Asked for after a page that isn't there, and noted in the console of whichever page is open by then.
            self._answer(204, "image/x-icon", b"")
        else:
            self._answer(404, "text/plain", b"no such page")

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the base class's name
        """Says nothing."""

    def _answer(self, status: int, kind: str, body: bytes) -> None:
        self.send_response(status)
        self.send_header("content-type", kind)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
