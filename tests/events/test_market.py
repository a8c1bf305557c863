"""The seeds are fixed; a statistical assert says what its false alarm would be under any other."""

import math
import random
import statistics
from collections import Counter, defaultdict
from dataclasses import dataclass

import numpy as np
import pytest

from headrace.base.errors import CallError
from headrace.events.draws import Draws
from headrace.events.market import _draw_gamma
from headrace.events.world import BORN_US, DAY, HOUR, MINUTE, SECOND, Habits, PageShown, World

ALARM = 1e-8
"""False alarms of one comparison; a test makes at most a hundred, so that it raises none in 10^6 seeds."""


@pytest.fixture(scope="module")
def world():
    return World(7)


class Tally:
    """Clicks observed and expected."""

    def __init__(self):
        self.observed = self.expected = self.variance = 0.0

    def add(self, clicked, *chances):
        self.observed += clicked
        self.expected += sum(chances)
        self.variance += sum([chance * (1 - chance) for chance in chances])

    @property
    def fits(self):
        """Whether they agree, by Bernstein's inequality, which needs no limit theorem."""
        log = math.log(2 / ALARM)
        return abs(self.observed - self.expected) <= log / 3 + math.sqrt(log**2 / 9 + 2 * self.variance * log)


def _is(event, name):
    return name in {event.event, event.type}


def _at_random(world, slots=10):
    """Returns a policy that shows anything, the same at the same instant."""
    ids = [item.product_id for item in world.items]
    return lambda visitor, at_us: random.Random(visitor << 64 | at_us).sample(ids, slots)


def _pages(world, until_us, policy):
    """Yields each page as (visitor, instant, start of the visit, product ids, positions clicked)."""
    wanted = []

    def noted(visitor, at_us):
        wanted.append((at_us, policy(visitor, at_us)))
        return wanted[-1][1]

    for visit in world.traffic(BORN_US, until_us, policy=noted):
        clicked, place = defaultdict(set), -1
        for event in visit.events:
            place += _is(event, "Product List Viewed")
            if _is(event, "Product Clicked"):
                clicked[place].add(event.properties["position"])
        for place, (at_us, product_ids) in enumerate(wanted):
            yield visit.visitor, at_us, visit.at_us, product_ids, clicked[place]
        wanted.clear()


@pytest.mark.parametrize("num_pages", [6_000, pytest.param(100_000, marks=pytest.mark.soak)])
def test_clicks_agree_with_the_truth_by_position_and_group(num_pages):
    world = World(3, visitors=2_000, habits=Habits(beats=0, fatigue=0.1, visits_per_day=4))
    market, tallies = world.market, defaultdict(Tally)
    favourite = [int(market.taste(visitor).argmax()) for visitor in range(2_000)]
    busy = np.searchsorted(np.quantile(world.activity, (0.25, 0.5, 0.75)), world.activity).tolist()
    pages = _pages(world, BORN_US + 60 * DAY, _at_random(world))
    for _, (visitor, at_us, began_us, product_ids, clicked) in zip(range(num_pages), pages, strict=False):
        person = not world.visitor(visitor).bot
        chances = market.chances(visitor, product_ids, at_us=at_us, tired_us=at_us - began_us)
        if visitor % 8 == 0:
            assert world.expected_clicks(visitor, at_us, product_ids) == (math.fsum(chances) if person else 0)
        groups = [
            *(
                ("all", 0),
                ("genre", favourite[visitor]),
                ("busy", busy[visitor]),
                ("phone", world.visitor(visitor).phone),
            ),
            *(("minute", (at_us - began_us) // MINUTE), ("day", (at_us - BORN_US) // DAY // 3), ("person", person)),
        ]
        chances = chances if person else ()
        for group in groups:
            tallies[group].add(len(clicked), *chances)
        for position, chance in enumerate(chances, 1):
            tallies["position", position].add(position in clicked, chance)
    assert tallies["all", 0].observed > num_pages / 5
    assert {position for name, position in tallies if name == "position"} == set(range(1, 11))
    assert 30 < len(tallies) < 100
    assert not [group for group, tally in tallies.items() if not tally.fits]


def test_comparison_with_the_truth_notices_a_wrong_one():
    world = World(3, habits=Habits(beats=0, fatigue=0.3))
    rested, shifted = Tally(), Tally()
    for visitor, at_us, began_us, product_ids, clicked in _pages(world, BORN_US + 4 * DAY, _at_random(world)):
        if not world.visitor(visitor).bot:
            chances = world.market.chances(visitor, product_ids, at_us=at_us, tired_us=0)
            rested.add(len(clicked), *chances)
            chances = world.market.chances(visitor, product_ids[1:], at_us=at_us, tired_us=at_us - began_us)
            for position, chance in enumerate(chances, 2):
                shifted.add(position in clicked, chance)
    assert not rested.fits
    assert not shifted.fits


def test_truth_does_not_depend_on_the_order_of_asking():
    # Of so many titles fewer visitors are remembered at once than are asked for.
    asked = [(visitor, BORN_US + visitor * 7 * MINUTE) for visitor in range(600)]
    there, back = World(5, items=8_000), World(5, items=8_000)
    assert there.market.attractions.cache_info().maxsize < 600
    pages = [(visitor, at_us, there.popular(visitor, at_us)) for visitor, at_us in asked]
    first = [there.expected_clicks(*page) for page in pages]
    assert first == [back.expected_clicks(*page) for page in reversed(pages)][::-1]
    assert first[:50] == [there.expected_clicks(*page) for page in pages[:50]]
    assert there.true_ctr(pages) == back.true_ctr(reversed(pages))


def test_start_of_the_visit_is_told_from_visitor_and_instant(world):
    begun = defaultdict(list)
    for visit in world.traffic(BORN_US, BORN_US + 3 * DAY):
        begun[visit.visitor].append(visit.at_us)
        for after_us in (0, 1, MINUTE, 24 * MINUTE):
            assert world.visit_start(visit.visitor, visit.at_us + after_us) == visit.at_us
    for visitor, starts in begun.items():
        for start_us in starts:
            assert world.visit_start(visitor, start_us - 1) == start_us - 1
            assert world.visit_start(visitor, start_us + 29 * MINUTE + 1) == start_us + 29 * MINUTE + 1


def test_one_draw_is_the_same_alone_and_among_others():
    for seed in (0, 7, 2**63, -3):
        draws, numbers = Draws(seed), np.array([0, 1, 77, 2**40], np.uint64)
        assert [draws.uniform("slot", int(a), 490_000) for a in numbers] == draws.uniforms(
            "slot", numbers, 490_000
        ).tolist()
    normals = np.sort(Draws(7).normals("noise", np.arange(40_000, dtype=np.uint64), 3))
    expected = np.array([statistics.NormalDist().cdf(value) for value in normals])
    # Massart: the largest distance is above sqrt(log(2 / alarm) / 2n) with that chance at most.
    assert np.abs(expected - np.arange(40_000) / 40_000).max() < math.sqrt(math.log(2 / ALARM) / 80_000) + 1 / 40_000


def test_tastes_are_of_a_dirichlet_distribution():
    draw = random.Random(1).random
    portions = [_draw_gamma(0.3, draw) for _ in range(60_000)]
    assert statistics.mean(portions) == pytest.approx(0.3, abs=6 * math.sqrt(0.3 / 60_000))
    assert statistics.variance(portions) == pytest.approx(0.3, rel=0.1)
    # The density of a half and less, from the series of the incomplete gamma function.
    below = 0.1**0.3 / math.gamma(0.3) * sum((-0.1) ** k / (math.factorial(k) * (0.3 + k)) for k in range(9))
    assert sum(portion < 0.1 for portion in portions) / 60_000 == pytest.approx(below, abs=6 * 0.5 / math.sqrt(60_000))
    world = World(7)
    largest = [math.exp(world.market.taste(visitor).max()) / 12 for visitor in range(1000)]
    assert statistics.mean(largest) == pytest.approx(0.44, abs=0.03)


def test_taste_says_how_far_people_differ():
    def spread(habits):
        world = World(7, habits=habits)
        logits = np.array([world.market.attractions(visitor) for visitor in range(300)])
        return float((logits - logits.mean(axis=0)).std())

    assert spread(Habits(taste=0, noise=0)) == pytest.approx(0, abs=1e-12)
    assert spread(Habits(taste=0)) == pytest.approx(0.5, rel=0.02)
    assert spread(Habits(taste=1.0, noise=0)) == pytest.approx(2 * spread(Habits(taste=0.5, noise=0)))


def test_popular_titles_are_better_as_far_as_fame_says():
    def correlation(fame):
        world = World(7, items=3_000, habits=Habits(fame=fame, taste=0, noise=0))
        ranks = np.argsort(np.argsort([item.weight for item in world.items]))
        return float(np.corrcoef(ranks, world.market.attractions(0))[0, 1])

    assert abs(correlation(0)) < 0.1
    assert correlation(0.5) == pytest.approx(0.49, abs=0.08)
    assert correlation(1) > 0.97


def test_quality_drifts_from_day_to_day_and_not_away(world):
    day = [np.array(world.market.drift(BORN_US + day * DAY)) for day in range(1_001)]
    assert not day[0].any()
    assert list(world.market.drift(BORN_US - 5 * DAY)) == day[0].tolist()
    assert list(world.market.drift(BORN_US + 2 * DAY - 1)) == day[1].tolist()
    assert (day[1] - day[0]).std() == pytest.approx(0.05, rel=0.2)
    assert (day[9] - day[0]).std() == pytest.approx(0.14, rel=0.2)
    assert 0.2 < day[1000].std() < 0.3
    world, still = World(7), World(7, habits=Habits(drift=0))
    # Out of any visit, so that nobody is tired.
    page = [(visitor, BORN_US + 40 * DAY, world.popular(visitor, 0)) for visitor in range(20)]
    assert [world.expected_clicks(*one) for one in page] != [still.expected_clicks(*one) for one in page]


def test_visitors_tire_in_a_visit(world):
    start_us, visitor = next(
        (at_us, visitor) for at_us, visitor in world.schedule(BORN_US, BORN_US + DAY) if not world.visitor(visitor).bot
    )
    product_ids = world.popular(visitor, start_us)
    fresh = world.expected_clicks(visitor, start_us, product_ids)
    for minutes in (1, 7, 20):
        tired = world.expected_clicks(visitor, start_us + minutes * MINUTE, product_ids)
        assert tired == pytest.approx(fresh * math.exp(-0.03 * minutes))
    assert world.expected_clicks(visitor, start_us - 1, product_ids) == pytest.approx(fresh)


def test_bots_are_expected_to_click_nothing_and_do_not_count(world):
    bot = next(number for number in range(1000) if world.visitor(number).bot)
    person = next(number for number in range(1000) if not world.visitor(number).bot)
    page = world.popular(0, BORN_US)
    assert world.expected_clicks(bot, BORN_US, page) == 0
    assert world.true_ctr([(bot, BORN_US, page), (person, BORN_US, page)]) == world.true_ctr([(person, BORN_US, page)])
    for nothing in ([], [(bot, BORN_US, page)], [(person, BORN_US, [])]):
        with pytest.raises(CallError, match=r"World\(7\): there is no true CTR of pages that show no product"):
            world.true_ctr(nothing)


def test_truth_of_a_product_that_does_not_exist_is_refused(world):
    with pytest.raises(CallError, match=r"World\(7\) has no product 'item-24O', only 240 others. Did you mean"):
        world.expected_clicks(1, BORN_US, ["item-001", "item-24O"])


def test_extreme_habits_give_chances():
    page = [f"item-{number:03}" for number in range(240)]
    seen = math.fsum(position**-0.7 * (1 if position <= 10 else 1 / 3) for position in range(1, 241))
    for habits, least, most in (
        (Habits(click=0), 0, 1e-99),
        (Habits(click=1), seen * 0.999999, seen),
        (Habits(taste=1e9, noise=1e9), 0.1 * seen, 0.9 * seen),
        (Habits(fatigue=1e9), 0, seen),
    ):
        assert least <= World(7, habits=habits).expected_clicks(1, BORN_US, page) <= most
    assert World(7, items=2).expected_clicks(1, BORN_US, ["item-000"] * 2_000) < 20
    assert World(7, genres=1).expected_clicks(1, BORN_US, page) > 0
    with pytest.raises(CallError, match=r"Habits\(click=1.5\) is no chance"):
        World(7, habits=Habits(click=1.5))


def _drive(visit, answer):
    """Returns what a visit asked for, and its events."""
    asked = [next(visit)]
    while True:
        try:
            asked.append(visit.send(answer(asked[-1])))
        except StopIteration as done:
            return asked, done.value


def test_pages_from_anywhere_give_the_visit_of_the_policy(world):
    for at_us, visitor in list(world.schedule(BORN_US, BORN_US + 6 * HOUR)):
        asked, events = _drive(
            world.visiting(visitor, at_us),
            lambda wanted: PageShown(world.popular(wanted.visitor.number, wanted.at_us)),
        )
        assert events == world.visit(visitor, at_us=at_us)
        assert [wanted.visitor for wanted in asked] == [world.visitor(visitor)] * len(asked)
        assert asked[0].at_us > at_us


def test_recommendation_is_named_where_its_products_are_seen_and_clicked():
    world, clicks = World(7, habits=Habits(click=0.5)), 0
    for at_us, visitor in list(world.schedule(BORN_US, BORN_US + 6 * HOUR)):
        _, events = _drive(
            world.visiting(visitor, at_us),
            lambda wanted: PageShown(world.popular(wanted.visitor.number, wanted.at_us), f"at-{wanted.at_us}"),
        )
        last = None
        for event in events:
            properties = event.properties or {}
            if _is(event, "Product List Viewed"):
                last = properties["recommendation_id"]
                viewed = [product.product_id for product in properties["products"]]
            elif _is(event, "Product Clicked"):
                clicks += 1
                assert properties["recommendation_id"] == last
                assert viewed[properties["position"] - 1] == properties["product_id"]
            else:
                assert "recommendation_id" not in properties
    assert clicks > 200


def test_several_products_of_a_page_are_clicked_in_order():
    world, on_page = World(7, habits=Habits(click=0.6, taste=0)), Counter()
    for visit in world.traffic(BORN_US, BORN_US + 12 * HOUR):
        positions = []
        for event in visit.events:
            if _is(event, "Product List Viewed"):
                positions = []
            elif _is(event, "Product Clicked"):
                positions.append(event.properties["position"])
                assert positions == sorted(set(positions))
                on_page[len(positions)] += 1
        assert visit.events[-1].message_id
    assert min(on_page[number] for number in (1, 2, 3, 4)) > 50


def test_delay_of_a_page_is_lived_through_and_changes_no_chance(world):
    for at_us, visitor in list(world.schedule(BORN_US, BORN_US + 3 * HOUR)):
        skew_us, delay_us = world.visitor(visitor).skew_us, 90 * SECOND
        page = ["item-003", "item-008"]
        asked, events = _drive(world.visiting(visitor, at_us), lambda _: PageShown(page, delay_us=delay_us))  # noqa: B023
        seen = [event.timestamp for event in events if _is(event, "Product List Viewed")]
        if not world.visitor(visitor).bot:
            assert len(seen) == len(asked)
            assert all(wanted.at_us <= at_us + 24 * MINUTE for wanted in asked)
        for wanted, viewed in zip(asked, seen, strict=True):
            at = np.datetime64(viewed[:-1], "us").astype(int) - skew_us
            assert delay_us + SECOND <= at - wanted.at_us <= delay_us + 2 * SECOND or at == at_us + 29 * MINUTE


def test_visit_ends_in_time_however_slow_and_clicked_its_pages_are():
    world = World(7, habits=Habits(click=1, beats=100))
    for at_us, visitor in list(world.schedule(BORN_US, BORN_US + 3 * HOUR)):
        _, events = _drive(
            world.visiting(visitor, at_us),
            lambda wanted: PageShown(world.popular(1, wanted.at_us), delay_us=5 * MINUTE),
        )
        ended_us = np.datetime64(events[-1].timestamp[:-1], "us").astype(int) - world.visitor(visitor).skew_us
        assert ended_us <= at_us + 29 * MINUTE


def test_page_that_never_came_is_neither_seen_nor_clicked(world):
    for at_us, visitor in list(world.schedule(BORN_US, BORN_US + 3 * HOUR)):
        _, events = _drive(world.visiting(visitor, at_us), lambda _: PageShown([]))
        assert {event.event or event.type for event in events} <= {"page", "screen", "identify", "Utterance Heard"}


def test_page_is_wanted_under_the_account_after_the_login(world):
    wanted_by = defaultdict(list)
    for at_us, visitor in world.schedule(BORN_US, BORN_US + 3 * DAY):
        asked, events = _drive(world.visiting(visitor, at_us), lambda wanted: PageShown(world.popular(0, wanted.at_us)))
        wanted_by[visitor] += [wanted.user_id for wanted in asked]
        lists = [event.user_id for event in events if _is(event, "Product List Viewed")]
        assert lists == [wanted.user_id for wanted in asked]
    later = [users for users in wanted_by.values() if users[-1]]
    assert len(later) > 200
    assert all(users == sorted(users, key=bool) and len(set(users)) <= 2 for users in wanted_by.values())


@dataclass
class _Trial:
    """Two days under the world's own policy; then one on which every other visitor gets what people of his taste click.

    The others get the titles clicked most; one slot in ten shows anything.
    """

    world: World

    def __post_init__(self):
        self.ids = [item.product_id for item in self.world.items]
        self.number = {product_id: place for place, product_id in enumerate(self.ids)}
        self.seen, self.pages = defaultdict(set), ([], [])
        size, self.start_us = self.world.num_visitors, BORN_US + 2 * DAY
        weights, by_genre, genre = np.ones(240), np.zeros((size, 12)), self.world.market._genre_of
        for visit in self.world.traffic(BORN_US, self.start_us):
            for place in self.clicks(visit, since_us=self.start_us - DAY):
                weights[place] += 2 ** ((visit.at_us - self.start_us) / (3 * DAY))
                by_genre[visit.visitor, genre[place]] += 1
        everybody = by_genre.sum(axis=0) / by_genre.sum()
        shares = (by_genre + 2 * everybody) / (by_genre.sum(axis=1, keepdims=True) + 2)
        self.popular = np.argsort(-weights).tolist()
        self.personal = np.argsort(-weights * (shares / everybody)[:, genre], axis=1).tolist()

    def clicks(self, visit, since_us):
        """Returns what was clicked in a visit; if that was lately, it is not shown again."""
        events = [event for event in visit.events if _is(event, "Product Clicked")]
        places = [self.number[event.properties["product_id"]] for event in events]
        self.seen[visit.visitor].update(places if visit.at_us >= since_us else ())
        return places

    def page(self, visitor, at_us, arm):
        draw = random.Random(visitor << 65 | at_us << 1 | arm).random
        order = self.personal[visitor] if arm else self.popular
        seen = self.seen[visitor]
        left = [place for place in order if place not in seen]
        return [self.ids[left.pop(int(draw() * len(left)) if draw() < 0.1 else 0)] for _ in range(10)]

    def policy(self, visitor, at_us):
        for arm in (0, 1):
            self.pages[arm].append((visitor, at_us, self.page(visitor, at_us, arm)))
        return self.pages[visitor % 2][-1][2]

    def run(self):
        """Returns the true CTR of either arm, and either as observed with its variance."""
        counts = np.zeros((self.world.num_visitors, 2))
        for visit in self.world.traffic(self.start_us, self.start_us + DAY, policy=self.policy):
            clicks = len(self.clicks(visit, since_us=self.start_us))
            if not self.world.visitor(visit.visitor).bot:
                counts[visit.visitor] += 10 * sum(_is(event, "Product List Viewed") for event in visit.events), clicks
        return [self.world.true_ctr(self.pages[arm]) for arm in (0, 1)], [_ratio(counts[arm::2]) for arm in (0, 1)]


def _ratio(counts):
    """Returns CTR and its variance over visitors, by the delta method."""
    views, clicks = counts[counts[:, 0] > 0].T
    ctr = clicks.sum() / views.sum()
    return ctr, ((clicks - ctr * views) ** 2).sum() / views.sum() ** 2


@pytest.mark.slow
def test_taste_policy_beats_popularity_by_what_the_world_was_tuned_for():
    lifts = []
    for seed in (1, 2, 3):
        trial = _Trial(World(seed, visitors=1_500, habits=Habits(visits_per_day=2.5, beats=0)))
        (popular, personal), ((control, control_variance), (treated, treated_variance)) = trial.run()
        error = math.sqrt(control_variance + treated_variance)
        assert 0.04 < popular < personal < 0.075
        assert abs(treated - control - (personal - popular)) < 6 * error
        assert treated - control > 3 * error
        lifts.append(personal / popular - 1)
    assert 0.25 < statistics.mean(lifts) < 0.45
