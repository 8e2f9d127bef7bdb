"""A real local workspace with one endpoint of a trivial model, for the benchmarks."""

import asyncio
import socket
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from controlled_rollout import image, steps
from controlled_rollout.target import Target, connect
from controlled_rollout.target.local import supervisor
from controlled_rollout.workspace import Workspace

ENDPOINT = "bench"
SCRIPT = "def init():\n    pass\n\n\ndef run(data):\n    return {'length': len(data)}\n"
BODY = '{"data": [[5.1, 3.5, 1.4, 0.2]]}'
REPOSITORY = Path(__file__).parents[2]


@dataclass(frozen=True)
class Bench:
    """The workspace, its router's port, and the images of its versions."""

    workspace: Workspace
    port: int
    image: str

    @property
    def target(self) -> Target:
        return connect(self.workspace)

    def headers(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {asyncio.run(self.target.keys(ENDPOINT)).primary}"}

    def roll_out(self, version: str) -> None:
        asyncio.run(
            steps.roll_out(
                self.workspace,
                ENDPOINT,
                version,
                image=self.image,
                owner="bench",
                who="bench",
                progress=lambda line: None,
            )
        )


def project(folder: Path, script: str = SCRIPT, requirements: str = "") -> Path:
    """Write a project folder as a user would have it."""
    folder.mkdir(parents=True)
    (folder / "score.py").write_text(script)
    (folder / "requirements.txt").write_text(requirements)
    return folder


@contextmanager
def bench() -> Iterator[Bench]:
    """A running workspace in a fresh folder; the environments are kept between runs."""
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        workspace = Workspace.local(Path(folder) / "workspace")
        workspace.root.mkdir(mode=0o700)
        shared = REPOSITORY / ".work" / "bench-cache"
        shared.mkdir(parents=True, exist_ok=True)
        workspace.cache_folder.symlink_to(shared)
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        built = asyncio.run(image.build(project(Path(folder) / "trivial"), name="bench", cache=workspace.cache_folder))
        assert supervisor.up(workspace, port=port, detach=True) == 0
        try:
            running = Bench(workspace, port, str(built))
            running.roll_out("first")
            yield running
        finally:
            supervisor.down(workspace)
