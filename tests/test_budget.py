import budget


def test_a_room_may_differ_by_two_fifths_and_the_whole_may_not():
    seconds = {"base": 10, "topics": 20}
    assert budget.overspent({"base": 13.9, "topics": 15.0}, seconds) == []
    assert budget.overspent({"base": 14.1, "topics": 15.0}, seconds) == ["base took 14.1 s of its 10 s"]
    assert budget.overspent({"base": 11.0, "topics": 20.0}, seconds) == ["all rooms together took 31.0 s of their 30 s"]
    assert budget.overspent({"new": 0.1}, seconds) == ["new took 0.1 s of its 0 s"]
