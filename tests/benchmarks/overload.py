"""A version at and above its capacity: what the router adds then, and what a healthy endpoint sees beside others.

The model sleeps, so that an overloaded version takes no processor from the others: what is measured is the router.
Requests come at random times, the same ones for everything that is compared, whether earlier ones are answered or not.
"""

import asyncio
import random
import tempfile
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

from controlled_rollout.endpoint import Endpoint
from tests.benchmarks.load import Call
from tests.local.local_target_lab import Lab, running

SCORING_S = 0.02
# One replica with one slot.
CAPACITY = 1 / SCORING_S
SCRIPT = f"import time\n\n\ndef init():\n    pass\n\n\ndef run(data):\n    time.sleep({SCORING_S})\n    return 1\n"
LOADS = (0.5, 0.9, 1.5)
ENDPOINTS = ("healthy", "crowded", "crowded2")


@dataclass
class Answers:
    """The answers to requests that came at random times.

    Attributes:
        statuses: How many there were of each status.
        scored_ms: How long each took that was answered 200.
    """

    statuses: Counter[int] = field(default_factory=Counter)
    scored_ms: list[float] = field(default_factory=list)

    @property
    def refused(self) -> float:
        """The part of the requests that was refused."""
        return 1 - self.statuses[200] / max(1, sum(self.statuses.values()))

    def quantile(self, part: float) -> float:
        """The milliseconds that a part of the scored requests took at most."""
        ordered = sorted(self.scored_ms)
        return ordered[min(len(ordered) - 1, int(part * len(ordered)))]


class Caller:
    """Sends requests at random times over as many kept connections as it takes."""

    def __init__(self, call: Call) -> None:
        self._call = call
        self._request = call.request()
        self._free: list[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = []
        self.answers = Answers()

    async def send(self, rate: float, seconds: float, *, seed: int = 1) -> Answers:
        """Send requests at a mean rate a second for some seconds; return their answers."""
        times, loop = random.Random(seed), asyncio.get_running_loop()
        due, end = loop.time(), loop.time() + seconds
        sent = []
        while (due := due + times.expovariate(rate)) < end:
            await asyncio.sleep(max(0.0, due - loop.time()))
            sent.append(asyncio.create_task(self._exchange()))
        await asyncio.gather(*sent)
        for _, writer in self._free:
            writer.close()
        self._free.clear()
        return self.answers

    async def _exchange(self) -> None:
        began = time.perf_counter()
        streams = self._free.pop() if self._free else await self._connect()
        streams[1].write(self._request)
        head = (await streams[0].readuntil(b"\r\n\r\n")).lower()
        await streams[0].readexactly(int(head.partition(b"content-length: ")[2].partition(b"\r\n")[0]))
        status = int(head.split()[1])
        self.answers.statuses[status] += 1
        if status == 200:
            self.answers.scored_ms.append(1000 * (time.perf_counter() - began))
        if b"connection: close" in head:
            streams[1].close()
        else:
            self._free.append(streams)

    async def _connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        if self._call.unix_socket is not None:
            return await asyncio.open_unix_connection(self._call.unix_socket)
        return await asyncio.open_connection("127.0.0.1", self._call.port)


async def served(lab: Lab, name: str) -> Call:
    """Serve an endpoint with one replica of the model that sleeps; return a request to it."""
    version = Endpoint(name=name).create_version("one", image=await lab.image(script=SCRIPT), num_replicas=1)
    _, status = await lab.serve(version)
    await lab.ready(name, "one")
    key = (await lab.target.keys(name)).primary
    where = urlsplit(status.url)
    return Call(where.path, "{}", port=where.port, headers={"Authorization": f"Bearer {key}"})


@dataclass(frozen=True)
class Measured:
    """What one run of this benchmark has found.

    Attributes:
        by_load: By the part of the capacity that is asked for: past the router, and through it.
        alone: The healthy endpoint by itself at half of its capacity.
        beside: The same while two others are asked for 150 % of theirs.
    """

    by_load: Mapping[float, tuple[Answers, Answers]]
    alone: Answers
    beside: Answers


async def _measure(lab: Lab, seconds: float, rounds: int) -> Measured:
    healthy = await served(lab, ENDPOINTS[0])
    (path,) = (path for path in lab.state.runtime.glob("r*.sock") if path.is_socket())
    replica = Call("/score", "{}", unix_socket=str(path))
    by_load = {}
    for load in LOADS:
        past, through = Caller(replica), Caller(healthy)
        for seed in range(rounds):
            for caller in (past, through):
                await caller.send(load * CAPACITY, seconds, seed=seed)
        by_load[load] = past.answers, through.answers
    crowded = [await served(lab, name) for name in ENDPOINTS[1:]]
    alone, beside = Caller(healthy), Caller(healthy)
    for seed in range(rounds):
        await alone.send(0.5 * CAPACITY, seconds, seed=seed)
        others = [Caller(call).send(1.5 * CAPACITY, seconds, seed=seed) for call in crowded]
        await asyncio.gather(beside.send(0.5 * CAPACITY, seconds, seed=seed), *others)
    return Measured(by_load, alone.answers, beside.answers)


def measure(*, seconds: float = 10.0, rounds: int = 3) -> Measured:
    """Measure on a workspace of its own; the things compared take turns."""
    with tempfile.TemporaryDirectory(prefix="bench-") as folder, running(Path(folder)) as lab:
        return asyncio.run(_measure(lab, seconds, rounds))
