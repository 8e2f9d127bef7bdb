"""Every look gives the same verdict in a process that has looked before and in one that has just begun.

A process remembers: counts of closed bins and a throttling store's wish (evidence.shared), and how far it has read the
record (record.tail). Each scenario changes what one of these was read from.
"""

import asyncio
import multiprocessing
import shutil
from collections.abc import Callable, Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any, cast

import pytest

from controlled_rollout.errors import EvidenceUnavailableError
from controlled_rollout.evaluation import look as looks
from controlled_rollout.evidence import Evidence, EvidenceQuery, EvidenceWindow, shared
from controlled_rollout.evidence.metric_store import ThrottledError
from controlled_rollout.evidence.shared import SharedReader, read_shared
from controlled_rollout.gate import Gate, Mean, Outcome, Verdict
from controlled_rollout.record import storage_of, tail
from controlled_rollout.target.protocol import Target
from controlled_rollout.workspace import Workspace
from tests.unit.evaluation.one_endpoint import OneEndpoint
from tests.unit.evidence.memory_store import T0, MemoryStore, Row, S

WINDOW = EvidenceWindow(bin_width=10 * S, allowed_lag=20 * S, baseline_length=60 * S)
# The rollout begins so many seconds after T0.
STARTED = 60
# Little evidence is enough: what counts here is that it is the same.
GATE = Gate(latency_quantiles=(), acceptable_error_rate=0.3, pass_ratio=4.0, warm_up=timedelta(0))
LATENCY_GATE = Gate(latency_quantiles=(0.5,), acceptable_error_rate=0.3, pass_ratio=4.0)
METRIC_GATE = Gate(
    latency_quantiles=(), means={"revenue": Mean(worse="lower", kql="AppEvents")}, acceptable_error_rate=0.3
)


def requests(version: str, begin: int, end: int, *, late: float = 1, per_second: int = 2, **row: Any) -> list[Row]:
    seconds = [begin + n / per_second for n in range((end - begin) * per_second)]
    return [Row(began, began + late, version, **row) for began in seconds]


def healthy(until: int = 300) -> list[Row]:
    return requests("v1a", 0, until) + requests("v2a", STARTED, until)


@dataclass
class Scenario:
    """What there is to see, and when a process looks.

    Attributes:
        rows: What the store gets.
        looks: When the process looks, in seconds after T0.
        outcome: Of the last look.
        gate: What the treatment has to show.
        router: Requests that the router has counted for each version, by the time; None: as many as were sent.
        refuses: By the time of a look, the error that the store answers it with.
        retire: Before this look the record's part is full.
    """

    rows: list[Row]
    looks: tuple[int, ...]
    outcome: Outcome
    gate: Gate = GATE
    router: Callable[[int], Mapping[str, int]] | None = None
    refuses: Mapping[int, EvidenceUnavailableError] = field(default_factory=dict)
    retire: int | None = None


def silent() -> Scenario:
    """The treatment's rows stop, and the router counts on."""
    rows = requests("v1a", 0, 300) + requests("v2a", STARTED, 110)
    return Scenario(rows, tuple(range(100, 201, 10)), Outcome.CANNOT_SEE)


def silent_in_a_new_part() -> Scenario:
    scenario = silent()
    # Without earlier looks in the part it is only seen that the requests do not fall to the versions as they should.
    scenario.retire, scenario.outcome = 200, Outcome.SPLIT_IS_WRONG
    return scenario


def restarted_router() -> Scenario:
    """The router counts from 0 again."""

    def counted(now: int) -> Mapping[str, int]:
        return {"v1a": 2 * now, "v2a": 2 * now} if now < 150 else {"v1a": now - 150, "v2a": now - 150}

    return Scenario(healthy(), tuple(range(100, 181, 10)), Outcome.PASS, router=counted)


SCENARIOS: dict[str, Callable[[], Scenario]] = {
    "nothing special": lambda: Scenario(healthy(), (100, 110, 120, 200), Outcome.PASS),
    "late rows, and they are bad": lambda: Scenario(
        [row for row in healthy() if row.version == "v1a" or not 70 <= row.began < 100]
        + requests("v2a", 70, 100, late=80, error=True),
        (110, 140, 290),
        Outcome.FAIL,
    ),
    "late rows between two looks at the same bins": lambda: Scenario(
        [*healthy(), Row(75, 141.5, "v2a", error=True)], (130, 140, 142), Outcome.CANNOT_SEE
    ),
    "late rows that an earlier look has seen to be late": lambda: Scenario(
        [*healthy(), *requests("v2a", 70, 75, late=80)], (130, 151, 160, 200), Outcome.CANNOT_SEE
    ),
    "late values of a metric": lambda: Scenario(
        healthy()
        + [Row(60 + n / 4, 61 + n / 4, "v1a", value=5.0 + n % 3) for n in range(900)]
        + [Row(60 + n / 4, 61 + n / 4 if n < 30 else 280, "v2a", value=1.0 + n % 3) for n in range(800)],
        (100, 200, 270, 290),
        Outcome.FAIL,
        gate=METRIC_GATE,
    ),
    "late rows of the baseline move the thresholds": lambda: Scenario(
        requests("v1a", 0, 60, ms=10)
        + requests("v1a", 0, 60, ms=40, per_second=4, late=120)
        + requests("v1a", 60, 400, ms=20, per_second=1)
        + requests("v1a", 60, 400, ms=50, per_second=1)
        + requests("v2a", STARTED, 400, ms=30),
        (110, 150, 380),
        Outcome.PASS,
        gate=LATENCY_GATE,
    ),
    "the store falls silent and the router counts on": silent,
    "the same, after the record's part was full": silent_in_a_new_part,
    "the router was restarted": restarted_router,
    "throttled, then well": lambda: Scenario(
        healthy(),
        (100, 130, 140, 200),
        Outcome.PASS,
        refuses={130: ThrottledError("429", 30 * S), 140: ThrottledError("429", 20 * S)},
    ),
    "unavailable, then well": lambda: Scenario(
        healthy(), (100, 130, 140), Outcome.PASS, refuses={130: EvidenceUnavailableError("503")}
    ),
    "unavailable": lambda: Scenario(
        healthy(), (100, 130), Outcome.CANNOT_SEE, refuses={130: EvidenceUnavailableError("503")}
    ),
}


class Looker:
    """A process that looks: what it remembers of the store is in its reader.

    Args:
        scenario: What there is to see.
        root: Its workspace.
    """

    def __init__(self, scenario: Scenario, root: Path) -> None:
        self._scenario = scenario
        self._workspace = Workspace.local(root)
        self._store = MemoryStore(scenario.rows)
        self._reader = SharedReader(self._store, clock=lambda: self._store.now)
        self._target = OneEndpoint(created=T0 + STARTED * S, before=T0, counted=self._counted)

    def _counted(self) -> Mapping[str, int]:
        now = round((self._store.now - T0) / S)
        if self._scenario.router is not None:
            return self._scenario.router(now)
        return {"v1a": 2 * now, "v2a": 2 * max(0, now - STARTED)}

    async def read(self, query: EvidenceQuery) -> Evidence:
        return await read_shared(self._reader, self._store, query)

    async def look(self, at: int) -> Verdict:
        self._store.now = T0 + at * S
        self._store.refuses = {"arrivals": [self._scenario.refuses[at]]} if at in self._scenario.refuses else {}
        if at == self._scenario.retire:
            with storage_of(self._workspace, "digits").appending() as appender:
                appender.retire()
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(looks, "evidence_source", lambda workspace: self)
            patch.setattr(shared, "GATHER_S", 0)
            patch.setattr(shared, "ROUND_INTERVAL_S", 0)
            look = await looks.look(
                self._workspace, cast("Target", self._target), "digits", "v2a", gate=self._scenario.gate, who="a test",
                window=WINDOW, now=self._store.now,
            )  # fmt: skip
        return look.verdict


def look_once(name: str, root: Path, at: int) -> Verdict:
    """Look as a process does that has never looked before; runs in one."""
    return asyncio.run(Looker(SCENARIOS[name](), root).look(at))


@pytest.mark.parametrize("name", SCENARIOS)
def test_fresh_process_reaches_the_same_verdict(name: str, tmp_path: Path) -> None:
    scenario = SCENARIOS[name]()

    async def looks_before_the_last() -> Verdict:
        looker = Looker(scenario, tmp_path / "experienced")
        for at in scenario.looks[:-1]:
            await looker.look(at)
        shutil.copytree(tmp_path / "experienced", tmp_path / "fresh")
        return await looker.look(scenario.looks[-1])

    experienced = asyncio.run(looks_before_the_last())
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as fresh_process:
        fresh = fresh_process.submit(look_once, name, tmp_path / "fresh", scenario.looks[-1]).result(timeout=120)

    assert experienced.outcome == scenario.outcome, experienced.reason
    assert fresh == experienced


@pytest.mark.parametrize("name", SCENARIOS)
def test_every_look_would_have_been_the_same_in_a_process_that_has_just_begun(name: str, tmp_path: Path) -> None:
    scenario = SCENARIOS[name]()

    async def steps() -> None:
        looker = Looker(scenario, tmp_path / "experienced")
        for number, at in enumerate(scenario.looks):
            copy = tmp_path / f"fresh-{number}"
            if number:
                shutil.copytree(tmp_path / "experienced", copy)
            # A record's memory goes by its path: that of a copy is unknown.
            assert str(copy / "records" / "digits.jsonl") not in tail._tails
            fresh = await Looker(scenario, copy).look(at)
            experienced = await looker.look(at)
            assert (fresh.outcome, fresh.claims) == (experienced.outcome, experienced.claims)

    asyncio.run(steps())
