"""User agents and client hints, as real clients and hostile ones send them."""

import subprocess
import sys
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace.events.agent import Agent, read_agent
from headrace.events.world import _BOTS, _BROWSERS, _PHONES

GECKO = "AppleWebKit/537.36 (KHTML, like Gecko)"
WINDOWS = f"Mozilla/5.0 (Windows NT 10.0; Win64; x64) {GECKO} Chrome/142.0.0.0 Safari/537.36"
PHONE = f"Mozilla/5.0 (Linux; Android 10; K) {GECKO} Chrome/142.0.0.0 Mobile Safari/537.36"
TABLET = f"Mozilla/5.0 (Linux; Android 10; K) {GECKO} Chrome/142.0.0.0 Safari/537.36"
UBUNTU = "Mozilla/5.0 (X11; Ubuntu; Linux x86_64; rv:145.0) Gecko/20100101 Firefox/145.0"
OTHER = Agent("Other", "Other", "Other", bot=False)


def hints(*brands, mobile="?0", platform="Windows"):
    """Returns the lines that a browser of these brands makes the door write."""
    listed = ", ".join(f'"{brand}";v="142"' for brand in brands)
    return f'sec-ch-ua: {listed}\nsec-ch-ua-mobile: {mobile}\nsec-ch-ua-platform: "{platform}"'


def test_agents_of_the_world_are_told_apart():
    assert [read_agent(one) for one in (*_BROWSERS, *_PHONES)] == [
        Agent("Other", "Windows", "Chrome", bot=False),
        Agent("Mac", "Mac OS X", "Chrome", bot=False),
        Agent("Mac", "Mac OS X", "Safari", bot=False),
        Agent("Other", "Linux", "Firefox", bot=False),
        Agent("Other", "Windows", "Edge", bot=False),
        Agent("Samsung SMART-TV", "Tizen", "Safari", bot=False),
        Agent("iPhone", "iOS", "Mobile Safari", bot=False),
        Agent("Generic Smartphone", "Android", "Chrome Mobile", bot=False),
        Agent("Samsung SM-S921B", "Android", "Samsung Internet", bot=False),
    ]


@pytest.mark.parametrize(("user_agent", "name"), list(zip(_BOTS, ("Googlebot", "bingbot", "AhrefsBot"), strict=True)))
def test_bot_is_a_spider_whatever_it_hints(user_agent, name):
    assert read_agent(user_agent) == Agent("Spider", "Other", name, bot=True)
    assert read_agent(user_agent, hints("Google Chrome", mobile="?1")) == read_agent(user_agent)


@pytest.mark.parametrize(
    "user_agent",
    ["analytics-python/2.3.4", "analytics-node-next/latest", "analytics-java/3.4.0", "AnalyticsRuby/2.4.0", "node"],
)
def test_sdk_of_a_server_is_no_bot(user_agent):
    assert read_agent(user_agent) == OTHER


def test_what_says_nothing_is_other():
    assert read_agent("") == read_agent("?", "hi") == read_agent("", "\n:\nsec-ch-ua: ?1") == OTHER


@pytest.mark.parametrize(
    ("brands", "browser"),
    [
        (("Chromium", "Google Chrome", "Not?A_Brand"), "Chrome"),
        (("Not_A Brand", "Chromium", "Brave"), "Brave"),
        ((" Not A;Brand", "Microsoft Edge", "Chromium"), "Edge"),
        (("(Not(A:Brand", "Opera", "Chromium"), "Opera"),
        (("Not/A)Brand", "Chromium"), "Chromium"),
        (("Not)A;Brand",), "Chrome"),
        ((), "Chrome"),
    ],
)
def test_brands_name_the_browser_behind_a_frozen_user_agent(brands, browser):
    assert read_agent(WINDOWS, hints(*brands)) == Agent("Other", "Windows", browser, bot=False)


def test_brands_yield_to_a_user_agent_that_says_more():
    samsung, chrome = _PHONES[2], ("Chromium", "Google Chrome", "Not?A_Brand")
    assert read_agent(samsung, hints("Chromium", "Google Chrome")).browser == "Samsung Internet"
    assert read_agent(PHONE, hints(*chrome, platform="Android")).browser == "Chrome Mobile"
    assert read_agent("", hints(*chrome)).browser == "Chrome"


@pytest.mark.parametrize(
    ("user_agent", "platform", "system"),
    [
        (WINDOWS, "macOS", "Mac OS X"),
        (WINDOWS, "Chromium OS", "Chrome OS"),
        (WINDOWS, "Unknown", "Windows"),
        (WINDOWS, "", "Windows"),
        (UBUNTU, "Linux", "Ubuntu"),
        ("", "Linux", "Linux"),
    ],
)
def test_platform_names_the_system(user_agent, platform, system):
    assert read_agent(user_agent, hints(platform=platform)).os == system


def test_nameless_device_is_a_phone_or_a_tablet():
    assert read_agent(PHONE).device == "Generic Smartphone"
    assert read_agent(TABLET).device == "Generic Tablet"
    assert read_agent(TABLET, hints(mobile="?1")).device == read_agent("", hints(mobile="?1")).device
    assert read_agent(_PHONES[0], hints(mobile="?1")).device == "iPhone"


HOSTILE = [
    "Mozilla/5.0 (Linux; Android " + "1" * 10_000,
    "Mozilla/5.0 (Linux; " + "A;" * 5_000,
    "Mozilla/5.0 (Linux; U; Android 4; " + "-" * 10_000 + " Build",
    "\x00\n\r\x1b[2J" * 2_000,
    "Linux; Android 1; " + "SAMSUNG " * 1_500,
    "a/" * 5_000,
    " " * 10_000,
]


@pytest.mark.parametrize("text", HOSTILE)
def test_hostile_text_costs_little(text):
    read_agent("warm")
    started = time.process_time()
    agent = read_agent(text, "sec-ch-ua: " + '"' * 5_000)
    # 8 ms at the worst; of the whole text, 130 ms.
    assert time.process_time() - started < 0.1
    assert not agent.bot


def test_only_the_beginning_of_a_long_text_is_read():
    assert read_agent(f"{UBUNTU} {'x' * 10_000}") == read_agent(UBUNTU)
    assert read_agent(f"{'x' * 512} {UBUNTU}") == OTHER


def test_device_of_blanks_alone_is_no_error():
    assert read_agent("Mozilla/5.0 (Linux; Android 14;  ) Mobile").device == "Other"


@given(user_agent=st.text(max_size=60), brands=st.text(max_size=60), platform=st.text(max_size=60))
@settings(max_examples=50, deadline=None)
def test_any_text_gives_short_printable_names(user_agent, brands, platform):
    lines = f'sec-ch-ua: "{brands}";v="1"\nsec-ch-ua-platform: "{platform}"'
    agent = read_agent(f"Mozilla/5.0 (Linux; Android 14; {user_agent}) Mobile", lines)
    for name in (agent.device, agent.os, agent.browser):
        assert name.isprintable()
        assert 0 < len(name) <= 64


def test_patterns_are_loaded_at_the_first_call_only():
    code = (
        "import sys, headrace.events.agent as agent\n"
        "loaded = lambda: any('ua_parser_builtins' in name for name in sys.modules)\n"
        "print(loaded(), agent.read_agent('').os, loaded())"
    )
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert shown == "False Other True\n"
