"""Time to build an image for a cluster, compared with `buildah bud` of a plain Dockerfile with the same content."""

import asyncio
import shutil
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from controlled_rollout import image
from controlled_rollout.image.builders.build_secrets import build_secrets
from controlled_rollout.image.scoring_runtime import runtime_requirements
from tests.benchmarks.local_workspace import SCRIPT, silent
from tests.cluster.lab.images import base_image
from tests.registry.real_registry import serving

REQUIREMENTS = "scikit-learn\nnumpy\njoblib\n"
MODEL_BYTES = 20_000_000
# What a team writes without us: pip's layer first, then the source, then the model.
DOCKERFILE = """\
FROM {base}
COPY requirements.txt runtime.txt /tmp/
RUN --mount=type=secret,id=settings --mount=type=secret,id=pip.conf --mount=type=secret,id=certificates \\
    . /run/secrets/settings && python3 -m venv /opt/environment && \\
    /opt/environment/bin/pip install --no-cache-dir --quiet -r /tmp/requirements.txt -r /tmp/runtime.txt
COPY score.py /opt/app/
COPY model.bin /opt/models/digits/1/
USER 10001
"""


@dataclass(frozen=True)
class Figures:
    """Seconds until the registry has the image."""

    provider: float
    plain: float


@dataclass(frozen=True)
class _Bench:
    folder: Path
    registry: str
    base: str

    @property
    def source(self) -> Path:
        return self.folder / "source"

    @property
    def model(self) -> Path:
        return self.folder / "source" / "model.bin"

    def write(self) -> None:
        self.source.mkdir()
        (self.source / "score.py").write_text(SCRIPT)
        (self.source / "requirements.txt").write_text(REQUIREMENTS)
        (self.source / ".amlignore").write_text("model.bin\nDockerfile\nruntime.txt\n")
        shutil.copy(runtime_requirements(), self.source / "runtime.txt")
        (self.source / "Dockerfile").write_text(DOCKERFILE.format(base=self.base))
        self.retrain(0)

    def push_base(self) -> None:
        """Push the lab's base image with a history, without which buildah keeps no layers."""
        name = "bench-base"
        self._buildah("from", "--name", name, "--tls-verify=false", base_image(self.registry))
        self._buildah("commit", "--squash", "--tls-verify=false", name, f"docker://{self.base}")
        self._buildah("rm", name)

    def retrain(self, number: int) -> None:
        self.model.write_bytes(number.to_bytes(4) * (MODEL_BYTES // 4))

    def provider(self) -> None:
        asyncio.run(
            image.build_container_image(
                self.source,
                name="provider",
                registry=f"{self.registry}/bench",
                cache=self.folder / "cache",
                base_image=self.base,
                models=[image.ModelSource("digits", self.model)],
                progress=silent,
            )
        )

    def plain(self) -> None:
        """Build with buildah's layer cache, and push."""
        secrets = self.folder / "secrets"
        secrets.mkdir(exist_ok=True)
        options = []
        for name, content in build_secrets((), (self.source / "Dockerfile").read_text()).items():
            (secrets / name).write_bytes(content)
            options.append(f"--secret=id={name},src={secrets / name}")
        tag = f"{self.registry}/bench/plain:1"
        how = ("--layers", "--isolation", "chroot", "--network", "host", "--format", "oci", "--tls-verify=false")
        self._buildah("bud", *how, *options, "--tag", tag, str(self.source))
        self._buildah("push", "--tls-verify=false", tag)

    def _buildah(self, *arguments: str) -> None:
        storage = ("--root", str(self.folder / "images"), "--runroot", str(self.folder / "containers"))
        done = subprocess.run(["buildah", *storage, *arguments], capture_output=True, text=True)
        if done.returncode:
            raise SystemExit(done.stderr)


@contextmanager
def _bench() -> Iterator[_Bench]:
    with tempfile.TemporaryDirectory(prefix="bench-") as folder, serving(Path(folder) / "registry") as registry:
        bench = _Bench(Path(folder), registry.address, f"{registry.address}/bench/base:1")
        try:
            bench.push_base()
            bench.write()
            yield bench
        finally:
            bench._buildah("rm", "--all")
            bench._buildah("rmi", "--all", "--force")


def _seconds(work: Callable[[], None]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def measure(*, rounds: int = 5) -> dict[str, Figures]:
    """Return seconds for each kind of build; the two take turns."""
    with _bench() as bench:
        full = Figures(_seconds(bench.provider), _seconds(bench.plain))
        hits = [(_seconds(bench.provider), _seconds(bench.plain)) for _ in range(rounds)]
        model_changes = []
        for number in range(1, rounds + 1):
            bench.retrain(number)
            model_changes.append((_seconds(bench.provider), _seconds(bench.plain)))
    return {
        "everything is new": full,
        "nothing has changed": _median(hits),
        "another model on a known environment": _median(model_changes),
    }


def _median(pairs: list[tuple[float, float]]) -> Figures:
    return Figures(*(statistics.median(column) for column in zip(*pairs, strict=True)))
