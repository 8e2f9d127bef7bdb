"""Going back needs nothing but the target: the record is away meanwhile, and follows later."""

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta

from controlled_rollout import record, steps
from controlled_rollout.evaluation.hold import put_on_hold
from controlled_rollout.evaluation.next_action import GateTerms
from controlled_rollout.gate import Gate
from controlled_rollout.steps import Change
from tests.conformance.target_lab import MAX_WAIT, TargetLab

CHANGE = Change(who="a test", reason="it fails")
RUN = "weekly/run-2"


def terms_on_hold(endpoint: str) -> GateTerms:
    """The terms of a gate that has just put the rollout of version two on hold."""
    now = datetime.now(UTC)
    return GateTerms(
        endpoint=endpoint, version="two", who=f"{RUN}/gate", owner=RUN, gate=Gate(), bake=timedelta(0), min_requests=0,
        require_pass=True, decision_timeout=timedelta(0), on_deadline="hold", interval=timedelta(minutes=1),
        waiting_since=now, held=now,
    )  # fmt: skip


@contextmanager
def record_away(lab: TargetLab, endpoint: str) -> Iterator[None]:
    """Make the record of an endpoint one that nobody can read or append to, root neither."""
    place = lab.workspace.records_folder / f"{endpoint}.jsonl"
    place.mkdir(parents=True)
    yield
    place.rmdir()


async def test_a_treatment_on_hold_is_rolled_back_and_retired_while_the_record_is_away(target_lab: TargetLab) -> None:
    lab = target_lab
    both = lab.with_version(lab.with_version(lab.endpoint("unrecorded"), "one"), "two", "steady2")
    endpoint = await lab.serve(both.shift("two", 50).claim("two", owner=RUN, at=datetime.now(UTC)))
    messages: list[str] = []

    async with lab.load(endpoint, rate=40) as load:
        with record_away(lab, endpoint.name):
            await put_on_hold(lab.workspace, terms_on_hold(endpoint.name), "no decision", lambda line: None)
            held = await lab.target.endpoint(endpoint.name)
            rolled_back = await steps.roll_back(
                lab.workspace,
                endpoint.name,
                "two",
                change=CHANGE,
                owner=RUN,
                timeout=MAX_WAIT,
                progress=messages.append,
            )
            served = await lab.target.status(endpoint.name)
            await steps.retire(
                lab.workspace, endpoint.name, "two", change=CHANGE, timeout=MAX_WAIT, progress=messages.append
            )
    # Retired again, with nothing to do: the next entry of the record, and what it lacks before it.
    await steps.retire(lab.workspace, endpoint.name, "two", change=CHANGE, timeout=MAX_WAIT)

    assert held.rollout is not None and held.rollout.held is not None
    assert held.effective_traffic() == endpoint.effective_traffic()
    assert rolled_back is not None and rolled_back.rollout is None
    assert served.weight_ppm == {"one": 1_000_000}
    assert load.failed == {}, load.refusals
    assert list((await lab.target.endpoint(endpoint.name)).versions) == ["one"]
    assert sum("the record lags behind" in message for message in messages) == 2
    lines = [(line.step, line.version, line.who) for line in record.read(lab.workspace, endpoint.name)]
    assert lines[-2:] == [("roll_back", "two", "a test"), ("retire", "two", "a test")]


async def test_a_key_is_revoked_while_the_record_is_away(target_lab: TargetLab) -> None:
    lab = target_lab
    endpoint = await lab.serve(lab.with_version(lab.endpoint("revoked"), "one"))
    before = await lab.target.keys(endpoint.name)

    with record_away(lab, endpoint.name):
        after = await lab.target.regenerate_key(endpoint.name, "primary")
        answers = [(await lab.ask(endpoint, key=key)).status for key in (after.primary, before.primary)]

    assert answers == [200, 401]
    assert after.primary != before.primary
