"""What followed a decision: which of its items were viewed, and which of these were clicked in time."""

from __future__ import annotations


def outcomes_sql(below: str, above: str, *, within_us: int, inside: str, key: str) -> str:
    """Returns the parts `viewed` and `clicked` of a WITH whose part `decided` has the decisions.

    `below` and `above` are SELECTs with a row for each item of an event, `inside` is the condition on their rows, `key`
    has the columns of `decided` by which a page is known. Of its rows `decided` has `items` and `num_above`, how many
    items the page shows above the row: positions are counted down the page. Each stands in a part once, with its first
    time: neither order nor repeats of events matter.
    """
    # Whoever has a page's link may send events with its id: only its own visitor's count, and none from before it.
    ours = (
        f"{inside} AND event_us >= decided.received_us - {within_us:d} AND item IS NOT NULL "
        "AND list_contains(items, item)"
    )
    return f"""viewed AS (
  SELECT {key}, num_above + list_position(items, item) AS position, min(event_us) AS view_us, bool_or(below.bot) AS bot
  FROM ({below}) AS below JOIN decided USING (recommendation_id, visitor)
  WHERE {ours} GROUP BY ALL
),
clicked AS (
  SELECT {key}, num_above + list_position(items, item) AS position, min(event_us) AS click_us
  FROM ({above}) AS above JOIN decided USING (recommendation_id, visitor)
  WHERE {ours} AND NOT above.bot GROUP BY ALL
)"""  # noqa: S608 - every text in it is quoted, and every number one of ours
