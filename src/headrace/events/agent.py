"""What a user agent and its client hints say: device, operating system, browser, and whether it is a bot.

The names are the families of ua-parser. With `ua-parser[regex]` a new user agent costs 20 us, with plain `ua-parser`
0.2 to 5 ms; the first one ever costs 180 or 85 ms more, while the patterns are loaded.
"""

from __future__ import annotations

import re
from functools import cache, lru_cache
from typing import Final

import msgspec
from ua_parser import BestAvailableResolver, Device, Domain, PartialResult, Resolver, load_lazy_builtins

OTHER: Final = "Other"
"""What ua-parser calls that of which nothing is known."""

# Browsers inside apps send 450 characters. Plain ua-parser spends up to 8 ms on 512 and 130 ms on 10,000.
_MAX_TEXT = 512
_MAX_NAME = 64

# Chrome says `K` for every Android device, a web view says `wv`.
_NAMELESS = {"K", "wv"}
_SYSTEMS = {"macOS": "Mac OS X", "Chromium OS": "Chrome OS", "ChromeOS": "Chrome OS", "Unknown": ""}
_BROWSERS = {
    "Android WebView": "Chrome Mobile WebView",
    "Google Chrome": "Chrome",
    "Microsoft Edge": "Edge",
    "YaBrowser": "Yandex Browser",
}
# A frozen user agent says one of these for many browsers.
_VAGUE_BROWSERS = {OTHER, "Chrome", "Chrome Mobile"}

_brand = re.compile(r'"((?:[^"\\]|\\.){1,64})"\s*;\s*v=')
_grease = re.compile(r"[^a-z]*not[^a-z]*a[^a-z]*brand[^a-z]*", re.IGNORECASE)


class Agent(msgspec.Struct, frozen=True):
    """Who sent a request, as far as it says so itself."""

    device: str
    """`iPhone`, `Samsung SM-S921B`, `Mac`, `Generic Smartphone` ...; `Other` for PCs, servers and the unknown."""
    os: str
    browser: str
    bot: bool
    """Whether ua-parser knows it as a spider. SDKs of servers are none."""


def read_agent(user_agent: str, hints: str = "") -> Agent:
    """Returns what a user agent says, with the help of its request's hints, `name: value` on lines of their own.

    Hints count where a frozen user agent is vague. What says nothing is `Other` and no bot, the empty text too. Of
    longer texts the first 512 characters are read.

    >>> read_agent("Mozilla/5.0 (compatible; Googlebot/2.1; +http://www.google.com/bot.html)")
    Agent(device='Spider', os='Other', browser='Googlebot', bot=True)
    >>> read_agent("", 'sec-ch-ua-platform: "macOS"').os
    'Mac OS X'
    """
    return _read(user_agent[:_MAX_TEXT], hints[:_MAX_TEXT])


# 8 MB of usual user agents, at most 45 MB of hostile ones.
@lru_cache(maxsize=1 << 14)
def _read(user_agent: str, hints: str) -> Agent:
    parsed = _parse(_printable(user_agent))
    device = parsed.device or Device()
    system = parsed.os.family if parsed.os else OTHER
    browser = parsed.user_agent.family if parsed.user_agent else OTHER
    bot = device.family == "Spider"
    given = {} if bot else dict(line.partition(": ")[::2] for line in _printable(hints, keep="\n").split("\n"))
    return Agent(
        device=_name(_device(device, given.get("sec-ch-ua-mobile") == "?1")),
        os=_name(_system(system, given.get("sec-ch-ua-platform", ""))),
        browser=_name(_browser(browser, given.get("sec-ch-ua", ""))),
        bot=bot,
    )


@cache
def _resolver() -> Resolver:
    return BestAvailableResolver(load_lazy_builtins())


def _parse(user_agent: str) -> PartialResult:
    try:
        return _resolver()(user_agent, Domain.ALL)
    except ValueError:
        # Plain ua-parser refuses what names its device by blanks alone: `Android 14;  )`.
        return PartialResult(Domain.ALL, None, None, None, user_agent)


def _printable(text: str, *, keep: str = "") -> str:
    if text.isprintable():
        return text
    return "".join(letter if letter.isprintable() or letter in keep else " " for letter in text)


def _name(text: str) -> str:
    return text[:_MAX_NAME].strip() or OTHER


def _device(said: Device, mobile: bool) -> str:
    if said.family != OTHER and said.family not in _NAMELESS:
        return said.family
    if mobile or said.brand == "Generic_Android":
        return "Generic Smartphone"
    return "Generic Tablet" if said.brand == "Generic_Android_Tablet" else OTHER


def _system(said: str, platform: str) -> str:
    name = platform.strip('"')
    name = _SYSTEMS.get(name, name)
    # The platform is Linux where the user agent knows that it is Ubuntu or Tizen.
    return said if not name or (name == "Linux" and said != OTHER) else name


def _browser(said: str, brands: str) -> str:
    named = [brand for brand in _brand.findall(brands) if not _grease.fullmatch(brand)]
    if said not in _VAGUE_BROWSERS or not named:
        return said
    best = next((brand for brand in named if brand != "Chromium"), "Chromium")
    best = _BROWSERS.get(best, best)
    # `Chrome Mobile` says more than the brand of Chrome does.
    return said if best == "Chrome" and said != OTHER else best
