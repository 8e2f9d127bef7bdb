"""Leads the package's edges to the simulated world in use: its target, stores, clock, threads, people and Airflow."""

import asyncio
import hashlib
import importlib
import sys
import uuid
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from datetime import datetime
from functools import lru_cache
from types import SimpleNamespace
from typing import Any, Final
from unittest import mock

from airflow.providers.standard.operators import hitl
from airflow.sdk import DAG, BaseOperator
from airflow.sdk.bases.operator import ExecutorSafeguard
from airflow.triggers.base import BaseTrigger, TriggerEvent

from controlled_rollout import record
from controlled_rollout.checks import forecast
from controlled_rollout.errors import EvidenceUnavailableError
from controlled_rollout.evaluation import conclusion, next_action
from controlled_rollout.evaluation import look as looks
from controlled_rollout.evidence import Evidence, EvidenceQuery
from controlled_rollout.evidence.shared import read_shared
from controlled_rollout.gate import Bin, Counts, Gate, Outcome, Verdict, judge
from controlled_rollout.hooks.workspace import WorkspaceHook
from controlled_rollout.operators.connectivity import CheckConnectivityOperator
from controlled_rollout.record import bin_delta, in_time
from controlled_rollout.triggers import rollout_question
from controlled_rollout.workspace import Workspace
from tests.invariants import world as worlds
from tests.invariants.simulated_clock import START, simulated_time
from tests.invariants.world import LOOK_S, WORKSPACE, world_in_use, world_of

__all__ = ["simulated_surroundings"]

# As many verdicts are kept.
MAX_VERDICTS: Final = 50_000


class _SimulatedSource:
    """What `evidence_source` returns: the real reader on the simulated store."""

    async def read(self, query: EvidenceQuery) -> Evidence:
        world = world_in_use()
        await world_of(query.endpoint).interrupt("evidence")
        return await read_shared(world.reader, world.store, query)


class _Answer:
    """What Airflow's trigger for a person's answer does, in the world in use."""

    def __init__(self, ti_id: uuid.UUID, **question: Any) -> None:
        self._id = str(ti_id)

    async def run(self) -> AsyncIterator[TriggerEvent]:
        """Wait until somebody has answered."""
        while (answer := world_in_use().questions[self._id]) is None:
            await asyncio.sleep(LOOK_S / 2)
        yield TriggerEvent(answer)  # type: ignore[no-untyped-call] # Airflow's


class _Thread:
    """A thread whose work is done at once, or, while the record hangs, when that has an end."""

    def __init__(self, target: Callable[[], None], **_: Any) -> None:
        self._work = target

    def start(self) -> None:
        """Do the work."""
        world = world_in_use()
        name = sys._getframe(1).f_locals["record"]  # of `within_time`
        hangs = max((one.record.hangs_until for one in world.both if one.record.name == name), default=0.0)
        if hangs > world.clock.seconds:
            world.loop.call_at(hangs, self._work)
        else:
            self._work()


class _Quiet:
    """The log of all tasks and triggers."""

    def __getattr__(self, level: str) -> Callable[..., None]:
        return lambda *message, **arguments: None


_get_template_env: Final = DAG.get_template_env


def _template_env(dag: DAG, *, force_sandboxed: bool = False) -> Any:
    """Return what renders a DAG's templates, which compiles each of them once: they are the same in all sequences."""
    environment = _get_template_env(dag, force_sandboxed=force_sandboxed)
    compile_once: Any = lru_cache(environment.from_string)
    environment.from_string = compile_once  # type: ignore[method-assign]
    return environment


_verdicts: dict[bytes, Verdict] = {}


def _remembered_judge(bins: tuple[Bin, ...], gate: Gate, *, baseline: tuple[Bin, ...] = ()) -> Verdict:
    """Judge as the gate does; equal evidence is judged once, because the gate is pure and its mathematics take long.

    A verdict knows how far its bins are from each other, and not when they were.
    """
    zero = bins[0].start if bins else START
    evidence = (gate.model_dump_json(), [_key(bin_, zero) for bin_ in bins], [_key(bin_, zero) for bin_ in baseline])
    key = hashlib.blake2b(repr(evidence).encode(), digest_size=16).digest()
    if key not in _verdicts:
        if len(_verdicts) > MAX_VERDICTS:
            _verdicts.clear()
        _verdicts[key] = judge(bins, gate, baseline=baseline)
    return _verdicts[key]


def _noted_conclusion(look: record.LookInput) -> Verdict:
    """Conclude as a look does; note the looks that fail, as the record may be away."""
    verdict = conclusion.conclude_but_aggregates(look)
    if verdict.outcome is Outcome.FAIL:
        world = world_of(look.settings.endpoint)
        world.failed_looks.append((world.clock.now(), look.settings.treatment))
    return verdict


def _key(bin_: Bin, zero: datetime) -> tuple[Any, ...]:
    """Return everything that a bin says, with its distance from a moment instead of its start."""
    sides = (bin_.control, bin_.treatment)
    counts = ((side.requests, side.errors, side.slow, side.represented) for side in sides)
    return (bin_.start - zero).total_seconds(), bin_.share, *counts


@lru_cache(maxsize=50_000)
def _value_of(start: datetime, share: float | None, *counts: int) -> dict[str, Any]:
    """Return a bin as the record keeps it."""
    half = len(counts) // 2
    [value] = _bins_to_json([Bin(start, _counts(counts[:half]), _counts(counts[half:]), share)])
    return value


def _counts(numbers: tuple[int, ...]) -> Counts:
    """Return the counts whose numbers `_remembered_values` has taken apart."""
    requests, errors, represented, *slow = numbers
    return Counts(requests, errors, tuple(slow), represented=represented)


_bins_to_json: Final = bin_delta.bins_to_json
_canonical_json: Final = bin_delta.canonical_json
_json_of_value: dict[int, tuple[dict[str, Any], bytes]] = {}


def _remembered_values(bins: Sequence[Bin]) -> list[dict[str, Any]]:
    """Return bins as the record keeps them; equal bins are written once, because every look writes all of them."""
    return [
        _value_of(
            bin_.start, bin_.share,
            *(number for side in (bin_.control, bin_.treatment)
              for number in (side.requests, side.errors, side.represented, *side.slow)),
        )
        for bin_ in bins
    ]  # fmt: skip


def _remembered_json(value: Any) -> bytes:
    """Return a value as JSON; that of a value that `_value_of` keeps is made once."""
    kept = _json_of_value.get(id(value))
    if kept is not None and kept[0] is value:
        return kept[1]
    if len(_json_of_value) > MAX_VERDICTS:
        _json_of_value.clear()
    text = _canonical_json(value)
    if isinstance(value, dict) and "start" in value:
        _json_of_value[id(value)] = value, text
    return text


@contextmanager
def simulated_surroundings() -> Iterator[None]:
    """Context manager: the package's edges lead to the world in use, for as many worlds as are used one by one."""
    with ExitStack() as stack:
        use_clock = stack.enter_context(simulated_time())

        def patch(place: Any, name: str, value: Any) -> None:
            stack.enter_context(mock.patch.object(place, name, value))

        async def aget_workspace(self: WorkspaceHook) -> Workspace:
            return WORKSPACE

        async def no_check(*args: Any) -> None:
            """The connectivity checks have nothing to look at here."""

        async def no_forecast(*args: Any, **kwargs: Any) -> Any:
            raise EvidenceUnavailableError("not simulated")

        def withdraw(ti_id: uuid.UUID, **_: Any) -> None:
            world_in_use().answer(str(ti_id), "Reject")

        patch(worlds, "use_clock", use_clock)
        for module in ("steps", "target.connect"):
            patch(
                importlib.import_module(f"controlled_rollout.{module}"),
                "connect",
                lambda _: world_in_use().open_targets(),
            )
        patch(looks, "evidence_source", lambda workspace: _SimulatedSource())
        for place in (record, record.log):
            patch(place, "storage_of", lambda workspace, endpoint: world_of(endpoint).record)
        patch(next_action, "traceback", SimpleNamespace(format_exception=lambda error: [repr(error)]))
        patch(in_time, "threading", SimpleNamespace(Thread=_Thread))
        patch(conclusion, "judge", _remembered_judge)
        patch(bin_delta, "bins_to_json", _remembered_values)
        patch(bin_delta, "canonical_json", _remembered_json)
        patch(looks, "conclude_but_aggregates", _noted_conclusion)
        patch(WorkspaceHook, "get_workspace", lambda self: WORKSPACE)
        patch(WorkspaceHook, "aget_workspace", aget_workspace)
        patch(CheckConnectivityOperator, "check", no_check)
        patch(forecast, "read_control_traffic", no_forecast)
        for module in ("operators.base", "triggers.treatment_gate", "triggers.rollout_question"):
            patch(importlib.import_module(f"controlled_rollout.{module}"), "quieten_clients", lambda: None)
        patch(hitl, "upsert_hitl_detail", lambda ti_id, **_: world_in_use().questions.update({ti_id: None}))
        patch(rollout_question, "HITLTrigger", _Answer)
        patch(
            rollout_question,
            "update_hitl_detail_response",
            lambda ti_id, **_: world_in_use().answer(str(ti_id), "Reject"),
        )
        patch(asyncio, "run", lambda coroutine: world_in_use().loop.run_until_complete(coroutine))
        patch(ExecutorSafeguard, "test_mode", True)
        patch(DAG, "get_template_env", lru_cache(maxsize=1_000)(_template_env))
        for with_log in (BaseOperator, BaseTrigger):
            patch(with_log, "log", _Quiet())
        yield
