"""What versions collect, and a verdict by it: the same rows, rules, shares, counts and roll-back on every target."""

import asyncio
import hashlib
import hmac
import time
from collections.abc import Iterator
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest

from controlled_rollout import steps
from controlled_rollout.cli.collected import with_collected
from controlled_rollout.endpoint import VERSION_HEADER, Endpoint
from controlled_rollout.evaluation.look import Look, look
from controlled_rollout.evidence import EvidenceWindow
from controlled_rollout.gate import Category, Gate, Outcome
from controlled_rollout.storage import open_storage
from controlled_rollout.target.kubernetes.target import KubernetesTarget
from controlled_rollout.target.protocol import Change
from tests.cluster.pod_storage import serving_pods
from tests.collected_rows import CollectedRows
from tests.conformance.target_lab import MAX_WAIT, TargetLab
from tests.numbered_callers import Calls, numbered_calls, request_body
from tests.polling import until
from tests.target_per_call import target_per_call

RATE = 40.0
SHARE = 0.5
SALT = "sodium"
# Of both versions: what is masked and hashed here is collected as it is by the other.
RULES = {
    "keep": ["age", "income", "customer", "label"],
    "mask": ["income"],
    "hash": ["inputs.customer"],
    "salt": {"secret": "collected", "key": "salt"},
}
GATE = Gate(
    latency_quantiles=(),
    categories={
        "label": Category(column="predictions.label", tolerance=0.1, on_difference="fail"),
        "age": Category(column="inputs.age"),
    },
)
WINDOW = EvidenceWindow(bin_width=timedelta(seconds=1), allowed_lag=timedelta(seconds=10))


@pytest.fixture(scope="module")
def collecting(
    target_lab: TargetLab, request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[TargetLab]:
    """The target with a storage that its versions' collectors reach: locally a folder needs no setting."""
    if target_lab.workspace.target == "local":
        yield target_lab
        return
    lab = request.getfixturevalue("lab")
    with serving_pods(lab, tmp_path_factory.mktemp("pod-storage")) as storage:
        with target_lab.turn():
            settings = storage.settings(lab, target_lab.workspace.namespace)
        workspace = target_lab.workspace.model_copy(update=settings)
        target = target_per_call(lambda: KubernetesTarget.open(workspace))
        yield replace(target_lab, workspace=workspace, target=target)


@pytest.fixture(scope="module")
def served(collecting: TargetLab) -> Endpoint:
    """An endpoint whose control `one` has rules for its columns; `two` says the same to everybody, and keeps a half."""

    async def serve() -> Endpoint:
        lab = collecting
        await lab.target.store_secret("collected", {"salt": SALT})
        endpoint = lab.endpoint("collecting")
        endpoint = lab.with_version(
            endpoint, "one", is_control=True, is_default=True, collect_model_data=True, collection=RULES
        )
        return await lab.serve(
            lab.with_version(endpoint, "two", "skewed", collect_model_data=True, collection={"share": SHARE})
        )

    with collecting.turn():
        return asyncio.run(serve())


async def call(lab: TargetLab, endpoint: Endpoint, version: str, count: int) -> Calls:
    """Send numbered requests to one version."""
    url = (await lab.target.status(endpoint.name)).url
    key = (await lab.target.keys(endpoint.name)).primary
    async with numbered_calls(url, key, rate=RATE, name=version, headers={VERSION_HEADER: version}) as calls:
        await calls.more(count)
    assert calls.broken == {} and calls.failed == []
    return calls


async def test_a_request_becomes_the_same_rows_of_the_same_columns_and_the_rules_apply_to_them(
    collecting: TargetLab, served: Endpoint
) -> None:
    lab = collecting
    calls = await call(lab, served, "one", 40)
    rows = CollectedRows(lab.workspace, served.name)

    async def are_there() -> bool:
        there = await asyncio.to_thread(rows.requests, "one", "predictions")
        return set(calls.answered) <= set(there)

    await until(are_there, "all requests are in the storage", interval_s=0.5)
    inputs, predictions = (
        {row["$correlation_id"]: row for row in rows.rows("one", collection)}
        for collection in ("inputs", "predictions")
    )
    assert rows.requests("one", "inputs") == rows.requests("one", "predictions")
    assert set(rows.requests("one", "inputs").values()) == {1}
    for name in calls.answered:
        asked = request_body(int(name.partition("-")[2]))
        hashed = hmac.new(SALT.encode(), str(asked["customer"]).encode(), hashlib.sha256).hexdigest()
        assert own_columns(inputs[name]) == {"age": asked["age"], "income": "***", "customer": hashed}
        # The rules keep what is named only.
        assert own_columns(predictions[name]) == {"label": "abc"[int(str(asked["age"])) % 3]}
        for row, status in ((inputs[name], None), (predictions[name], 200)):
            assert (row["$endpoint"], row["$version"], row["$row"], row["$rows"]) == (served.name, "one", 0, 1)
            assert row["$addressed"] and row["$status"] in (status, 200) and not row["$truncated"]
        assert inputs[name]["$request_id"] == predictions[name]["$request_id"]


def own_columns(row: dict[str, Any]) -> dict[str, Any]:
    """Return the columns of the data."""
    return {name: value for name, value in row.items() if not name.startswith("$")}


async def test_a_share_of_requests_is_chosen_by_their_ids_and_status_counts_them(
    collecting: TargetLab, served: Endpoint
) -> None:
    lab = collecting
    calls = await call(lab, served, "two", 100)
    rows = CollectedRows(lab.workspace, served.name)

    async def counted() -> bool:
        status = await with_collected(lab.workspace, served, await lab.target.status(served.name))
        found = status.versions["two"].collected
        there = await asyncio.to_thread(rows.requests, "two", "inputs")
        return found is not None and found.captured == there.total() > 20 and found.pending_bytes == 0

    await until(counted, "what was captured is in the storage", interval_s=0.5)
    status = await with_collected(lab.workspace, served, await lab.target.status(served.name))
    found = status.versions["two"].collected
    assert found is not None and (found.dropped, found.unreadable) == (0, 0)
    assert status.warnings == ()
    for collection in ("inputs", "predictions"):
        kept = rows.rows("two", collection)
        assert {row["$correlation_id"] for row in kept} < set(calls.answered)
        assert all(is_chosen(row["$request_id"]) for row in kept)
        assert own_columns(kept[0]).keys() == (
            {"age", "income", "customer"} if collection == "inputs" else {"version", "label"}
        )
    # Six standard deviations of a binomial.
    assert abs(found.captured - 50) <= 30
    assert rows.requests("two", "inputs") == rows.requests("two", "predictions")


def is_chosen(request_id: str) -> bool:
    """Return whether a request is kept, by the rule of docs/collected-data.md."""
    return int.from_bytes(hashlib.sha256(request_id.encode()).digest()[:8], "big") < SHARE * 2**64


async def test_predictions_that_collapse_are_rolled_back_by_the_data_claim_and_missing_rows_cannot_be_seen(
    collecting: TargetLab, served: Endpoint
) -> None:
    lab = collecting

    async def seen() -> Look:
        return await look(lab.workspace, lab.target, served.name, "two", gate=GATE, who="a test", window=WINDOW)

    url = (await lab.target.status(served.name)).url
    key = (await lab.target.keys(served.name)).primary
    async with numbered_calls(url, key, rate=RATE) as calls:
        newest = await lab.target.endpoint(served.name)
        shifted = await lab.serve(newest.shift("two", 50))
        began, looks = time.monotonic(), [await seen()]
        while looks[-1].verdict.outcome is not Outcome.FAIL and time.monotonic() - began < 150:
            await asyncio.sleep(1)
            looks.append(await seen())
        last = looks[-1].verdict
        assert last.outcome is Outcome.FAIL, [one.verdict.reason for one in looks]
        assert last.reason.startswith("label differs by more than 0.1"), last.reason
        assert "'a' 100 % against control's" in last.reason
        claims = {claim.name: claim for claim in last.claims}
        assert not claims["age differs"].reached and not claims["errors are higher"].reached

        # What of a version is gone from the storage is not judged by what is left.
        storage = open_storage(lab.workspace)
        for file in list(storage.list(f"collected/{served.name}/two/predictions/")):
            storage.delete(file.name)
        blind = (await seen()).verdict
        await steps.roll_back(
            lab.workspace,
            served.name,
            "two",
            change=Change(who="a test", reason=last.reason),
            timeout=MAX_WAIT,
            progress=print,
        )
        await calls.more(20)
        after = len(calls.of("two"))
        await calls.more(40)

    assert (blind.outcome, "requests are in the storage" in blind.reason) == (Outcome.CANNOT_SEE, True), blind.reason
    assert (calls.broken, calls.failed) == ({}, [])
    assert len(calls.of("two")) == after
    assert shifted.effective_traffic() == {"one": 50.0, "two": 50.0}
    assert (await lab.target.endpoint(served.name)).effective_traffic()["two"] == 0.0
