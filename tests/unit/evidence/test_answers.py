"""Whatever a metric store answers, a look has evidence or cannot see; one gate's nonsense touches no other gate."""

import asyncio
import re
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from controlled_rollout.errors import EvidenceUnavailableError
from controlled_rollout.evaluation.conclusion import conclude
from controlled_rollout.evidence import Evidence, EvidenceQuery, EvidenceWindow, SplitChange
from controlled_rollout.evidence import shared as shared_module
from controlled_rollout.evidence.log_analytics import LogAnalyticsEvidence
from controlled_rollout.gate import Category, Gate, Mean
from controlled_rollout.record import LookInput, LookSettings

S = timedelta(seconds=1)
STARTED = datetime(2026, 3, 1, 12, 0, tzinfo=UTC)
WINDOW = EvidenceWindow(bin_width=60 * S, allowed_lag=60 * S, baseline_length=600 * S)
QUERY = "AppEvents | project TimeGenerated, Version = Name, Value = 1.0"
GATE = Gate(
    latency_quantiles=(0.5, 0.95),
    means={"revenue": Mean(worse="lower", kql=QUERY)},
    categories={"country": Category(kql=QUERY)},
)
Rows = list[dict[str, Any]]


@pytest.fixture(autouse=True)
def rounds_without_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shared_module, "ROUND_INTERVAL_S", 0)
    monkeypatch.setattr(shared_module, "GATHER_S", 0)


class Answering(LogAnalyticsEvidence):
    """A reader whose store gives these rows, by the first column that only that query asks for.

    Attributes:
        rows: By that column. The gate number n is of the endpoint `digits-n`: it gets its number in each query.
    """

    def __init__(self, rows: Mapping[str, Rows]) -> None:
        super().__init__(endpoint="https://store.example", workspace_id="w", credential=object())
        self.rows = rows
        self.gates = {str(number) for number in range(max(1, len(rows["LateMs"])))}

    def _query_blocking(self, text: str, columns: Sequence[str]) -> Rows:
        marks = ("Bucket", "LateMs", "Mean", "Category", "Errors")
        rows = self.rows[next(mark for mark in marks if mark in columns)]
        asked = {of: int(number) for number, of in re.findall(r'\[(\d+),"digits-(\d+)"', text)}
        not_asked = self.gates - asked.keys()
        return [
            {**row, "Gate": asked[repr(row["Gate"])]} if repr(row.get("Gate")) in asked else dict(row)
            for row in rows
            if repr(row.get("Gate")) not in not_asked
        ]


def good_rows(gates: int = 1) -> dict[str, Rows]:
    """What a store in order answers, for so many gates of one query."""
    bins = [STARTED - 60 * S, STARTED, STARTED + 60 * S]
    keys = [{"Version": version, "Bin": bin_, "Before": bin_ < STARTED} for bin_ in bins for version in ("one", "two")]
    counts = {"Requests": 50, "Represented": 50, "Errors": 1, "Overloaded": 2, "Slow0": 25, "Slow1": 3}
    counts |= {"HungUp": 1, "LeftQueue": 0, "Timed": 40, "Scored0": 20, "Scored1": 2}
    return {
        "Bucket": [{"Gate": gate, "Bucket": float(b), "Requests": 200} for gate in range(gates) for b in (230, 250)],
        "Errors": [{"Gate": gate, **key, **counts} for gate in range(gates) for key in keys],
        "LateMs": [{"Endpoint": f"digits-{gate}", "Oldest": STARTED, "LateMs": 4.0} for gate in range(gates)],
        "Mean": [{**key, "Count": 9, "Mean": 1.5, "Variance": 0.25} for key in keys],
        "Category": [{**key, "Category": name, "Count": 20} for key in keys for name in ("DE", "FR")],
    }


def question(endpoint: str = "digits-0", gate: Gate = GATE) -> EvidenceQuery:
    return EvidenceQuery(
        endpoint=endpoint, control="one", treatment="two", started=STARTED, now=STARTED + 190 * S, window=WINDOW,
        splits=[SplitChange(STARTED - S, 0.5)], gate=gate,
    )  # fmt: skip


def outcome_of(evidence: Evidence, gate: Gate = GATE) -> str:
    settings = LookSettings(
        endpoint="digits-0", treatment="two", control="one", started=STARTED, window=WINDOW, gate=gate
    )
    return conclude(LookInput(settings, evidence)).outcome.value


def read(rows: Mapping[str, Rows], gate: Gate = GATE) -> Evidence:
    return asyncio.run(Answering(rows).read(question(gate=gate)))


def test_an_answer_in_order_is_evidence() -> None:
    evidence = read(good_rows())

    assert [bin_.treatment.requests for bin_ in evidence.bins] == [50, 50]
    assert outcome_of(evidence) == "not_enough_evidence"


NONSENSE: dict[tuple[str, str], tuple[object, ...]] = {
    ("Bucket", "Gate"): (
        999,
        1,
        -1,
        0.5,
        None,
        "0",
        True,
        float("nan"),
        10**400,
    ),
    ("Bucket", "Bucket"): (
        10**6,
        -(10**6),
        "nan",
        None,
        float("inf"),
    ),
    ("Bucket", "Requests"): (
        -1,
        1e300,
        0.5,
        [],
    ),
    ("Errors", "Gate"): (
        999,
        -1,
        float("nan"),
        None,
        "zero",
    ),
    ("Errors", "Requests"): (
        -1,
        10**13,
        float("inf"),
        "50",
        None,
        49.5,
    ),
    ("Errors", "Errors"): (
        -1,
        51,
        None,
        float("nan"),
    ),
    ("Errors", "Overloaded"): (
        -1,
        51,
        None,
        "two",
    ),
    ("Errors", "Slow1"): (
        -1,
        49,
        None,
    ),
    ("Errors", "HungUp"): (
        -1,
        2,
        None,
    ),
    ("Errors", "LeftQueue"): (
        -1,
        0.5,
        None,
    ),
    ("Errors", "Timed"): (
        -1,
        49,
        None,
    ),
    ("Errors", "Scored0"): (
        -1,
        41,
        None,
        "two",
    ),
    ("Errors", "Represented"): (
        49,
        -50,
        None,
        "x",
    ),
    ("Errors", "Version"): (
        "three",
        None,
        1,
        ["one"],
    ),
    ("Errors", "Before"): (
        None,
        "false",
        1,
        0,
    ),
    ("Errors", "Bin"): (
        None,
        "yesterday",
        0,
        datetime.max,
        datetime(2026, 3, 1, 12),
        STARTED + S,
        STARTED + 86_400 * S,
        STARTED - 86_400 * S,
        datetime.max.replace(tzinfo=UTC),
        datetime.min.replace(tzinfo=UTC),
    ),
    ("LateMs", "LateMs"): (
        1e300,
        float("inf"),
        "late",
        [],
        True,
    ),
    ("LateMs", "Oldest"): (
        "yesterday",
        0,
        datetime(2026, 3, 1),
        False,
    ),
    ("LateMs", "Endpoint"): (
        None,
        1,
        [],
    ),
    ("Mean", "Mean"): (
        float("nan"),
        "1",
        None,
        1e200,
        10**400,
    ),
    ("Mean", "Variance"): (
        -1.0,
        None,
        float("inf"),
        "NaN",
    ),
    ("Mean", "Count"): (
        -1,
        None,
        1.5,
    ),
    ("Category", "Count"): (
        -1,
        None,
        "20",
    ),
    ("Category", "Category"): (
        None,
        1,
        ["DE"],
    ),
}


@pytest.mark.parametrize(
    ("query", "column", "value"), [(*place, value) for place, values in NONSENSE.items() for value in values]
)
def test_a_value_that_cannot_be_is_named_and_nothing_is_judged(query: str, column: str, value: object) -> None:
    rows = good_rows()
    rows[query][0][column] = value

    with pytest.raises(EvidenceUnavailableError, match=column):
        read(rows)


@pytest.mark.parametrize("query", ["Bucket", "Errors", "LateMs", "Mean", "Category"])
def test_a_row_that_is_there_twice_is_not_believed(query: str) -> None:
    rows = good_rows()
    rows[query].append(rows[query][0])

    with pytest.raises(EvidenceUnavailableError, match="once"):
        read(rows)


@pytest.mark.parametrize(
    ("query", "column"), [("Bucket", "Bucket"), ("Errors", "Errors"), ("Errors", "Version"), ("LateMs", "LateMs")]
)
def test_nonsense_about_one_gate_touches_no_other_gate_of_the_same_query(query: str, column: str) -> None:
    rows = good_rows(gates=3)
    of_second = [row for row in rows[query] if row.get("Gate") == 1 or row.get("Endpoint") == "digits-1"]
    of_second[0][column] = "nonsense"
    gate = Gate(latency_quantiles=(0.5, 0.95))

    async def look_together() -> list[Evidence | BaseException]:
        reader = Answering(rows)
        reads = (reader.read(question(f"digits-{number}", gate)) for number in range(3))
        return await asyncio.gather(*reads, return_exceptions=True)

    first, second, third = asyncio.run(look_together())

    assert isinstance(second, EvidenceUnavailableError)
    assert "nonsense" in str(second)
    for other in (first, third):
        assert isinstance(other, Evidence)
        assert outcome_of(other, gate) == "not_enough_evidence"


ANYTHING = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=5), st.binary(max_size=3),
    st.datetimes(), st.datetimes(timezones=st.just(UTC)), st.lists(st.integers(), max_size=2), st.just(10**400),
    st.sampled_from([0, 1, 50, "one", "two", True, False, STARTED, STARTED + 60 * S]),
)  # fmt: skip


@st.composite
def answers(draw: st.DrawFn) -> dict[str, Rows]:
    """A good answer of which up to four values are something else, and rows are missing or doubled."""
    rows = good_rows()
    for _ in range(draw(st.integers(1, 4))):
        table = rows[draw(st.sampled_from(sorted(rows)))]
        if table:
            row = draw(st.integers(0, len(table) - 1))
            change = draw(st.sampled_from(["value", "value", "value", "missing", "doubled"]))
            if change == "value":
                table[row][draw(st.sampled_from(sorted(table[row])))] = draw(ANYTHING)
            elif change == "missing":
                del table[row]
            else:
                table.append(dict(table[row]))
    return rows


@given(answers())
def test_any_answer_is_evidence_or_cannot_be_seen_and_never_another_error(rows: dict[str, Rows]) -> None:
    try:
        evidence = read(rows)
    except EvidenceUnavailableError as error:
        assert str(error)
        return
    assert outcome_of(evidence) in {"pass", "fail", "not_enough_evidence", "cannot_see", "split_is_wrong"}
