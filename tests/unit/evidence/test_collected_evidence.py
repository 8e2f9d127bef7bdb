"""Collected columns in the gate's bins: joined to what callers saw, or said not to be seen."""

import asyncio
import json
import math
import pickle
import random
import re
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from pathlib import Path
from statistics import mean, variance
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from controlled_rollout.collection_settings import Collection
from controlled_rollout.environment_variables import SecretReference
from controlled_rollout.evidence import Evidence, EvidenceQuery, EvidenceWindow, SplitChange
from controlled_rollout.evidence.collected import aggregates, reader
from controlled_rollout.evidence.collected.engine import PartSummary
from controlled_rollout.evidence.collected.parts import day_prefixes
from controlled_rollout.evidence.collected.source import CollectedEvidence, evaluate_aggregates
from controlled_rollout.evidence.collected.terms import cannot_be_judged
from controlled_rollout.evidence.collected.totals import Totals
from controlled_rollout.expectations.process import count_in_process
from controlled_rollout.expectations.result import Counted, ExpectationResult, Validation, ValidationRequest
from controlled_rollout.gate import Aggregates, Bin, Category, Counts, Gate, Mean, Moments, Outcome, judge
from controlled_rollout.workspace import Workspace
from controlled_rollout_collector.shipping import SpoolShipper
from controlled_rollout_collector.storage import FolderStorage
from tests.unit.collector.spools import SpoolWriter, exchange, make_spool
from tests.unit.evidence.collected_parts import MINUTE, T0, Exchange, S, write_part

COLUMNS = {"label": "VARCHAR", "score": "DOUBLE"}
LABELS = Gate(categories={"label": Category(column="predictions.label", tolerance=0.1, on_difference="fail")})
SCORES = Gate(
    means={"score": Mean(worse="lower", column="predictions.score", clip=0.05)},
    categories={"buckets": Category(column="predictions.score", buckets=4, tolerance=0.1)},
)
UNTIL = T0 + 5 * MINUTE
COLLECTS = {"v1": Collection(), "v2": Collection()}


@dataclass
class Traffic:
    """A metric store that knows how many requests each version had."""

    bins: tuple[Bin, ...]

    async def read(self, query: EvidenceQuery) -> Evidence:
        return Evidence(self.bins, (), (), UNTIL, ("AppRequests",))


@dataclass
class Rollout:
    """Two versions that have collected, in a folder.

    Attributes:
        folder: The storage.
        exchanges: The requests of both versions, by name; those before T0 are the baseline.
    """

    folder: Path
    exchanges: dict[str, list[Exchange]] = field(default_factory=dict)

    def write(
        self, version: str, exchanges: Sequence[Exchange], *, name: str = "p", collection: str = "predictions"
    ) -> Path:
        """Write one part of a version."""
        begin = round((T0 + min(one.at for one in exchanges) * S).timestamp() * 1000)
        path = self.folder / f"collected/digits/{version}/{collection}/{T0:%Y/%m/%d}/{begin}-{name}.parquet"
        write_part(path, exchanges, COLUMNS)
        return path

    def state(self, version: str, **changes: Any) -> None:
        """Write what the version's only replica has shipped."""
        now = (UNTIL + MINUTE).timestamp()
        written = {
            "replica": f"{version}-1", "shipped_until": now, "captured": 0, "dropped": 0, "unreadable": 0,
            "lost_at": None, "watched_since": 0, "pending_bytes": 0, "final": False, "updated": now,
        }  # fmt: skip
        path = self.folder / f"collected/digits/{version}/_state/{version}-1.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(written | changes))

    def source(self, **engine: Any) -> CollectedEvidence:
        bins = []
        for minute in range(5):
            counts = {
                version: Counts(sum(minute * 60 <= one.at < minute * 60 + 60 for one in exchanges), 0)
                for version, exchanges in self.exchanges.items()
            }
            bins.append(Bin(T0 + minute * MINUTE, counts["v1"], counts["v2"], share=0.5))
        return CollectedEvidence(Traffic(tuple(bins)), str(self.folder), self.folder / "cache", **engine)

    def read(self, gate: Gate, **changes: Any) -> Evidence:
        return asyncio.run(self.source().read(replace(question(gate), **changes)))


def question(gate: Gate) -> EvidenceQuery:
    window = EvidenceWindow(bin_width=MINUTE, allowed_lag=timedelta(0), baseline_length=timedelta(hours=1))
    return EvidenceQuery(
        "digits", "v1", "v2", T0, UNTIL + MINUTE, window, (SplitChange(T0, 0.5),), gate, collected=COLLECTS
    )


def requests(version: str, labels: str = "ab", *, since: int = 0, until: int = 300) -> list[Exchange]:
    draw = random.Random(f"{version}{since}")
    return [
        Exchange(f"{version}-{at}", at, [{"label": draw.choice(labels), "score": draw.gauss(0, 1)}])
        for at in range(since, until)
    ]


@pytest.fixture
def rollout(tmp_path: Path) -> Rollout:
    """A rollout of five minutes with a request a second to both versions, after five minutes of control."""
    one = Rollout(tmp_path, {"v1": requests("v1"), "v2": requests("v2", "a")})
    one.write("v1", requests("v1", since=-300, until=0))
    for version, exchanges in one.exchanges.items():
        one.write(version, exchanges[:150])
        one.write(version, exchanges[150:])
        one.state(version)
    return one


def test_the_bins_have_the_categories_of_both_versions(rollout: Rollout) -> None:
    evidence = rollout.read(LABELS)
    assert evidence.unseen == ""
    for number, bin_ in enumerate(evidence.bins):
        for version, counts in (("v1", bin_.control), ("v2", bin_.treatment)):
            labels = [one.rows[0]["label"] for one in rollout.exchanges[version] if one.at // 60 == number]
            assert counts.categories["label"] == {label: labels.count(label) for label in sorted(set(labels))}
            assert counts.requests == 60


def test_buckets_and_bounds_are_control_s_quantiles_before_the_rollout(rollout: Rollout) -> None:
    evidence = rollout.read(SCORES)
    before = sorted(one.rows[0]["score"] for one in requests("v1", since=-300, until=0))
    assert evidence.cuts["score"] == (before[14], before[284])
    assert len(evidence.cuts["buckets"]) == 3
    assert evidence.cuts["buckets"][1] == before[149]
    # Whatever is written later, the baseline stays what it was.
    rollout.write("v1", requests("late", since=0, until=300), name="later")
    assert rollout.read(SCORES).cuts == evidence.cuts
    low, high = evidence.cuts["score"]
    clipped = [min(max(one.rows[0]["score"], low), high) for one in rollout.exchanges["v2"][:60]]
    assert math.isclose(evidence.bins[0].treatment.means["score"].mean, sum(clipped) / 60, rel_tol=1e-9)


def test_inputs_that_are_no_numbers_keep_the_gate_from_seeing_only_if_they_are_many(rollout: Rollout) -> None:
    """A caller who sends text for a number cannot keep everybody's model from being judged."""
    gate = Gate(means={"age": Mean(worse="lower", column="inputs.score")})
    for version, odd in (("v1", 15), ("v2", 3)):
        exchanges = requests(version)
        rollout.write(version, exchanges[odd:], collection="inputs")
        text = [replace(one, rows=[{"label": "a", "score": "none"}] * 3) for one in exchanges[:odd]]
        write_part(
            rollout.folder / f"collected/digits/{version}/inputs/{T0:%Y/%m/%d}/text.parquet",
            text,
            {**COLUMNS, "score": "VARCHAR"},
        )
    evidence = rollout.read(gate)
    assert evidence.unseen == ""
    assert sum(bin_.control.means["age"].count for bin_ in evidence.bins) == 285
    rollout.write(
        "v1",
        [replace(one, rows=[{"label": "a", "score": math.inf}]) for one in requests("odd", until=2)],
        name="odd",
        collection="inputs",
    )
    assert "inputs.score (metric 'age') of version 'v1' is no finite number in 17 requests" in rollout.read(gate).unseen


def test_without_enough_requests_before_the_rollout_there_are_no_buckets(rollout: Rollout) -> None:
    unseen = rollout.read(SCORES, baseline_from=T0 - 50 * S).unseen
    assert "control 'v1' has 50 requests with a number in predictions.score" in unseen
    assert "100 are needed" in unseen


def test_the_metric_store_alone_is_read_for_a_gate_without_columns(rollout: Rollout) -> None:
    evidence = rollout.read(Gate(), collected={})
    assert (evidence.unseen, evidence.bins[0].control.categories) == ("", {})


SALT = SecretReference(secret="salt", key="salt")


@pytest.mark.parametrize(
    ("collected", "problem"),
    [
        (None, "judges predictions.label, predictions.score, and version 'v2' does not collect"),
        (Collection(layout="csv"), "version 'v2' collects in the layout 'csv'"),
        (Collection(keep=("score", "inputs.label")), "judges predictions.label .* does not keep it"),
        (Collection(keep=("predictions.label", "score"), mask=("score",)), "judges predictions.score .* masks it"),
        (Collection(hash=("predictions.score",), salt=SALT), "judges predictions.score .* hashes it"),
        (Collection(keep=("predictions.label", "score"), hash=("label",), salt=SALT), ""),
    ],
)
def test_a_version_that_does_not_collect_what_is_judged_is_named(
    rollout: Rollout, collected: Collection | None, problem: str
) -> None:
    both = Gate(means=SCORES.means, categories={"type": Category(column="inputs.$content_type"), **LABELS.categories})
    gate = both.model_copy(update={"categories": LABELS.categories})
    assert cannot_be_judged(Gate(), "v2", collected) == ""
    if not problem:
        assert cannot_be_judged(both, "v2", collected) == ""
        return
    settings = {"v1": Collection()} if collected is None else {"v1": Collection(), "v2": collected}
    evidence = rollout.read(gate, collected=settings)
    assert re.search(problem, evidence.unseen)
    assert evidence.bins[0].treatment.requests == 60


def test_missing_late_dropped_and_unreadable_data_is_said_and_nothing_of_it_is_judged(rollout: Rollout) -> None:
    def unseen(gate: Gate = LABELS) -> str:
        evidence = rollout.read(gate)
        assert all(counts.categories == {} for bin_ in evidence.bins for counts in (bin_.control, bin_.treatment))
        return evidence.unseen

    rollout.state("v2", shipped_until=T0.timestamp())
    assert "collected data of version 'v2' is late" in unseen()
    rollout.state("v2", dropped=3, lost_at=UNTIL.timestamp())
    assert "3 records of version 'v2' were dropped" in unseen()
    rollout.state("v2", dropped="?")
    assert "v2-1.json does not say" in unseen()
    rollout.state("v2")
    no_column = Gate(categories={"x": Category(column="predictions.lable")})
    assert "column predictions.lable (metric 'x') is not in the data that version 'v1' has collected" in unseen(
        no_column
    )
    assert "the columns there: label, score" in unseen(no_column)
    of_script = Gate(categories={"x": Category(column="features.a")})
    assert "version 'v1' has collected nothing in 'features'" in unseen(of_script)
    text = Gate(means={"x": Mean(worse="lower", column="predictions.label")})
    assert "is no finite number in 300 requests" in unseen(text)
    many = Gate(categories={"x": Category(column="predictions.score")})
    assert "has 300 different values, and 200 are judged" in unseen(many)
    part = next((rollout.folder / "collected/digits/v2/predictions").rglob("*.parquet"))
    part.write_bytes(part.read_bytes()[:100])
    assert "collected data cannot be read" in unseen()
    part.unlink()
    assert "of version 'v2' 150 requests are in the storage since 12:00:00, and it answered 300" in unseen()


def test_a_part_that_is_written_anew_counts_once(rollout: Rollout) -> None:
    """A collector that was killed between two steps writes a part again, with the same rows or more."""
    path = rollout.write("v2", rollout.exchanges["v2"][150:200], name="p2")
    rollout.write("v2", rollout.exchanges["v2"][150:], name="p2")
    path.with_name(f"{path.name.partition('-')[0]}-p.parquet").unlink()
    assert sum(sum(bin_.treatment.categories["label"].values()) for bin_ in rollout.read(LABELS).bins) == 300


def test_a_fresh_process_reads_what_one_that_has_looked_before_knows(rollout: Rollout, tmp_path: Path) -> None:
    """What is remembered may save a query, never change a verdict."""
    late = rollout.write("v2", rollout.exchanges["v2"][200:], name="z")
    hidden = late.rename(tmp_path / "hidden")
    incomplete = rollout.read(SCORES)
    hidden.rename(late)
    for part in (rollout.folder / "collected/digits/v2/predictions").rglob("*-p.parquet"):
        if part.name.startswith(str(round((T0 + 150 * S).timestamp()))):
            part.unlink()
    rollout.write("v2", rollout.exchanges["v2"][150:200], name="y")
    here = rollout.read(SCORES)
    assert here != incomplete
    code = f"""
import pickle, sys
from pathlib import Path
sys.path[:0] = {sys.path!r}
from tests.unit.evidence import test_collected_evidence as module
one = module.Rollout(Path({str(rollout.folder)!r}), {{"v1": module.requests("v1"), "v2": module.requests("v2", "a")}})
sys.stdout.buffer.write(pickle.dumps(one.read(module.SCORES)))
"""
    fresh = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True).stdout
    assert pickle.loads(fresh) == here  # noqa: S301 - written by this test


MOMENTS = st.builds(Moments, st.integers(1, 1000), st.floats(-1e12, 1e12, allow_subnormal=False), st.floats(0, 1e20))


@settings(max_examples=50)
@given(st.lists(MOMENTS, min_size=1, max_size=8), st.randoms(use_true_random=False))
def test_the_order_of_parts_changes_nothing(moments: list[Moments], order: random.Random) -> None:
    shuffled = moments.copy()
    order.shuffle(shuffled)
    totals = []
    for some in (moments, shuffled):
        total = Totals()
        for one in some:
            total.add(PartSummary({1: one.count}, {"m": {1: one}}, {"c": {1: {"a": one.count}}}))
        totals.append((total.requests, total.means_in(1), total.categories_in(1)))
    assert totals[0] == totals[1]


def test_added_moments_are_those_of_all_values() -> None:
    draw = random.Random(1)
    values = [[draw.gauss(1e6, 1) for _ in range(size)] for size in (1, 2, 50, 3)]
    total = Totals()
    for part in values:
        total.add(PartSummary(means={"m": {1: _moments(part)}}))
    every = [value for part in values for value in part]
    found, expected = total.means_in(1)["m"], _moments(every)
    assert found.count == expected.count
    assert math.isclose(found.mean, expected.mean, rel_tol=1e-14)
    assert math.isclose(found.variance, expected.variance, rel_tol=1e-6)


def _moments(values: list[float]) -> Moments:
    return Moments(len(values), mean(values), variance(values) if len(values) > 1 else 0.0)


def test_files_of_other_days_are_not_listed() -> None:
    midnight = datetime(2026, 3, 2, tzinfo=T0.tzinfo)
    days = list(day_prefixes("digits", "v1", "inputs", since=midnight - 2 * MINUTE, until=midnight + 120 * MINUTE))
    assert days == ["collected/digits/v1/inputs/2026/03/01/", "collected/digits/v1/inputs/2026/03/02/"]


def test_what_the_collector_writes_is_what_the_gate_reads(tmp_path: Path) -> None:
    """From the records of a spool to the gate's bins: predictions of 0, 1 and 2 in turn, batches of three rows."""
    rollout = Rollout(tmp_path / "storage", {"v1": requests("v1"), "v2": requests("v2")})
    for version in rollout.exchanges:
        spool = make_spool(tmp_path / version, replica=f"{version}-1", version=version)
        writer = SpoolWriter(spool)
        for number in range(300):
            head, asked, answered = exchange(number, rows=3)
            writer.append(head | {"id": f"{version}-{number}", "time": (T0 + number * S).timestamp()}, asked, answered)
        head, asked, answered = exchange(7)
        writer.append(head | {"id": "smoke", "time": T0.timestamp(), "addressed": True}, asked, answered)
        SpoolShipper(spool, FolderStorage(rollout.folder), clock=(UNTIL + MINUTE).timestamp).ship()
        writer.end()
    gate = Gate(
        means={"age": Mean(worse="lower", column="inputs.age")},
        categories={
            "label": Category(column="predictions.prediction", tolerance=0.1),
            "type": Category(column="inputs.$content_type"),
        },
    )
    evidence = rollout.read(gate)
    assert evidence.unseen == ""
    assert len(evidence.bins) == 5
    for number, bin_ in enumerate(evidence.bins):
        for counts in (bin_.control, bin_.treatment):
            assert counts.categories == {"label": {"0": 20, "1": 20, "2": 20}, "type": {"application/json": 60}}
            assert (counts.means["age"].count, counts.means["age"].mean) == (60, 60 * number + 29.5)


def test_a_model_that_refuses_what_control_takes_fails_by_its_collected_statuses(tmp_path: Path) -> None:
    rollout = Rollout(tmp_path / "storage", {"v1": requests("v1"), "v2": requests("v2")})
    for version, status in (("v1", 200), ("v2", 400)):
        spool = make_spool(tmp_path / version, replica=f"{version}-1", version=version)
        writer = SpoolWriter(spool)
        for number in range(300):
            head, asked, answered = exchange(number)
            own = {"id": f"{version}-{number}", "time": (T0 + number * S).timestamp(), "status": status}
            writer.append(head | own, asked, answered)
        SpoolShipper(spool, FolderStorage(rollout.folder), clock=(UNTIL + MINUTE).timestamp).ship()
        writer.end()
    asked_for = Category(column="predictions.$status", tolerance=0.02, on_difference="fail")
    gate = Gate(latency_quantiles=(), categories={"statuses": asked_for})

    evidence = rollout.read(gate)

    assert evidence.unseen == ""
    assert evidence.bins[0].treatment.categories == {"statuses": {"400": 60}}
    assert judge(evidence.bins, gate).outcome is Outcome.FAIL


def suite(kind: str, **kwargs: Any) -> Gate:
    expectation = {"type": f"expect_column_{kind}", "kwargs": {"column": "predictions.label", **kwargs}}
    return Gate.model_validate({"expectations": {"expectations": [expectation]}})


def test_the_bins_have_the_rows_of_expectations_and_a_second_look_reads_only_new_parts(
    rollout: Rollout, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate = suite("values_to_be_in_set", value_set=["b"])
    [name] = gate.expectation_names
    asked: list[int] = []

    def counted(request: ValidationRequest, **more: Any) -> Counted:
        asked.append(len(request.parts))
        return count_in_process(request, **more)

    monkeypatch.setattr(reader, "count_in_process", counted)
    evidence = rollout.read(gate)

    assert evidence.unseen == ""
    for number, bin_ in enumerate(evidence.bins):
        for version, counts in (("v1", bin_.control), ("v2", bin_.treatment)):
            labels = [one.rows[0]["label"] for one in rollout.exchanges[version] if one.at // 60 == number]
            assert counts.categories[name] == {"expected": labels.count("b"), "unexpected": labels.count("a")}
    verdict = judge(evidence.bins, gate)
    assert (verdict.outcome, f"{name} is violated more" in verdict.reason) == (Outcome.FAIL, True)
    assert rollout.read(gate).bins == evidence.bins
    assert asked == [3, 2]


@pytest.mark.parametrize(
    ("counted", "message"),
    [
        (Counted(faults={"labels": "wrong"}), r"expectation 'labels' could not be evaluated on .* 'v1' .*: wrong"),
        (
            Counted(),
            r"predictions\.gone \(expectation 'labels'\) is not in the data .* the columns there: label, score",
        ),
    ],
)
def test_an_expectation_that_cannot_be_evaluated_cannot_be_seen(
    counted: Counted, message: str, rollout: Rollout, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reader, "count_in_process", lambda request, **more: counted)
    described = {"name": "labels", "collection": "predictions", "type": "expect_column_values_to_be_null"}
    gate = Gate.model_validate({"expectations": {"expectations": [{**described, "kwargs": {"column": "gone"}}]}})

    assert re.search(message, rollout.read(gate).unseen)


def test_a_version_that_does_not_collect_cannot_be_seen_by_expectations(rollout: Rollout) -> None:
    evidence = rollout.read(suite("values_to_be_in_set", value_set=["a"]), collected={})

    assert "the gate judges predictions.label" in evidence.unseen and "does not collect" in evidence.unseen


AGGREGATES = Gate.model_validate(
    {
        "expectations": {
            "expectations": [
                {"type": "expect_column_mean_to_be_between", "kwargs": {"column": "predictions.score", "max_value": 9}},
                {"type": "expect_column_values_to_be_null", "kwargs": {"column": "predictions.label"}},
            ]
        }
    }
)


def test_expectations_about_all_rows_are_asked_of_both_versions_rows_at_the_present_share(
    rollout: Rollout, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[ValidationRequest] = []

    def validated(request: ValidationRequest, **more: Any) -> Validation:
        asked.append(request)
        assert [one.is_row_wise for one in request.suite.expectations] == [False]
        [name] = [one.name for one in request.suite.expectations]
        treated = "/v2/" in request.parts[0]
        return Validation(
            rows=9, part=1, results=(ExpectationResult(name=name, success=not treated, observed=[0.5, 9.5][treated]),)
        )

    monkeypatch.setattr(aggregates, "validate_in_process", validated)
    since, until = T0 + MINUTE, T0 + 4 * MINUTE
    workspace = Workspace.local(rollout.folder / "root").model_copy(update={"storage": str(rollout.folder)})

    def evaluated(query: EvidenceQuery) -> Aggregates:
        return asyncio.run(evaluate_aggregates(workspace, query, since=since, until=until))

    found = evaluated(question(AGGREGATES))

    assert [(one.since, one.until) for one in asked] == [(since, until)] * 2
    assert (found.shifted, found.since, found.until) == (T0, since, until)
    [result] = found.results
    assert (result.treatment, result.control) == (False, True)
    assert (result.treatment_found, result.control_found) == ("observed 9.5", "observed 0.5")
    # Control without traffic at this share is compared by its rows since the rollout began.
    alone = replace(question(AGGREGATES), splits=(SplitChange(T0, 0.5), SplitChange(since, 1.0)))
    evaluated(alone)
    assert [one.since for one in asked[2:]] == [since, T0]
