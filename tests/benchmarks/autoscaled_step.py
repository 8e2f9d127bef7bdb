"""A step of the load on a real local endpoint: when the autoscaler decides, and when its replicas answer."""

import asyncio
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from controlled_rollout.endpoint import Endpoint
from tests.local.local_target_lab import Lab, running, steady_load
from tests.polling import until

CALLERS = 8
SLEEP_S = 0.2
SCRIPT = f"import time\n\n\ndef init():\n    pass\n\n\ndef run(data):\n    time.sleep({SLEEP_S})\n    return {{}}\n"
NAME = "step"


@dataclass(frozen=True)
class Step:
    """What was seen of the step; times in seconds since the first request."""

    decided_s: float
    ready_s: float
    wanted: int
    requests: int
    refused: int
    failed: int


def measure() -> Step:
    with tempfile.TemporaryDirectory(prefix="bench-") as folder, running(Path(folder)) as lab:
        return asyncio.run(_measure(lab))


async def _measure(lab: Lab) -> Step:
    image = await lab.image(script=SCRIPT)
    await lab.serve(Endpoint(name=NAME).create_version("one", is_control=True, image=image))
    url, key = await lab.url(NAME), (await lab.target.keys(NAME)).primary

    async def numbers() -> tuple[int, int]:
        version = (await lab.target.status(NAME)).versions["one"]
        return version.wanted_replicas, sum(replica.state == "ready" for replica in version.replicas)

    async def is_decided() -> bool:
        return (await numbers())[0] > 1

    async def is_ready() -> bool:
        return (await numbers())[1] >= CALLERS

    began = time.monotonic()
    # Closed loop: each caller sends again as soon as it has its answer.
    async with steady_load(url, key, rate=10_000, connections=CALLERS) as load:
        await until(is_decided, "the decision", timeout_s=60)
        decided = time.monotonic()
        await until(is_ready, "the replicas", timeout_s=120)
        ready = time.monotonic()
        refused = load.statuses[503]
        sent, failed = load.sent, load.sent - load.statuses[200] - refused
        wanted, _ = await numbers()
    return Step(decided - began, ready - began, wanted, sent, refused, failed)
