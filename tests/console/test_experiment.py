"""headrace experiment as a user types it: visitors ask a real endpoint, their clicks go through settler and sink."""

from __future__ import annotations

import pytest

from console.audience import HOUR, ask, copy, declare, expose, now_us, respond
from running import lines

NAME = "taste-home"

pytestmark = pytest.mark.slow


def enroll(shop, count, *, name="ann", **options):
    """Lets visitors of one name and number ask for a page and respond to it; returns the pages."""
    pages = ask(shop, [f"{name}-{number}" for number in range(count)])
    respond(shop, pages, **options)
    return pages


def better(page):
    """The chance of a click: the treatment's is twice the control's."""
    return 0.3 if page["arm"] == "treatment" else 0.15


def verdict_of(shop, verb):
    """Returns exit code and verdict of `experiment analyse` or `stop`."""
    code, out, error = shop.call("experiment", verb, NAME, "--json")
    assert error == ""
    return code, lines(out)[0]


def start(shop, *options):
    code, out, error = shop.call("experiment", "start", NAME, *options)
    assert (code, error) == (0, "")
    return out


# Before a trial.


@pytest.fixture(scope="module")
def visited(shared_fitted):
    """A shop that 150 visitors have visited two hours ago, without a trial."""
    enroll(shared_fitted, 150)
    now_us(shared_fitted, later=2 * HOUR)
    return shared_fitted


def test_list_of_a_project_that_never_ran(shop):
    declare(shop)
    code, out, _ = shop.call("experiment", "list", "--json")
    assert (code, lines(out)) == (0, [{
        "experiment": NAME, "page": "home", "goal": "ctr", "guardrails": [], "mde": 0.25, "power": 0.8, "alpha": 0.05,
        "state": "not started", "trial": None, "started_us": None, "outcome": None, "lift": None,
        "champion": None, "champion_model": None, "champion_how": None,
    }])  # fmt: skip
    assert "home  ctr   not started  -" in shop.call("experiment", "list")[1]


def test_list_without_experiments_says_where_they_are_declared(shop):
    code, out, _ = shop.call("experiment", "list")
    assert (code, out) == (
        0, "no experiments: declare one in project.py and name it in \nProject(experiments=...)\n",
    )  # fmt: skip


@pytest.mark.parametrize("verb", ["plan", "aa", "start", "analyse", "stop", "exposures"])
def test_an_unknown_experiment_names_the_nearest(visited, verb):
    assert visited.call("experiment", verb, "taste-hom") == (
        2, "", "UnknownNameError: no experiment 'taste-hom'. Did you mean taste-home?  known: taste-home\n",
    )  # fmt: skip


@pytest.mark.parametrize("verb", ["analyse", "stop", "exposures"])
def test_what_needs_a_trial_says_how_to_start_one(visited, verb):
    assert visited.call("experiment", verb, NAME) == (
        2, "", f"CallError: experiment {NAME!r} was not started yet. Start it with: headrace experiment start {NAME}\n",
    )  # fmt: skip


def test_aa_passes_on_visitors_who_are_all_treated_alike(visited):
    code, out, error = visited.call("experiment", "aa", NAME, "--json")
    assert (code, error) == (0, "")
    (found,) = lines(out)
    assert (found["splits"], found["visitors"], found["passed"]) == (1000, 150, True)
    assert found["significant"] <= found["band"][1] < 100
    code, out, _ = visited.call("experiment", "aa", NAME, "--splits", "200")
    assert code == 0
    assert out.startswith("A/A         ✓ passes: ")
    assert " of 200 splits of 150 logged visitors differ" in out


@pytest.mark.parametrize("splits", ["19", "100001"])
def test_aa_with_an_impossible_number_of_splits_is_refused(visited, splits):
    code, _, error = visited.call("experiment", "aa", NAME, "--splits", splits)
    assert (code, error) == (2, f"CallError: --splits {splits}: must be 20 to 100,000\n")


def test_plan_says_how_many_visitors_and_how_long(visited):
    code, out, error = visited.call("experiment", "plan", NAME, "--json")
    assert (code, error) == (0, "")
    (found,) = lines(out)
    (gate,) = lines(visited.call("experiment", "aa", NAME, "--json")[1])
    assert (found["mde"], found["power"], found["alpha"], found["visitors"]) == (0.25, 0.8, 0.05, 150)
    assert found["needed"] == gate["needed"] > 50
    # 150 within the hour and a half that counts; what came in the last half hour may be clicked yet.
    assert found["visitors_per_day"] == pytest.approx(150 * 24 / (found["logged_us"] / 3.6e9))
    assert found["days"] == pytest.approx(2 * found["needed"] / found["visitors_per_day"])
    assert 0 < found["daily_mde"] < 0.25
    code, out, _ = visited.call("experiment", "plan", NAME)
    assert code == 0
    assert f"needed      {found['needed']} visitors in each arm, to show a lift of 25 % 80 times in 100," in out
    assert max(map(len, out.splitlines())) <= 80


@pytest.mark.parametrize("verb", ["plan", "aa", "start"])
def test_before_anything_ran_it_says_what_to_do(shop, verb):
    declare(shop)
    code, out, error = shop.call("experiment", verb, NAME)
    expected = {
        "start": (2, "CallError: there is no bundle of 'popular' yet. Fit one with: headrace model fit popular\n"),
    }.get(verb, (1, "StopError: nothing was logged yet. Run the project with: headrace up\n"))
    assert (code, out, error) == (expected[0], "", expected[1])


@pytest.mark.slow
def test_too_few_visitors_start_nothing_but_without_the_gate_they_do(fitted):
    enroll(fitted, 20)
    now_us(fitted, later=HOUR)
    for verb in ("plan", "aa", "start"):
        code, out, error = fitted.call("experiment", verb, NAME)
        assert (code, out) == (1, "")
        assert error.startswith("StopError: 20 visitors were logged on the page 'home' outside of a trial, 30m ago")
    start(fitted, "--without-aa")
    (row,) = lines(fitted.call("experiment", "list", "--json")[1])
    assert (row["state"], row["trial"]) == ("running", f"{NAME}-1")


@pytest.mark.slow
def test_aa_refuses_where_the_test_finds_what_is_not_there(fitted):
    # Four of 120 view anything: what they say of how visitors vary is far too little.
    pages = ask(fitted, [f"ann-{number}" for number in range(120)])
    viewers = {page["anonymous_id"]: chance for page, chance in zip(pages, (0.1, 0.9, 0.5, 0.2), strict=False)}
    respond(
        fitted,
        pages,
        view=lambda page: page["anonymous_id"] in viewers,
        click=lambda page: viewers[page["anonymous_id"]],
    )
    now_us(fitted, later=HOUR)
    code, out, error = fitted.call("experiment", "aa", NAME)
    assert (code, error) == (1, "")
    assert out.startswith("A/A         ✗ refuses: ")
    code, out, error = fitted.call("experiment", "start", NAME)
    assert (code, out) == (1, "")
    assert error.startswith("StopError: the A/A gate refuses: ")
    assert lines(fitted.call("experiment", "list", "--json")[1])[0]["state"] == "not started"


# A trial.


@pytest.fixture(scope="module")
def tried(visited, tmp_path_factory):
    """A shop whose trial 300 visitors and a robot were in, two hours ago; it runs on."""
    shop = copy(visited, tmp_path_factory.mktemp("tried"))
    source = shop.folder / "project.py"
    guarded = (
        'goal=ctr, guardrails=(Metric.mean("clicks_each", clicks), Metric.mean("orders", Event("Order Completed")))'
    )
    source.write_text(source.read_text().replace("goal=ctr", guarded))
    assert "guardrails  clicks_each, orders\n" in start(shop)
    pages = ask(shop, [f"ann-{number}" for number in range(300)])
    robot = ask(shop, ["robot"], agent="Mozilla/5.0 (compatible; Googlebot/2.1)")
    nobody = ask(shop, [None])
    assert nobody[0]["arm"] is None
    respond(shop, [*pages, *robot], click=better)
    now_us(shop, later=2 * HOUR)
    return shop


def test_start_freezes_both_bundles_and_says_so(tried):
    (row,) = lines(tried.call("experiment", "list", "--json")[1])
    assert (row["state"], row["trial"], row["guardrails"]) == ("running", f"{NAME}-1", ["clicks_each", "orders"])
    assert "running since 20" in tried.call("experiment", "list")[1]
    bundles = {one["name"]: one["hash"] for one in lines(tried.call("model", "list", "--json")[1])}
    _, found = verdict_of(tried, "analyse")
    assert (found["control_bundle"], found["treatment_bundle"]) == (bundles["popular"], bundles["tastes"])
    code, out, error = tried.call("experiment", "start", NAME)
    assert (code, out) == (2, "")
    assert error.startswith(f"CallError: trial '{NAME}-1' runs on the page 'home' already. End it first: ")


def test_analyse_shows_the_trial_so_far(tried):
    code, found = verdict_of(tried, "analyse")
    assert (code, found["final"], found["outcome"]) == (0, False, "better")
    assert (found["bots"], found["multiple"], found["gate"]["visitors"]) == (1, 0, 150)
    assert found["control"]["visitors"] + found["treatment"]["visitors"] == 300
    assert found["control"]["views"] == 10 * found["control"]["visitors"]
    assert found["lift_interval"][0] < 1.0 < found["lift_interval"][1], "the treatment is clicked twice as often"
    clicks, orders = found["guardrails"]
    for arm in ("control", "treatment"):
        assert clicks[arm] == pytest.approx(found[arm]["clicks"] / found[arm]["visitors"])
    assert (clicks["is_worse"], orders["p"]) == (False, None)
    code, out, error = tried.call("experiment", "analyse", NAME)
    assert (code, error) == (0, "")
    assert "✓ guardrail     clicks_each " in out
    assert "· guardrail     orders cannot be judged: no visitor has sent 'Order Completed'" in out
    assert "Not final, the trial goes on." in out
    assert max(map(len, out.splitlines())) <= 80


def test_exposures_are_those_that_the_arms_count(tried):
    _, found = verdict_of(tried, "analyse")
    code, out, _ = tried.call("experiment", "exposures", NAME, "--json")
    rows = lines(out)
    assert (code, len(rows)) == (0, 301)
    assert [row["visitor"] for row in rows if row["bot"]] == ["robot"]
    for arm in ("control", "treatment"):
        mine = [row for row in rows if row["arm"] == arm and not row["bot"]]
        sums = {name: sum(row[name] for row in mine) for name in ("pages", "views", "clicks")}
        ratio = sums["clicks"] / sums["views"]
        assert found[arm] == {"visitors": len(mine), **sums, "ratio": pytest.approx(ratio)}


def test_exposures_for_people_are_the_first_ones(tried):
    code, out, _ = tried.call("experiment", "exposures", NAME)
    assert (code, len(out.splitlines())) == (0, 22)
    assert out.endswith("the first 20 of 301 visitors, --max ROWS shows more\n")
    assert tried.call("experiment", "exposures", NAME, "--max", "3")[1].count("ann-") == 3
    assert len(lines(tried.call("experiment", "exposures", NAME, "--max", "3", "--json")[1])) == 3
    assert tried.call("experiment", "exposures", NAME, "--max", "0")[0] == 2


# A verdict.


@pytest.mark.slow
def test_stop_gives_a_verdict_that_nothing_changes_any_more(fitted):
    start(fitted, "--without-aa")
    enroll(fitted, 120, click=better)
    now_us(fitted, later=2 * HOUR)
    code, out, error = fitted.call("experiment", "stop", NAME)
    assert (code, error) == (0, "")
    assert "outcome       BETTER: " in out
    assert "A/A           not run before this trial" in out
    _, found = verdict_of(fitted, "stop")
    assert found["final"] is True
    # Whoever comes later, and what was clicked late, is in no verdict.
    enroll(fitted, 10, name="late")
    pages = ask(fitted, ["ann-1"])
    assert pages[0]["arm"] is None, "a stopped trial enrolls nobody"
    now_us(fitted, later=HOUR)
    assert verdict_of(fitted, "stop") == (0, found)
    assert verdict_of(fitted, "analyse") == (0, found)
    assert "Not final" not in fitted.call("experiment", "analyse", NAME)[1]
    (row,) = lines(fitted.call("experiment", "list", "--json")[1])
    assert (row["state"], row["outcome"], row["lift"]) == ("decided", "better", found["lift"])
    assert (row["champion"], row["champion_how"]) == (found["treatment_bundle"], "verdict")
    served = f"home is served by its champion {found['treatment_bundle']} of {row['champion_model']}"
    assert served in " ".join(fitted.call("experiment", "list")[1].split())
    (row,) = lines(fitted.call("table", "sql", "SELECT trial, outcome, lift, srm_p FROM verdicts", "--json")[1])
    assert row == {"trial": f"{NAME}-1", "outcome": "better", "lift": found["lift"], "srm_p": found["srm_p"]}


@pytest.mark.slow
def test_a_second_trial_follows_a_verdict(fitted):
    start(fitted, "--without-aa")
    assert fitted.call("experiment", "stop", NAME)[0] == 1
    now_us(fitted, later=1.0)
    start(fitted, "--without-aa")
    (row,) = lines(fitted.call("experiment", "list", "--json")[1])
    assert (row["state"], row["trial"], row["outcome"]) == ("running", f"{NAME}-2", None)


@pytest.mark.slow
def test_a_verdict_on_nobody_says_why_it_is_empty(fitted):
    start(fitted, "--without-aa")
    enroll(fitted, 20)
    code, out, error = fitted.call("experiment", "stop", NAME)
    assert (code, error) == (1, "")
    assert "EMPTY: there is nothing to compare" in out
    # Too fresh: their clicks may still be on their way.
    assert "no visitor was exposed before the cut-off" in out
    assert fitted.call("experiment", "exposures", NAME) == (
        0, "nobody was exposed before the cut-off; see: headrace experiment analyse\n", "",
    )  # fmt: skip


@pytest.mark.slow
def test_a_page_that_tells_no_impressions_is_an_empty_verdict(fitted):
    start(fitted, "--without-aa")
    enroll(fitted, 20, view=lambda _: False)
    now_us(fitted, later=2 * HOUR)
    code, found = verdict_of(fitted, "stop")
    assert (code, found["outcome"], found["lift"], found["p"]) == (1, "empty", None, None)
    assert found["reasons"][0].startswith("20 visitors were exposed, and no 'Product List Viewed' with the")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("told", "reason"),
    [
        (lambda _: [f"bob-{number}" for number in range(60)], "sample ratio mismatch: control "),
        (lambda pages: [page["anonymous_id"] for page in pages if page["arm"] == "control"][:5], "5 of 80 visitors"),
    ],
    ids=["an arm has too many", "visitors are in both"],
)
def test_an_unhealthy_trial_has_no_answer(fitted, told, reason):
    start(fitted, "--without-aa")
    pages = enroll(fitted, 80, click=better)
    expose(fitted, told(pages), "treatment")
    now_us(fitted, later=2 * HOUR)
    code, found = verdict_of(fitted, "stop")
    assert (code, found["outcome"]) == (1, "unhealthy")
    assert found["reasons"][0].startswith(reason)
    health = fitted.call("experiment", "analyse", NAME)[1].split("\n\n")[1]
    assert health.count("✗") == 1
