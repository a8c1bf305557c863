"""Chromium, driven over the W3C WebDriver protocol by Debian's own chromedriver: no library, no browser download."""

from __future__ import annotations

import base64
import contextlib
import http.client
import json
import os
import re
import shutil
import signal
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--window-size=900,640",
    # Nothing but the loopback address can be reached, whatever the page asks for.
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
)


class Browser:
    """One headless Chromium with an empty profile of its own."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._session = ""
        self._log = (folder / "chromedriver.log").open("wb")
        command = [str(shutil.which("chromedriver")), "--port=0"]
        self._driver = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=self._log, start_new_session=True)
        try:
            self._connection = http.client.HTTPConnection("127.0.0.1", self._read_port(), timeout=60)
            self._session = self._open_session()
        except BaseException:
            self.close()
            raise

    def open(self, url: str) -> None:
        """Goes to a page and waits until it is loaded."""
        self._ask("POST", "/url", {"url": url})

    def reload(self) -> None:
        """Loads the page again."""
        self._ask("POST", "/refresh", {})

    def run(self, script: str, *arguments: Any) -> Any:
        """Returns what a function body returns in the page; a promise is waited for."""
        return self._ask("POST", "/execute/sync", {"script": script, "args": list(arguments)})

    def cookies(self) -> dict[str, dict[str, Any]]:
        """Returns the cookies of the page's host by name, those hidden from scripts too."""
        return {cookie["name"]: cookie for cookie in self._ask("GET", "/cookie")}

    def delete_cookie(self, name: str) -> None:
        """Forgets one cookie."""
        self._ask("DELETE", f"/cookie/{name}")

    def screenshot(self, path: Path) -> Path:
        """Returns the PNG file that shows the page."""
        path.write_bytes(base64.b64decode(self._ask("GET", "/screenshot")))
        return path

    def requested_urls(self) -> list[str]:
        """Returns the URLs that the pages asked for since the last call, whether or not they were reached."""
        entries = self._ask("POST", "/se/log", {"type": "performance"})
        messages = [json.loads(entry["message"])["message"] for entry in entries]
        return [
            message["params"]["request"]["url"]
            for message in messages
            if message["method"] == "Network.requestWillBeSent"
        ]

    def close(self) -> None:
        """Ends Chromium and chromedriver."""
        if self._session:
            with contextlib.suppress(OSError, http.client.HTTPException, AssertionError):
                self._ask("DELETE", "")
            self._connection.close()
        # Its own process group: what chromedriver could not end ends here.
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._driver.pid, signal.SIGKILL)
        self._driver.wait()
        assert self._driver.stdout is not None
        self._driver.stdout.close()
        self._log.close()

    def _read_port(self) -> int:
        assert self._driver.stdout is not None
        for line in self._driver.stdout:
            found = re.search(rb"started successfully on port (\d+)", line)
            if found:
                return int(found[1])
        raise AssertionError("chromedriver did not start")

    def _open_session(self) -> str:
        options = {
            "binary": shutil.which("chromium"),
            "args": [*FLAGS, f"--user-data-dir={self._folder / 'profile'}"],
        }
        wanted = {"goog:chromeOptions": options, "goog:loggingPrefs": {"performance": "ALL"}}
        answer = self._ask("POST", "/session", {"capabilities": {"alwaysMatch": wanted}}, prefix="")
        return str(answer["sessionId"])

    def _ask(self, method: str, path: str, body: Any = None, *, prefix: str | None = None) -> Any:
        where = f"/session/{self._session}" if prefix is None else prefix
        data = None if body is None else json.dumps(body)
        self._connection.request(method, where + path, data, {"content-type": "application/json"})
        answer = self._connection.getresponse()
        found = json.loads(answer.read())["value"]
        assert answer.status == 200, f"{method} {path}: {found}"
        return found


def png_size(data: bytes) -> Sequence[int]:
    """Returns the width and height of a PNG."""
    assert data.startswith(b"\x89PNG\r\n\x1a\n")
    return int.from_bytes(data[16:20], "big"), int.from_bytes(data[20:24], "big")


def forget(browser: Browser, *cookies: str) -> None:
    """Clears what scripts may keep, and the named cookies beside."""
    for name in browser.cookies():
        if name in cookies or name.startswith("ajs_"):
            browser.delete_cookie(name)
    browser.run("localStorage.clear(); sessionStorage.clear()")
