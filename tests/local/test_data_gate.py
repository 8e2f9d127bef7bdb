"""A whole rollout judged by its data: the router, replicas that collect, the collector, the metric store, the gate."""

import asyncio
import time
from collections.abc import Iterator
from datetime import timedelta

import pytest

from controlled_rollout.endpoint import Endpoint
from controlled_rollout.evaluation.look import Look, look
from controlled_rollout.evidence import EvidenceWindow
from controlled_rollout.gate import Category, Gate, Outcome
from tests.local.local_target_lab import Lab, running, steady_load

# Predictions are alike at first; a version that is skewed says the same to everybody.
SCRIPT = """
import itertools, json

labels = itertools.cycle("LABELS")

def init():
    pass

def run(data):
    json.loads(data)
    return [{"label": next(labels)}]
"""
GATE = Gate(
    latency_quantiles=(),
    categories={
        "label": Category(column="predictions.label", tolerance=0.1, on_difference="fail"),
        "input": Category(column="inputs.c0"),
    },
)
WINDOW = EvidenceWindow(bin_width=timedelta(seconds=1), allowed_lag=timedelta(seconds=8))


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    with running(tmp_path_factory.mktemp("data-gate")) as lab:
        yield lab


@pytest.mark.timeout(280)
async def test_a_model_whose_predictions_collapse_fails_without_an_error(lab: Lab) -> None:
    usual, skewed = [await lab.image(script=SCRIPT.replace("LABELS", labels)) for labels in ("abc", "a")]
    endpoint = Endpoint(name="skewed").create_version(
        "one", image=usual, is_control=True, is_default=True, collect_model_data=True
    )
    endpoint, _ = await lab.serve(endpoint.create_version("two", image=skewed, collect_model_data=True))
    await asyncio.gather(lab.ready("skewed", "one"), lab.ready("skewed", "two"))
    key = (await lab.target.keys("skewed")).primary
    async with steady_load(await lab.url("skewed"), key, rate=40):
        endpoint, _ = await lab.serve(endpoint.shift("two", 50))
        began = time.monotonic()
        seen: list[Look] = []
        while not seen or (seen[-1].verdict.outcome is not Outcome.FAIL and time.monotonic() - began < 120):
            await asyncio.sleep(1)
            seen.append(await look(lab.workspace, lab.target, "skewed", "two", gate=GATE, who="a test", window=WINDOW))
    reasons = [f"{one.verdict.outcome.value}: {one.verdict.reason}" for one in seen]
    assert seen[-1].verdict.outcome is Outcome.FAIL, "\n".join(reasons)
    assert seen[-1].verdict.reason.startswith("label differs by more than 0.1"), reasons[-1]
    assert "'a' 100 % against control's" in seen[-1].verdict.reason
    claims = {claim.name: claim for claim in seen[-1].verdict.claims}
    assert not claims["input differs"].reached
    assert not claims["errors are higher"].reached
