"""The seeds are fixed, so that no statistical assert here can raise a false alarm."""

import hashlib
import itertools
import math
import statistics
from collections import Counter, defaultdict
from datetime import datetime

import msgspec
import pytest

from headrace.base.errors import CallError
from headrace.events.event import read_envelope, read_properties
from headrace.events.taxonomy import TAXONOMY
from headrace.events.world import BORN_US, DAY, HOUR, SECOND, Delivery, Faults, Habits, World, encode

WEEK_US = 7 * DAY


@pytest.fixture(scope="module")
def world():
    return World(7)


@pytest.fixture(scope="module")
def week(world):
    return list(world.traffic(BORN_US, BORN_US + WEEK_US))


@pytest.fixture(scope="module")
def deliveries(world, week):
    return list(world.deliver(week))


def _us(text):
    return round(datetime.fromisoformat(text).timestamp() * 1000) * 1000


def _is(event, name):
    return name in {event.event, event.type}


def _bytes(visits):
    return [encode(Delivery(visit.at_us, visit.visitor, visit.events, "")) for visit in visits]


def _all_sent(deliveries):
    return [event for delivery in deliveries for event in delivery.events]


def test_world_gives_the_same_bytes_for_the_same_seed_on_any_machine():
    world = World(20261121, visitors=300)
    digest = hashlib.sha256()
    deliveries = itertools.islice(world.deliver(world.traffic(BORN_US, BORN_US + 2 * DAY)), 3000)
    for delivery in deliveries:
        digest.update(b"%d %d " % (delivery.at_us, delivery.visitor) + encode(delivery))
    assert digest.hexdigest() == "b9bcd9265bb216de866462d563daa4a10670783cebfe92add737fc772c237f83"


def test_visit_depends_on_neither_order_nor_what_was_asked_before(week):
    world = World(7)
    some = [week[i] for i in (900, 3, 511, 3, 77)]
    again = [visit._replace(events=world.visit(visit.visitor, at_us=visit.at_us)) for visit in some]
    assert _bytes(again) == _bytes(some)


def test_another_seed_gives_another_world(week):
    other = list(World(8).traffic(BORN_US, BORN_US + DAY))
    assert not {visit.events[0].anonymous_id for visit in other} & {visit.events[0].anonymous_id for visit in week}
    assert [visit.at_us for visit in other] != [visit.at_us for visit in week[: len(other)]]


def test_traffic_of_two_stretches_equals_traffic_over_both(week):
    world = World(7)
    middle = BORN_US + 2 * DAY + 1234 * SECOND
    parts = [*world.traffic(BORN_US, middle), *world.traffic(middle, BORN_US + 3 * DAY)]
    assert _bytes(parts) == _bytes(visit for visit in week if visit.at_us < BORN_US + 3 * DAY)


def test_traffic_is_in_the_order_of_time(week):
    assert week == sorted(week, key=lambda visit: (visit.at_us, visit.visitor))
    assert week[0].at_us >= BORN_US
    assert week[-1].at_us < BORN_US + WEEK_US


def test_each_event_has_an_id_of_its_own(week):
    ids = [event.message_id for visit in week for event in visit.events]
    assert len(ids) > 100_000
    assert len(set(ids)) == len(ids)


def test_visitors_never_change_their_anonymous_id(world, week):
    seen = defaultdict(set)
    for visit in week:
        seen[visit.visitor].update(event.anonymous_id for event in visit.events)
    assert {len(ids) for ids in seen.values()} == {1}
    assert len(set.union(*seen.values())) == len(seen)
    assert seen[5] == {world.visitor(5).anonymous_id}


def test_client_times_of_a_visitor_never_run_backwards(week):
    last = {}
    for visit in week:
        for event in visit.events:
            assert event.timestamp >= last.get(visit.visitor, "")
            last[visit.visitor] = event.timestamp


def test_every_event_is_read_by_its_type(week):
    names = Counter()
    for visit in week[:3000]:
        for event in visit.events:
            envelope = read_envelope(msgspec.json.encode(event))
            assert (envelope.message_id, envelope.user_id) == (event.message_id, event.user_id)
            names[envelope.event or envelope.type] += 1
            if envelope.type == "track":
                properties = read_properties(envelope.event, envelope.properties)
                assert isinstance(properties, TAXONOMY[envelope.event])
                assert msgspec.json.decode(msgspec.json.encode(properties)) == msgspec.to_builtins(event.properties)
    assert set(names) == {
        "page",
        "screen",
        "identify",
        "Utterance Heard",
        "Product List Viewed",
        "Product Clicked",
        "Video Playback Started",
        "Video Content Playing",
        "Video Playback Completed",
    }


def test_policy_is_asked_for_each_list_and_obeyed(world):
    asked = []

    def policy(visitor, at_us):
        asked.append((visitor, at_us))
        return ["item-005", "item-001", f"item-{len(asked):03}"]

    lists = []
    for visit in world.traffic(BORN_US, BORN_US + 3 * HOUR, policy=policy):
        person = world.visitor(visit.visitor)
        for event in visit.events:
            if _is(event, "Product List Viewed"):
                lists.append((visit.visitor, _us(event.timestamp) - person.skew_us))
                products = event.properties["products"]
                assert [product.product_id for product in products] == ["item-005", "item-001", f"item-{len(lists):03}"]
                assert [product.position for product in products] == [1, 2, 3]
            if _is(event, "Product Clicked"):
                assert event.properties["product_id"] == products[event.properties["position"] - 1].product_id
    assert [visitor for visitor, _ in asked] == [visitor for visitor, _ in lists]
    waits = [viewed_us - asked_us for (_, asked_us), (_, viewed_us) in zip(asked, lists, strict=True)]
    assert min(waits) >= SECOND
    assert max(waits) <= 2 * SECOND
    assert len(lists) > 50


def test_policy_that_shows_what_does_not_exist_is_told_so(world):
    with pytest.raises(CallError, match=r"World\(7\) has no product 'item-24O', only 240 others. Did you mean item-2"):
        world.visit(4, at_us=BORN_US, policy=lambda _visitor, _at_us: ["item-24O"])


def test_own_policy_shows_distinct_items_and_popular_ones_first(world):
    shown = [world.popular(visitor, BORN_US) for visitor in range(2000)]
    assert {len(set(products)) for products in shown} == {10}
    weights = {item.product_id: item.weight for item in world.items}
    first, last = (statistics.mean(weights[products[place]] for products in shown) for place in (0, -1))
    assert first > 1.2 * last
    assert World(7, items=3).popular(0, 0) == World(7, items=3).popular(0, 0)
    assert sorted(World(7, items=3).popular(0, 0)) == ["item-000", "item-001", "item-002"]


def test_heartbeats_are_ten_seconds_apart_and_play_on(week):
    beats = defaultdict(list)
    started, ended = {}, {}
    for visit in week:
        for event in visit.events:
            if _is(event, "Video Playback Started"):
                started[event.properties["session_id"]] = event
            elif _is(event, "Video Content Playing"):
                beats[event.properties["session_id"]].append(event)
            elif _is(event, "Video Playback Completed"):
                ended[event.properties["session_id"]] = event
    assert len(beats) > 5000
    assert set(beats) <= set(started) == set(ended)
    for session, events in beats.items():
        times = [_us(started[session].timestamp), *(_us(event.timestamp) for event in events)]
        assert {after - before for before, after in itertools.pairwise(times)} == {10 * SECOND}
        assert [event.properties["position"] for event in events] == [10 * i for i in range(1, len(events) + 1)]
        assert events[-1].properties["position"] <= events[-1].properties["total_length"]
        assert {event.properties["asset_id"] for event in events} == set(
            started[session].properties["content_asset_ids"]
        )
    lengths = [len(events) for events in beats.values()]
    assert 5 < statistics.mean(lengths) < 7.5


def test_activity_is_log_normal():
    world = World(3, visitors=20_000)
    logs = sorted(math.log(rate) for rate in world.activity)
    normal = statistics.NormalDist(math.log(2) - 0.18, 0.6)
    distance = max(abs(normal.cdf(value) - (i + 0.5) / len(logs)) for i, value in enumerate(logs))
    assert distance < 2 / math.sqrt(len(logs))
    assert statistics.mean(world.activity) == pytest.approx(2, rel=0.02)


def test_visitors_come_as_often_as_their_activity_says():
    world = World(3, visitors=500)
    visits = Counter(visitor for _, visitor in world.schedule(BORN_US, BORN_US + 4 * WEEK_US))
    expected = {visitor: 28 * rate for visitor, rate in enumerate(world.activity)}
    assert sum(visits.values()) == pytest.approx(sum(expected.values()), rel=0.02)
    deviations = [(visits[visitor] - mean) / math.sqrt(mean) for visitor, mean in expected.items()]
    assert abs(statistics.mean(deviations)) < 0.2
    assert 0.8 < statistics.stdev(deviations) < 1.1


def test_traffic_has_prime_time_and_weekends(week):
    hours = Counter(visit.at_us // HOUR % 24 for visit in week)
    days = Counter((visit.at_us - BORN_US) // DAY for visit in week)
    assert hours[20] > 5 * hours[4]
    assert days[5] > 1.1 * days[1]


def test_nobody_is_in_two_visits_at_once(world, week):
    until = {}
    for visit in week:
        assert visit.at_us >= until.get(visit.visitor, 0)
        until[visit.visitor] = _us(visit.events[-1].timestamp) - world.visitor(visit.visitor).skew_us


def test_login_happens_once_and_lasts(world, week):
    logins = Counter()
    known = {}
    for visit in week:
        for event in visit.events:
            if event.type == "identify":
                logins[visit.visitor] += 1
                known[visit.visitor] = event.user_id
            assert event.user_id == known.get(visit.visitor)
    with_account = sum(world.visitor(number).user_id is not None for number in range(world.num_visitors))
    assert set(logins.values()) == {1}
    assert with_account * 0.9 < len(logins) <= with_account
    assert len(set(known.values())) == len(known)


def test_shares_of_the_audience_are_as_stated():
    world = World(11, visitors=4000)
    audience = [world.visitor(number) for number in range(world.num_visitors)]
    people = [visitor for visitor in audience if not visitor.bot]
    for found, of, share in (
        (len(audience) - len(people), len(audience), 0.03),
        (sum(visitor.phone for visitor in people), len(people), 0.45),
        (sum(visitor.user_id is not None for visitor in people), len(people), 0.4),
        (sum(visitor.skew_us != 0 for visitor in audience), len(audience), 0.08),
    ):
        assert abs(found - of * share) < 5 * math.sqrt(of * share * (1 - share))
    assert all(10 * SECOND <= abs(visitor.skew_us) <= DAY for visitor in audience if visitor.skew_us)
    assert len({visitor.address for visitor in audience}) == len(audience)


def test_bots_see_many_lists_and_click_nothing(world, week):
    bots = [visit for visit in week if world.visitor(visit.visitor).bot]
    assert len(bots) > 100
    for visit in bots:
        assert "bot" in world.visitor(visit.visitor).user_agent.lower()
        assert {event.event or event.type for event in visit.events} == {"page", "Product List Viewed"}
        assert 11 <= len(visit.events) <= 41
    people = {world.visitor(visit.visitor).user_agent for visit in week} - {
        world.visitor(visit.visitor).user_agent for visit in bots
    }
    assert len(people) > 5
    assert not [agent for agent in people if "bot" in agent.lower()]


def test_phones_send_screens_and_others_pages(world, week):
    for visit in week:
        assert visit.events[0].type == ("screen" if world.visitor(visit.visitor).phone else "page")
        assert visit.events[0].name == "Home"


def test_deliveries_come_in_the_order_of_arrival_and_bring_everything(week, deliveries):
    arrivals = [delivery.at_us for delivery in deliveries]
    assert arrivals == sorted(arrivals)
    made = {event.message_id for visit in week for event in visit.events}
    assert {event.message_id for event in _all_sent(deliveries)} == made
    assert max(len(delivery.events) for delivery in deliveries) <= 20


def test_sent_at_is_honest_so_that_clocks_can_be_corrected(world, deliveries):
    for delivery in deliveries:
        skew_us = world.visitor(delivery.visitor).skew_us
        latency_us = delivery.at_us - (_us(delivery.sent_at) - skew_us)
        assert 20_000 <= latency_us <= 301_000
        assert all(event.timestamp <= delivery.sent_at for event in delivery.events)


def test_a_stated_share_arrives_twice_with_the_same_ids(deliveries):
    times = Counter(delivery.events[0].message_id for delivery in deliveries)
    repeats = sum(number - 1 for number in times.values())
    expected = 0.01 * len(deliveries)
    assert abs(repeats - expected) < 5 * math.sqrt(expected)


def test_a_stated_share_of_phone_visits_arrives_hours_late(world, week, deliveries):
    begun = {event.message_id: visit.at_us for visit in week for event in visit.events}
    late = {
        begun[delivery.events[0].message_id]
        for delivery in deliveries
        if delivery.at_us - begun[delivery.events[0].message_id] > HOUR
    }
    phones = sum(world.visitor(visit.visitor).phone for visit in week)
    assert abs(len(late) - 0.06 * phones) < 5 * math.sqrt(0.06 * phones)
    assert max(d.at_us - begun[d.events[0].message_id] for d in deliveries) < 12.6 * HOUR


def test_some_deliveries_are_overtaken_and_without_faults_none_is(world, week, deliveries):
    def overtaken(arrivals):
        last, found = {}, 0
        for delivery in arrivals:
            first = delivery.events[0].timestamp
            found += first < last.get(delivery.visitor, "")
            last[delivery.visitor] = max(first, last.get(delivery.visitor, ""))
        return found

    assert 0.01 < overtaken(deliveries) / len(deliveries) < 0.08
    clean = list(world.deliver(week, faults=Faults(late=0, duplicate=0, out_of_order=0)))
    assert overtaken(clean) == 0
    assert len(_all_sent(clean)) == sum(len(visit.events) for visit in week)


def test_encoded_delivery_is_a_segment_batch(deliveries):
    delivery = deliveries[10]
    body = msgspec.json.decode(encode(delivery))
    assert set(body) == {"batch", "sentAt"}
    assert body["batch"][0]["messageId"] == delivery.events[0].message_id
    assert body["batch"][0]["context"]["library"]["name"] in {"analytics.js", "analytics-kotlin"}


def test_habits_change_the_world():
    quiet = World(7, habits=Habits(bots=0, utterances=0, click=0, slots=3))
    events = [event for visit in quiet.traffic(BORN_US, BORN_US + DAY) for event in visit.events]
    assert {event.event or event.type for event in events} == {"page", "screen", "identify", "Product List Viewed"}
    assert {len(event.properties["products"]) for event in events if event.event} == {3}


def test_items_have_titles_and_genres(world):
    assert len({item.product_id for item in world.items}) == 240
    assert len({item.genre for item in world.items}) == 12
    assert len({item.title for item in world.items}) == 240
    assert {item.seconds % 10 for item in world.items} == {0}


@pytest.mark.parametrize("more", [{"visitors": 0}, {"items": 0}, {"genres": 0}, {"genres": 99}])
def test_impossible_world_is_refused(more):
    with pytest.raises(CallError, match=r"World\(7\): needs visitors, items and 1 to 20 genres"):
        World(7, **more)
