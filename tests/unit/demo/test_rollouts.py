"""How often the demo rolls out, and that it ends whatever a gate can come to no decision about."""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from controlled_rollout.endpoint import Endpoint
from controlled_rollout.record import Decision
from scripts.demo.airflow import Airflow, TaskState
from scripts.demo.demo_run import DemoRun
from scripts.demo.errors import DemoError
from scripts.demo.rollouts import on_hold_because, roll_out_until_decided, waiting_for
from scripts.demo.settings import RUN_IDS
from scripts.demo.view import Preparation, Snapshot, View
from tests.unit.demo.test_result import GOOD, ROLLED_BACK, UNDECIDED, decision

AT = datetime(2026, 1, 5, tzinfo=UTC)


@dataclass
class Ended:
    decisions: Sequence[Decision]


@pytest.mark.parametrize(
    ("records", "n_runs"),
    [
        ([GOOD.decisions], 1),
        ([ROLLED_BACK.decisions], 1),
        ([UNDECIDED, GOOD.decisions], 2),
        ([UNDECIDED, UNDECIDED, GOOD.decisions], 2),
    ],
)
async def test_the_demo_rolls_out_anew_once_if_only_that_can_come_to_a_decision(
    records: list[Sequence[Decision]], n_runs: int
) -> None:
    runs: list[str] = []
    said: list[str] = []

    async def roll_out(run_id: str) -> Ended:
        runs.append(run_id)
        return Ended(records[len(runs) - 1])

    await roll_out_until_decided(roll_out, said.append)

    assert runs == list(RUN_IDS[:n_runs])
    assert len(said) == n_runs - 1
    assert all("control's p50 from before the rollout says nothing" in line for line in said)


def test_a_hold_is_noticed_with_its_reason() -> None:
    rolling = Endpoint(name="digits").create_version("first", is_control=True).create_version("second")
    rolling = rolling.claim("second", owner="run", at=AT)
    held = rolling.hold("second", owner="run", at=AT)

    assert not on_hold_because(None, ())
    assert not on_hold_because(rolling, ())
    assert on_hold_because(held, (decision("hold", reason="cannot\n see"), decision("look"))) == "cannot see"
    assert on_hold_because(held, ())


def test_what_a_demo_waits_for_is_what_has_not_ended() -> None:
    preparing = Snapshot(1.0, "demo", preparations=(Preparation("Airflow", 3.0), Preparation("control's image built")))
    gate = Snapshot(
        1.0,
        "demo",
        tasks=(
            TaskState("train", "success"),
            TaskState("rollout.gate_10", "deferred"),
            TaskState("rollout.promote", None),
        ),
        look=decision("look", reason="the store\n is away"),
    )

    assert waiting_for(preparing) == "control's image built"
    assert waiting_for(gate) == "rollout.gate_10 (newest look: the store is away)"
    assert waiting_for(replace(gate, tasks=())) == "the run of the DAG"


class NeverReady(DemoRun):
    async def _prepare(self) -> Airflow:
        await asyncio.Event().wait()
        raise AssertionError


async def test_a_demo_ends_at_its_deadline_and_says_what_it_waits_for(tmp_path: Path) -> None:
    demo = NeverReady(tmp_path / "demo", fault=None, outage=False, deadline_s=0.01)

    with pytest.raises(DemoError, match=r"not over after 0\.01 s, it waits for the run of the DAG: run it again"):
        await demo.run(View(Console(quiet=True)))


class OutOfTime(DemoRun):
    async def _prepare(self) -> Any:
        raise TimeoutError("the API server does not answer")


async def test_a_time_out_of_a_part_is_not_taken_for_the_deadline(tmp_path: Path) -> None:
    with pytest.raises(TimeoutError, match="does not answer"):
        await OutOfTime(tmp_path / "demo", fault=None, outage=False).run(View(Console(quiet=True)))
