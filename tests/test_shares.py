import pytest

from shares import share_of


@pytest.mark.parametrize(
    "nodeid",
    [
        "tests/contracts/test_topics.py::test_contract[kafka-reads_wait_for_records]",
        "tests/journeys/test_cluster.py::test_what_was_acknowledged_is_in_the_lake_once[laptop]",
        "tests/survive/test_hdfs.py::test_anything",
        "tests/tables/test_table.py::test_history_tells_who_wrote_what[hdfs]",
    ],
)
def test_what_needs_the_cluster_is_one_share(nodeid):
    assert share_of(nodeid) == share_of("tests/topics/test_kafka.py::test_kcat_reads_what_we_wrote")


def test_the_browser_is_one_share_and_else_a_file_is():
    assert share_of("tests/clients/test_home.py::test_a") == share_of("tests/clients/test_browser.py::test_b")
    assert share_of("tests/tables/test_table.py::test_a[file]") == "tests/tables/test_table.py"
    assert share_of("src/headrace/base/ids.py::headrace.base.ids.make_id") == "src/headrace/base/ids.py"
