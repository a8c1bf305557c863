"""headrace explain: from a click to a champion and back; the same as events of OpenLineage, and a trial as a report."""

from __future__ import annotations

import json
import re
from collections import Counter
from html.parser import HTMLParser

import msgspec
import pytest
from msgspec import Raw

from experiments.lake import make_crowd
from headrace import loop
from headrace.console.explain import tell
from headrace.console.explain_walk import decode_walks, encode_walks, list_steps
from headrace.console.figures import format_share
from headrace.console.lineage import gather
from headrace.console.report import write_report
from headrace.endpoints.carousel import Rule, choose
from headrace.experiments.promotion import Champion, encode_promotion
from headrace.experiments.verdict import encode_verdict
from headrace.features.online import State
from headrace.learn import fit, make_entry
from headrace.models import open_bundle
from headrace.project import open_project
from headrace.verify.truth import read_values
from headrace.watch.lineage import write_events
from models.market import AT, ITEMS, PEOPLE, make_market, write_market
from running import call, lines
from streamline import HOUR, MINUTE, append, clicked, decided, tracked, viewed, write

pytestmark = pytest.mark.slow

PERSON = PEOPLE[0]
SERVED_US = AT + HOUR


def serve(project, trial, bundle):
    """Returns the decision that an endpoint would have made of a bundle, with what it would have logged."""
    scorer = open_bundle(bundle)
    known = (tracked("Page Seen", PERSON, {}, at_us=0).seq,) * 2
    row = {"at_us": SERVED_US, "person": PERSON, "known": known, "dimensions": '{"items":12}'}
    values = next(read_values(project, scorer, [row]))
    made = choose(scorer, PERSON, (), rule=Rule(4, 0.2), seed=7, values=values)
    vectors = [[_plain(column[place]) for column in values] for place in made.places]
    return decided(
        PERSON,
        made.items,
        at_us=SERVED_US,
        recommendation_id="rec-1",
        categories=made.categories,
        propensities=made.propensities,
        scores=made.scores,
        num_candidates=made.num_candidates,
        explore=0.2,
        bundle=bundle.hash,
        known=known,
        dimensions=Raw(b'{"items":12}'),
        vectors=Raw(json.dumps(vectors).encode()),
        experiment=trial.experiment,
        trial=trial.id,
        arm="treatment",
    )


def _plain(value):
    return value.item() if hasattr(value, "item") else value


def meet(project, trial):
    """Lets a crowd meet the trial, of whom the treatment's clicks more."""
    decisions, events = make_crowd(trial, visitors=120, rates=(0.15, 0.4))
    late_us = trial.started_us - decisions[0].received_us + HOUR
    crowd = [
        msgspec.structs.replace(one, received_us=one.received_us + late_us, at_us=one.at_us + late_us)
        for one in decisions
        if one.visitor != PERSON
    ]
    write(
        project,
        decisions=crowd,
        events=[
            msgspec.structs.replace(one, event_us=one.event_us + late_us, received_us=one.received_us + late_us)
            for one in events
            if one.visitor != PERSON
        ],
    )


def stop(project, trial):
    """Returns the verdict that a trial ends with, as `loop.stop` writes it; nobody settles clicks here to wait for."""
    ended = loop._end(project, trial, over=loop._newest_id(project, "trial", trial.experiment))
    ends = {name: [bound.end for bound in project.topics.bounds(name)] for name in ("decisions", "events")}
    verdict = loop.judge_trial(project, ended, ends, project.clock.now_us())
    kind, promotion = loop._conclude(project, ended, verdict)
    project.registry.write(
        make_entry(project, "verdict", trial.experiment, encode_verdict(verdict)),
        make_entry(project, kind, trial.page, encode_promotion(promotion)),
    )
    return verdict


class Story:
    """A market in which one page was served, clicked, learned from, tried and promoted."""

    def __init__(self, folder):
        self.folder = folder
        with open_project(make_market(folder)) as project:
            write_market(project, pages=400, like=0.7)
            project.clock.step((AT - project.clock.now_us()) / 1e6)
            self.popular, self.first = (fit(project, name) for name in ("popular", "ranker"))
            self.trial = loop.start(project, "ranked-home", gate=False)
            page = serve(project, self.trial, self.first)
            told = {
                "recommendation_id": "rec-1",
                "attributes": Raw(json.dumps({page.items[1]: {"genre": ITEMS[page.items[1]]}}).encode()),
            }
            self.items = page.items
            self.click = clicked(PERSON, page.items[1], at_us=SERVED_US + 2 * MINUTE, **told)
            view = viewed(PERSON, page.items, at_us=SERVED_US + MINUTE, recommendation_id="rec-1")
            write(project, decisions=[page], events=[view, self.click])
            meet(project, self.trial)
            project.clock.step(12 * 3600)
            self.verdict = stop(project, self.trial)
            self.second = fit(project, "ranker")

    def tell(self, wanted):
        """Returns the walk from an id."""
        with open_project(self.folder) as project:
            (walk,) = tell(project, wanted)
        return walk

    def call(self, *words):
        return call(*words, "--project", self.folder)


@pytest.fixture(scope="module")
def story(tmp_path_factory):
    return Story(tmp_path_factory.mktemp("story"))


@pytest.fixture(scope="module")
def page(story):
    return story.tell("rec-1")


def places(walk, way):
    """Returns the kinds and ids that a walk comes by, one way."""
    return [(step.link.kind, step.link.id) for step in list_steps(walk, way)]


def node(walk, kind, wanted=None):
    return next(one for one in walk.nodes if one.kind == kind and wanted in (None, one.id))


def test_a_page_is_walked_back_to_bundle_snapshot_and_clicks(story, page):
    assert page.start.record["made_again"] is True
    back = places(page, "upstream")
    assert {("bundle", story.first.hash), ("snapshot", story.first.hash), ("trial", "ranked-home-1")} <= set(back)
    snapshot = node(page, "snapshot", story.first.hash)
    tables = {row[0]: row for row in snapshot.sheets[0].rows}
    assert tables.keys() == {"decisions", "events", "items"}
    assert tables["events"][1] == story.first.source["tables"]["events"]["version"]
    known = node(page, "features")
    with open_project(story.folder) as project:
        sql = (
            "SELECT message_id, properties ->> '$.product_id' AS item FROM events "
            f"WHERE event = 'Product Clicked' AND person = '{PERSON}' AND event_us < {SERVED_US}"
        )
        behind = {row["message_id"]: ITEMS[row["item"]] for row in project.query(sql).table().to_pylist()}
    assert {link.id for link in known.upstream} == behind.keys() != set()
    assert all(f"({behind[link.id]}), clicks " in link.text for link in known.upstream)
    assert places(page, "downstream")[-2][0] == "verdict", "what read this page"


def test_what_features_add_makes_the_score(page):
    known = node(page, "features").record
    scores = {item["id"]: item["score"] for item in page.start.record["items"]}
    for item in known["items"]:
        odds = known["base"] + sum(item["adds"].values())
        assert 1 / (1 + 2.718281828459045**-odds) == pytest.approx(scores[item["id"]], rel=1e-9)
    counted = {row[0]: row[1] for row in node(page, "features").sheets[1].rows}
    values = {item["id"]: item["values"]["appeal_7d"] for item in known["items"]}
    assert counted == {item: value for item, value in values.items() if value}


def test_a_click_is_walked_on_to_the_champion(story):
    walk = story.tell(story.click.message_id)
    assert ("decision", "rec-1") in places(walk, "upstream")
    rows = node(walk, "rows")
    assert [row["clicked"] for row in rows.record["rows"]] == [False, True, False, False]
    assert [(link.kind, link.id) for link in rows.downstream] == [("bundle", story.second.hash)]
    assert [link.word for link in rows.upstream] == ["of", "seen in", "clicked in"]
    assert rows.upstream[2].id == story.click.message_id
    onward = story.tell(next(link.id for link in node(walk, "decision").upstream if link.kind == "bundle"))
    assert [kind for kind, _ in places(onward, "downstream")] == ["trial", "verdict", "champion"]


def test_an_early_click_leads_through_its_bundle_to_the_verdict(story):
    with open_project(story.folder) as project:
        sql = "SELECT message_id FROM events WHERE event = 'Product Clicked' ORDER BY received_us LIMIT 1"
        (first,) = project.query(sql).table().to_pylist()
    found = places(story.tell(first["message_id"]), "downstream")
    assert found[0][0] == "rows"
    kinds = ["bundle", "bundle", "trial", "verdict", "champion"]
    assert [kind for kind, _ in found[1:6]] == kinds, "the bundle fitted last was in no trial"
    assert {one for kind, one in found if kind == "bundle"} == {
        story.popular.hash, story.first.hash, story.second.hash,
    }  # fmt: skip


def test_a_decision_without_a_training_row_says_why(story):
    with open_project(story.folder) as project:
        now_us = project.clock.now_us()
        fresh = decided("eve", story.items, at_us=now_us, recommendation_id="rec-2", known=(1, 1), bundle="0" * 32)
        robot = decided("bot", story.items, at_us=AT, recommendation_id="rec-3", known=(1, 1), bot=True)
        write(project, decisions=[fresh, robot])
    assert node(story.tell("rec-2"), "rows").facts[0][1].startswith("its time for clicks lasts until")
    walk = story.tell("rec-3")
    assert node(walk, "rows").facts == (("why", "robots teach nothing"),)
    assert walk.start.record["model"] is None, "the registry has no such bundle"


def test_a_page_that_waits_for_the_sink_knows_its_features(story):
    vectors = Raw(json.dumps([[0, 2, 1, "drama"]]).encode())
    served = {"known": (1, 1), "bundle": story.first.hash, "vectors": vectors, "recommendation_id": "rec-4"}
    with open_project(story.folder) as project:
        append(project, decisions=[decided("eve", story.items[:1], at_us=AT, **served)])
    walk = story.tell("rec-4")
    assert walk.start.record["in_table"] is False
    assert node(walk, "features").record["items"][0]["values"]["taste_28d"] == 2
    assert [link.kind for link in walk.start.downstream] == [], "nothing is learned of it yet"


def test_an_id_is_told_of_each_thing_that_has_it(story):
    shared = story.popular.hash
    with open_project(story.folder) as project:
        rows = [
            decided("eve", story.items[:2], at_us=AT, recommendation_id="rec-5", bundle=shared, list_id=title)
            for title in ("For you", "Trending / now")
        ]
        view = viewed("eve", story.items, at_us=AT, recommendation_id="rec-5", message_id=shared)
        robot = clicked("eve", story.items[0], at_us=AT, recommendation_id="rec-5", message_id="m-bot", bot=True)
        write(project, decisions=rows, events=[view, robot])
        walks = tell(project, shared)
    assert [walk.start.kind for walk in walks] == ["event", "bundle"]
    assert ("rows", "rec-5") in places(walks[0], "downstream")
    assert places(story.tell("m-bot"), "downstream") == [], "robots teach nothing"
    lower = story.tell("rec-5/Trending / now")
    assert lower.start.title == "home / Trending / now"
    assert ("decision", "rec-5") in places(lower, "upstream")
    assert ("event", "m-bot") in places(lower, "downstream")
    with open_project(story.folder) as project:
        assert tell(project, "rec-5/Nothing") == ()


def test_what_serves_after_a_champion_is_told_and_not_followed(story):
    known = {"version": 1, "page": "other", "bundle": story.first.hash, "model": "ranker", "how": "hand"}
    with open_project(story.folder) as project:
        for _ in range(40):
            over = max((one.id for one in project.registry.entries("champion", "other")), default=0)
            promoted = encode_promotion(Champion(**known))
            project.registry.write(make_entry(project, "champion", "other", promoted, over=over))
        first, second, third, *_ = project.registry.entries("champion", "other")
    walk = story.tell(f"other#{second.id}")
    assert walk.start.upstream[-1].id == f"other#{first.id}"
    assert places(walk, "downstream") == [("champion", f"other#{third.id}")]
    code, out, error = story.call("explain", story.first.hash)
    assert (code, error) == (0, "")
    assert "... and 23 more, --json has all" in out


@pytest.mark.parametrize("name", ["ranker", "hash", "prefix"])
def test_a_bundle_is_found_by_name_and_hash(story, name):
    wanted = {"ranker": "ranker", "hash": story.first.hash, "prefix": story.first.hash[:8]}[name]
    walk = story.tell(wanted)
    assert walk.start.id == (story.second.hash if name == "ranker" else story.first.hash)
    assert [row[0] for row in walk.start.sheets[0].rows] == ["taste_1d", "taste_28d", "appeal_7d", "latest_1d"]
    back = places(walk, "upstream")
    assert [kind for kind, _ in back] == ["snapshot", *["event"] * 8]
    at_us = walk.find(walk.start.upstream[0]).record["source"]["at_us"]
    with open_project(story.folder) as project:
        sql = "SELECT max(received_us) AS newest FROM events WHERE list_contains($ids, message_id)"
        (found,) = project.query(sql, parameters={"ids": [one for _, one in back[1:]]}).table().to_pylist()
        assert 0 <= at_us - found["newest"] < 12 * HOUR, "the newest clicks that it has learned from"
        table = project.tables.open("items")
        for pin in table.pins():
            if story.second.hash in pin.reason:
                table.unpin(pin.id)
    facts = dict(story.tell(wanted).find(walk.start.upstream[0]).facts)
    assert facts.get("unpinned", "").partition(":")[0] == ("items" if name == "ranker" else "")


def test_a_trial_is_found_by_its_id_and_its_experiment(story):
    walk = story.tell("ranked-home-1")
    assert walk.nodes == story.tell("ranked-home").nodes
    assert places(walk, "upstream")[0] == ("bundle", story.first.hash)
    assert [kind for kind, _ in places(walk, "downstream")] == ["verdict", "champion"]
    champion = node(walk, "champion")
    assert places(story.tell(champion.id), "upstream")[0] == ("verdict", "ranked-home-1")


def test_an_item_of_a_person_is_told_by_its_page_else_by_its_features(story):
    shown = story.tell(f"{PERSON}/{story.items[1]}")
    assert shown.start.record["shown"]["clicked"] is True
    assert [row[0] for row in node(shown, "features").sheets[0].rows] == [story.items[1]]
    assert ("decision", "rec-1") in places(shown, "upstream")
    assert [link.word for link in shown.start.downstream] == ["viewed in", "clicked in", "became"]
    assert ("event", story.click.message_id) in places(shown, "downstream")
    with open_project(story.folder) as project:
        write(project, events=[tracked("Page Seen", "new/person", {}, at_us=AT)])
    now = story.tell("new/person/item-3")
    assert 1 <= now.start.record["rank"] <= len(ITEMS)
    assert now.start.record["bundle"] == story.first.hash, "the champion serves"
    assert node(now, "features").upstream == (), "nothing is known of this person"
    with open_project(story.folder) as project:
        assert tell(project, "nobody/item-3") == tell(project, f"{PERSON}/item-99") == tell(project, "a/") == ()


def test_walks_travel_as_json_and_print_as_trees(story, page):
    told = encode_walks([page])
    assert encode_walks(decode_walks(told)) == told
    assert decode_walks(told)[0].start.facts == page.start.facts
    code, out, error = story.call("explain", "rec-1")
    assert (code, error) == (0, "")
    tree = out.splitlines()
    assert tree.index("came from") < tree.index("led to")
    assert max(map(len, tree)) <= 160
    assert sum("─ fitted from" in line for line in tree) == 2, "of each arm's bundle once"
    code, out, _ = story.call("explain", "rec-1", "--json")
    told = lines(out)
    assert [(one["kind"], one["id"]) for one in told] == [(one.kind, one.id) for one in page.nodes]
    assert told[0]["recommendation_id"] == "rec-1"
    assert story.call("explain", story.click.message_id)[0] == 0


def test_a_name_that_is_nearly_known_is_suggested(story):
    code, out, error = story.call("explain", "ranked-hom")
    assert (code, out) == (1, "")
    assert error.endswith("Did you mean 'ranked-home-1'?\n") or "Did you mean ranked-home-1?" in error
    assert story.call("explain")[0] == story.call("explain", "rec-1", "--openlineage")[0] == 2


def test_what_is_recorded_is_lineage_without_a_gap(story):
    code, out, _ = story.call("explain", "--openlineage")
    assert code == 0
    found = lines(out)
    with open_project(story.folder) as project:
        counted = State(generation=1, definitions="d", incarnation="i", offsets=(3,), known=(3,), newest_us=(AT,))
        runs = gather(project)
        assert not [run for run in runs if run.job == "updater"]
        project.online.begin(counted, project.declared.columns)
        project.online.promote(counted)
        (updater,) = [run for run in gather(project) if run.job == "updater"]
        assert (updater.inputs[0].positions, updater.outputs[0].name) == ({"0": [3]}, "tiles")
        again = msgspec.json.encode([*write_events("streamline", runs, version="0.1.0")])
        assert msgspec.json.decode(again) == found, "the same from each reading"
    ended = {event["run"]["runId"]: event for event in found if event["eventType"] != "START"}
    jobs = Counter(event["job"]["name"] for event in ended.values())
    assert jobs.keys() == {
        "settler", "sink.decisions", "sink.events", "sink.items", "fit.popular", "join.ranker", "fit.ranker",
        "endpoint.home", "verdict.ranked-home",
    }  # fmt: skip
    assert jobs["fit.ranker"] == jobs["join.ranker"] == 2
    # From the topic to the champion each run reads what another has written.
    made = {(one["namespace"], one["name"]) for event in ended.values() for one in event["outputs"]}
    read = {(one["namespace"], one["name"]) for event in ended.values() for one in event["inputs"]}
    loose = {name for _, name in read - made}
    assert loose == {"clicks", "items", "tiles", "bundle/unknown"}, "what doors, loads and the updater fill"
    verdicts = str(story.folder / ".headrace" / "lake" / "verdicts")
    assert {name for _, name in made - read} == {"failed", verdicts, "champion/home"}
    (wrote,) = [event for event in ended.values() if event["job"]["name"] == "sink.items"]
    columns = wrote["outputs"][0]["facets"]["schema"]["fields"]
    assert columns[0] == {"name": "key", "type": "string"}
    with open_project(story.folder) as project:
        events = project.tables.open("events")
        assert (
            sum(one.rows for run in runs for one in run.outputs if run.job == "sink.events")
            == events.scan().table().num_rows
        )


class Tags(HTMLParser):
    """Counts elements, and refuses what would ask somebody or run."""

    def __init__(self):
        super().__init__()
        self.found = Counter()

    def handle_starttag(self, tag, attrs):
        self.found[tag] += 1
        assert tag not in ("script", "link", "img", "iframe", "object")
        assert not {name for name, _ in attrs} & {"src", "href", "onload", "onclick"}


def test_a_report_says_health_first_and_asks_nobody(story, tmp_path):
    path = tmp_path / "report.html"
    code, out, _ = story.call("experiment", "analyse", "ranked-home", "--html", path)
    assert (code, out) == (0, f"the report is in {path}\n")
    text = path.read_text(encoding="utf-8")
    tags = Tags()
    tags.feed(text)
    assert tags.found["svg"] >= 4
    assert re.search(r"url\(|@import|https?://(?!www\.w3\.org)", text) is None
    heads = re.findall(r"<h2>(.*?)</h2>", text)
    assert heads == [
        "Health",
        "Effect",
        "Both arms",
        "Lift over time",
        "Visitors",
        "How it was counted",
        "For the audit",
    ]
    assert story.verdict.outcome == "better"
    assert "The treatment is better" in text
    assert f"ctr changes by {format_share(story.verdict.lift)} against control" in text
    assert story.call("experiment", "analyse", "ranked-home", "--html", tmp_path / "none" / "x.html")[0] == 2


@pytest.mark.parametrize("outcome", ["unhealthy", "empty", "early"])
def test_a_report_without_an_effect_says_so(story, outcome):
    nothing = {"lift": None, "lift_interval": None, "p": None, "srm_p": 0.0 if outcome == "unhealthy" else None}
    verdict = msgspec.structs.replace(
        story.verdict, outcome=outcome, reasons=("<b>because</b>",), multiple=3, **nothing
    )
    with open_project(story.folder) as project:
        text = write_report(project, verdict, is_final=False)
    assert "&lt;b&gt;because" in text
    assert "the trial goes on" in text
    assert ("no number below can be trusted" in text) == (outcome == "unhealthy")
    assert "<h2>Effect</h2>" not in text
    assert text.count('<span class="badge bad">') == (2 if outcome == "unhealthy" else 0), "of outcome and ratio"
