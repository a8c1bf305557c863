"""The click model on a small market: what it learns, what the gate says, and what made it."""

from dataclasses import replace

import msgspec
import numpy as np
import pyarrow as pa
import pytest

from headrace import Attribute, Dimension, Event, Metric, item, person
from headrace.base.errors import CallError, FormatError, ProjectError, StopError
from headrace.features import count, last
from headrace.learn import LakeView, find_fit, find_gate, fit, open_lake, reproduce
from headrace.models import Bundle, click_model, open_bundle
from headrace.models.gate import decide
from headrace.models.learned import read_scores
from headrace.models.logistic import chance_of
from headrace.project import open_project
from models.market import AT, ITEMS, load_items, make_market, make_pages, write_market
from streamline import HOUR, write

GENRE = Attribute("genre")
ITEMS_KNOWN = Dimension("items", key="product_id", attributes=(GENRE,))
CLICKS = Event("Product Clicked", item="product_id", of=ITEMS_KNOWN)
CTR = Metric.ratio("ctr", CLICKS, Event("Product List Viewed", item="products[].product_id"))
TASTE = count("taste", CLICKS, by=(person, GENRE), windows=("1d",))
LEARNED = ("base", "weights", "contexts", "means", "scales")


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    with open_project(make_market(tmp_path_factory.mktemp("market"))) as one:
        write_market(one, pages=600)
        yield one


@pytest.fixture(scope="module")
def bundle(project):
    return fit(project, "ranker", at_us=AT)


@pytest.fixture(scope="module")
def view(project, bundle):
    return LakeView(project, {name: table["version"] for name, table in bundle.source["tables"].items()}, AT)


@pytest.fixture(scope="module")
def rows(project, view):
    return project.declared.models[1].read(view)


def _learned(bundle):
    return [bundle.arrays[name].tobytes() for name in LEARNED]


def _turned(bundle, **arrays):
    return Bundle(bundle.name, bundle.kind, bundle.parameters, bundle.source, {**bundle.arrays, **arrays})


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: click_model("", CTR, features=(TASTE,)), "give it a name"),
        (lambda: click_model("r", CLICKS, features=(TASTE,)), "is no Metric"),
        (lambda: click_model("r", CTR), "give it some, as a tuple"),
        (lambda: click_model("r", CTR, features=TASTE), "give it some, as a tuple"),
        (lambda: click_model("r", CTR, features=(TASTE,), l2=-1), "l2=-1 must be from 0"),
        (lambda: click_model("r", CTR, features=(TASTE,), most_weight=0.5), "most_weight=0.5 must be from 1"),
        (
            lambda: click_model("r", Metric.ratio("ctr", Event("Product Clicked", item="product_id"), CTR.below),
                                features=(TASTE,)),
            "'taste' is by 'genre' of an item, and 'Product Clicked' of the metric 'ctr' has no dimension",
        ),
    ],
)  # fmt: skip
def test_declaration_that_cannot_be_learned_is_refused(make, says):
    with pytest.raises(ProjectError, match=says):
        make()


def test_declaration_reads_decisions_events_and_its_dimension():
    model = click_model("ranker", CTR, features=(TASTE, last("latest", CLICKS, item, by=person, windows=("1h",))))
    assert model.inputs == ("decisions", "events", "items")
    assert [column.name for column in model.columns] == ["taste_1d", "latest_1h"]
    assert model.clicks == CLICKS


def test_fit_learns_that_people_click_the_genre_they_like(bundle):
    scorer = open_bundle(bundle)
    assert list(scorer.items) == sorted(ITEMS)
    assert dict(zip(scorer.items, scorer.categories, strict=True)) == ITEMS
    names = [column.name for column in scorer.columns]
    weights = dict(zip(names, bundle.arrays["weights"].tolist(), strict=True))
    assert weights["taste_28d"] > 0.3
    assert scorer.examination < -0.2
    source = bundle.source
    assert set(source["tables"]) == {"decisions", "events", "items"}
    assert (source["rows"], source["at_us"]) == (2_400, AT)


def test_scores_are_chances_at_position_one_and_the_same_as_in_rows(bundle, rows):
    scorer = open_bundle(bundle)
    likes = np.array([3.0 if genre == "drama" else 0.0 for genre in scorer.categories])
    latest = np.full(len(likes), "drama", object)
    values = (likes, likes, np.zeros(len(likes)), latest)
    found = scorer.scores("ann", values)
    assert {scorer.categories[place] for place in np.argsort(-found)[:4].tolist()} == {"drama"}
    inputs = [np.log1p(likes), np.log1p(likes), np.zeros(len(likes)), (likes > 0).astype(float)]
    alike = replace(rows.where(np.arange(len(rows)) < len(likes)), inputs=tuple(inputs))
    assert found == pytest.approx(read_scores(bundle.arrays, alike), rel=1e-12)
    assert ((found > 0) & (found < 1)).all()


def test_whys_name_the_column_that_raises_an_item_most(bundle):
    scorer = open_bundle(bundle)
    likes = np.array([4.0 if genre == "drama" else 0.0 for genre in scorer.categories])
    popular = np.zeros(len(likes))
    popular[scorer.places["item-0"]] = 500.0
    nothing = np.full(len(likes), None, object)
    places = [scorer.places[name] for name in ("item-2", "item-0", "item-1")]
    assert scorer.whys(places, (np.zeros(len(likes)), likes, popular, nothing)) == ["taste_28d", "appeal_7d", ""]
    assert scorer.whys(places) == ["", "", ""]


def test_odds_are_split_into_what_each_column_adds(bundle):
    scorer = open_bundle(bundle)
    likes = np.array([4.0 if genre == "drama" else 0.0 for genre in scorer.categories])
    values = (likes, likes, np.arange(len(likes), dtype=float), np.full(len(likes), "drama", object))
    items = ["item-2", "item-0", "item-5"]
    places = [scorer.places[name] for name in items]
    base, added = scorer.split_odds(items, [[column[place] for column in values] for place in places])
    assert chance_of(base + added.sum(axis=1)) == pytest.approx(scorer.scores("ann", values)[places], rel=1e-12)
    assert added[0, 1] > 0 > added[1, 1], "only one of them is a drama"
    assert scorer.split_odds([], [])[1].shape == (0, len(scorer.columns))


def test_values_that_are_no_numbers_make_scores_that_are_none(bundle):
    scorer = open_bundle(bundle)
    values = [np.zeros(len(scorer.items)) for _ in scorer.columns]
    values[3] = np.full(len(scorer.items), None, object)
    values[1][5] = np.nan
    assert np.flatnonzero(np.isnan(scorer.scores("ann", values))).tolist() == [5]
    with pytest.raises(FormatError, match="2 columns of values were given, the model reads 4"):
        scorer.scores("ann", values[:2])


def test_order_repeats_and_late_events_change_no_byte(tmp_path, bundle):
    decisions, events = make_pages(pages=600)
    # `seq` stands for the order in the log, which the settler has decided once and for all.
    numbers = {event.seq - events[0].seq: event for event in events}
    again = [msgspec.structs.replace(one, message_id=f"{one.message_id}-again") for one in events[::7]]
    late = [msgspec.structs.replace(one, received_us=AT + HOUR, message_id=f"{one.message_id}-late") for one in events]
    first = events[0].seq
    moved = [msgspec.structs.replace(one, known=tuple(k - first for k in one.known)) for one in decisions]
    renumbered = [msgspec.structs.replace(one, seq=number, src_offset=number) for number, one in numbers.items()]
    far = [msgspec.structs.replace(one, seq=10**6 + n) for n, one in enumerate([*again, *late])]
    with open_project(make_market(tmp_path)) as other:
        load_items(other)
        write(other, events=[*far[::-1], *renumbered[::-1]], decisions=moved[::-1])
        assert _learned(fit(other, "ranker", at_us=AT)) == _learned(bundle)


def test_gate_passes_with_its_figures_and_reasons(project, bundle):
    gate = find_gate(project, bundle.hash)
    assert gate.passed, gate.reasons
    report = gate.report
    assert report.clicks >= 50
    assert report.held_out.ndcg > report.popularity.ndcg + 0.05
    assert report.agreement > 0.9
    assert (report.broken, report.idle) == (0, ())
    assert len(gate.reasons) == 6
    assert gate.reasons[0] == f"{report.clicks} clicks on {report.judged:,} viewed items were judged"


def test_gate_refuses_scores_that_are_turned_round(project, bundle):
    turned = _turned(bundle, weights=-bundle.arrays["weights"])
    project.registry.add(turned)
    gate = find_gate(project, turned.hash)
    assert not gate.passed
    assert gate.reasons[0].startswith("the scores of the bundle and of that fit correlate by -0.")
    assert find_gate(project, turned.hash) == gate, "it is asked once"


def test_gate_refuses_scores_that_are_no_numbers(project, bundle, view, rows):
    weights = bundle.arrays["weights"].copy()
    weights[1] = np.nan
    broken = _turned(bundle, weights=weights)
    gate = decide(project.declared.models[1].judge(view, rows, broken))
    assert not gate.passed
    assert gate.reasons == (
        f"{gate.report.judged:,} of {gate.report.judged:,} scores are no numbers: some weight or feature is none",
    )
    with pytest.raises(FormatError, match="weights that no fit gives"):
        open_bundle(broken)


def test_registry_says_what_made_a_bundle(project, bundle):
    found = find_fit(project, bundle.hash)
    assert found.model == "ranker"
    assert set(found.features) == {"taste_1d", "taste_28d", "appeal_7d", "latest_1d"}
    assert {"python", "numpy", "duckdb", "machine"} <= set(found.environment)
    assert len(found.code) == 32
    assert found.seconds > 0


def test_every_table_that_a_bundle_was_fitted_from_is_pinned_once(project, bundle):
    assert fit(project, "ranker", at_us=AT).hash == bundle.hash
    for name, table in bundle.source["tables"].items():
        pins = [pin.version for pin in project.tables.open(name).pins() if bundle.hash in pin.reason]
        assert pins == [table["version"]]


def test_bundle_is_made_again_byte_for_byte_and_says_what_differs_if_not(project, bundle):
    assert reproduce(project, bundle.hash).is_same
    other = _turned(bundle, weights=bundle.arrays["weights"] * 2)
    project.registry.add(other)
    found = reproduce(project, other.hash)
    assert (found.is_same, found.again.hash) == (False, bundle.hash)
    assert list(found.differences) == ["what fitted it was not written down then", "array weights"]


def test_fit_that_is_killed_registers_nothing_and_its_pins_go_with_the_next(tmp_path, monkeypatch):
    with open_project(make_market(tmp_path)) as project:
        write_market(project, pages=60)
        with monkeypatch.context() as patch:
            patch.setattr(project.registry, "add", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
            with pytest.raises(KeyboardInterrupt):
                fit(project, "ranker", at_us=AT)
        assert project.registry.bundles() == []
        assert project.registry.newest("gate") == project.registry.newest("fit") == {}
        kept = fit(project, "ranker", at_us=AT + 1).hash
        for name in ("decisions", "events", "items"):
            reasons = [pin.reason.split()[1] for pin in project.tables.open(name).pins()]
            assert reasons == [kept]


def test_column_that_is_always_the_same_weighs_nothing_and_is_told(tmp_path):
    with open_project(make_market(tmp_path)) as project:
        path = project.folder / "project.py"
        path.write_text(path.read_text().replace('windows=("7d",)', 'windows=("5m",)'))
        write_market(project, pages=120)
        found = fit(project, "ranker", at_us=AT)
        place = [column["name"] for column in found.parameters["columns"]].index("appeal_5m")
        assert (found.arrays["weights"][place], found.arrays["scales"][place]) == (0.0, 0.0)
        assert find_gate(project, found.hash).report.idle == ("appeal_5m",)
        values = [np.zeros(len(ITEMS)) for _ in range(3)]
        values[place] = np.full(len(ITEMS), 9e9)
        assert np.isfinite(open_bundle(found).scores("ann", [*values, np.full(len(ITEMS), None, object)])).all()


def test_lake_that_teaches_nothing_says_what_is_missing(tmp_path):
    with open_project(make_market(tmp_path)) as project:
        project.make_topics()
        with pytest.raises(CallError, match=r"no table 'decisions' yet to fit 'ranker' from\. Start its sink"):
            fit(project, "ranker", at_us=AT)
        decisions, events = make_pages(pages=30, like=0.0, others=0.0)
        write(project, events=events, decisions=decisions)
        with pytest.raises(CallError, match=r"no table 'items' yet .* Load it: headrace table load FILE --table items"):
            fit(project, "ranker", at_us=AT)
        load_items(project)
        with pytest.raises(StopError, match="of 120 viewed items none was clicked by a 'Product Clicked'"):
            fit(project, "ranker", at_us=AT)
        with pytest.raises(StopError, match="of 30 decisions none has an item that was seen"):
            fit(project, "ranker", at_us=decisions[0].at_us)
        assert project.registry.bundles() == []


def test_model_without_a_dimension_ranks_what_was_viewed_or_clicked(tmp_path):
    with open_project(make_market(tmp_path)) as project:
        path = project.folder / "project.py"
        plain = path.read_text().replace(", of=items)", ")").replace("(taste, appeal, latest)", "(appeal, latest)")
        plain = plain.replace('last("latest", clicks, genre,', 'last("latest", clicks, item,')
        path.write_text("\n".join(line for line in plain.splitlines() if not line.startswith("taste = ")))
        decisions, events = make_pages(pages=120)
        write(project, events=events, decisions=decisions)
        found = fit(project, "ranker", at_us=AT)
        assert set(found.source["tables"]) == {"decisions", "events"}
        scorer = open_bundle(found)
        assert list(scorer.items) == sorted(ITEMS)
        latest = np.full(len(ITEMS), "item-3", object)
        scores = scorer.scores("ann", (np.zeros(len(ITEMS)), latest))
        assert len(set(np.delete(scores, scorer.places["item-3"]).tolist())) == 1


def test_lake_as_it_is_has_a_source_beside_tables_that_no_sink_fills(project):
    project.tables.create("verdicts", pa.schema([("trial", pa.string())]), partition_by=(), description="")
    assert sorted(open_lake(project).source["tables"]) == ["decisions", "events", "items"]
