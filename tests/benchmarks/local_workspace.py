"""A real local workspace with one endpoint of a trivial model, for the benchmarks."""

import asyncio
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from controlled_rollout import steps
from tests.local.local_target_lab import Lab, running

ENDPOINT = "bench"
SCRIPT = "def init():\n    pass\n\n\ndef run(data):\n    return {'length': len(data)}\n"
BODY = '{"data": [[5.1, 3.5, 1.4, 0.2]]}'


@dataclass(frozen=True)
class Bench:
    """The workspace and its router's port."""

    lab: Lab
    port: int

    def headers(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {asyncio.run(self.lab.target.keys(ENDPOINT)).primary}"}


def silent(line: str) -> None:
    """Discard progress, whose output would disturb the figures."""


async def deploy(lab: Lab, version: str) -> None:
    image = await lab.image(script=SCRIPT)
    await steps.deploy(
        lab.workspace,
        ENDPOINT,
        version,
        image=image,
        owner="bench",
        change=steps.Change(who="bench"),
        settings={"num_replicas": 1},
        progress=silent,
    )


@contextmanager
def bench() -> Iterator[Bench]:
    """A running workspace in a fresh folder; the environment is kept between runs."""
    with tempfile.TemporaryDirectory(prefix="bench-") as folder, running(Path(folder)) as lab:
        asyncio.run(deploy(lab, "first"))
        yield Bench(lab, urlsplit(lab.state.router_url).port or 0)
