"""A treatment that nobody looks at is taken back, by what supervisor and agent call, with the rights of a step."""

import asyncio
from contextlib import suppress
from datetime import UTC, datetime, timedelta

from controlled_rollout import record
from controlled_rollout.endpoint import Endpoint
from controlled_rollout.errors import ControlledRolloutError
from controlled_rollout.rollout import OnSilence
from controlled_rollout.steps.silence import SilenceWatch
from controlled_rollout.target.history import ON_SILENCE
from controlled_rollout.target.silence_checks import SilenceChecks
from tests.conformance.target_lab import TargetLab
from tests.polling import until

# Longer than a busy machine may need between two looks.
SILENCE = timedelta(seconds=10)
DEADLINE_S = 150


async def canary(lab: TargetLab, name: str) -> Endpoint:
    """Serve an endpoint whose treatment has a tenth of the traffic in a rollout that must not go on without looks."""
    endpoint = lab.with_version(lab.endpoint(name), "v1a").update_version("v1a", is_control=True)
    endpoint = lab.with_version(endpoint, "v2a", traffic_percentile=10)
    now = datetime.now(UTC)
    held = endpoint.claim("v2a", owner="dag/run", at=now, on_silence=OnSilence.ROLL_BACK, silence=SILENCE)
    return await lab.serve(held)


async def look_after(lab: TargetLab, name: str, watch: SilenceWatch) -> Endpoint:
    """Let the watch check once, as every few seconds; return the endpoint as it is then."""
    with suppress(ControlledRolloutError):  # the next check begins anew
        await watch.look_after(lab.target, (await lab.target.history(name))[-1], progress=print)
    return await lab.target.endpoint(name)


async def test_treatment_is_taken_back_that_nobody_looks_at_and_not_while_somebody_does_or_holds(
    target_lab: TargetLab,
) -> None:
    endpoint, held = await asyncio.gather(canary(target_lab, "silent"), canary(target_lab, "held"))
    name = endpoint.name
    held = await target_lab.apply(held.hold("v2a", owner=None, at=datetime.now(UTC)))
    target, watch = target_lab.target, SilenceWatch(target_lab.workspace, SilenceChecks())

    # Somebody looks: that is written down beside the endpoint, and is no revision.
    revision = (await target.endpoint(name)).revision
    begin = asyncio.get_running_loop().time()
    while asyncio.get_running_loop().time() < begin + 1.2 * SILENCE.total_seconds():
        await target.note_look(name, "v2a")
        document = await look_after(target_lab, name, watch)
        assert (document.revision, document.effective_traffic()["v2a"]) == (revision, 10)
    note = await target.last_look(name)
    assert note is not None and note.version == "v2a"
    # A watch that has just begun sees the same, and gives everybody time.
    watch = SilenceWatch(target_lab.workspace, SilenceChecks())

    async with asyncio.timeout(DEADLINE_S):
        while document.effective_traffic()["v2a"]:
            document = await look_after(target_lab, name, watch)
            assert (await look_after(target_lab, held.name, watch)).revision == held.revision
            await asyncio.sleep(0.2)
    assert document.rollout is None
    ending = (await target.history(name))[-1]
    assert ending.change.who == ON_SILENCE
    assert ending.change.reason.startswith("nobody looked since ")
    assert ending.created - note.at > SILENCE

    await target_lab.until(document, lambda status: "v2a" not in status.weight_ppm, "the router sends it nothing")

    def is_recorded() -> bool:
        return [line.who for line in record.read(target_lab.workspace, name, step="roll_back")] == [ON_SILENCE]

    await until(is_recorded, "the record has it, once", timeout_s=DEADLINE_S)


async def test_look_at_what_is_not_there_is_nothing(target_lab: TargetLab) -> None:
    await target_lab.target.note_look("nobody-made-it", "v1a")
    assert await target_lab.target.last_look("nobody-made-it") is None
