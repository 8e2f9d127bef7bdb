"""Builds of container images with buildah: registries, cancelled and killed builds."""

import asyncio
import gzip
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest

from controlled_rollout.errors import ImageError, RegistryUnavailableError
from controlled_rollout.image import (
    Environment,
    ImageReference,
    ModelSource,
    build_container_image,
    build_image,
)
from controlled_rollout.image.container_image import ENVIRONMENTS
from controlled_rollout.workspace import Workspace
from tests.archives import read_file
from tests.ports import closed_port, free_port
from tests.registry.conftest import Built, write_source
from tests.registry.real_registry import RunningRegistry

DEADLINE_S = 180


async def build(
    built: Built, registry: str, cache: Path, source: Path | None = None, **arguments: Any
) -> ImageReference:
    """Build the stock project with what is given otherwise; its environment is in the shared registry."""
    defaults = {"base_image": built.base_image, "shared_registry": built.registry, "name": "digits"}
    return await build_container_image(
        source or built.source, registry=registry, cache=cache, **{**defaults, **arguments}
    )


def model(path: Path, content: bytes, version: str = "3") -> list[ModelSource]:
    path.write_bytes(content)
    return [ModelSource("digits", path, version=version)]


def environment_tags(registry: RunningRegistry, prefix: str = "models") -> list[str]:
    return registry.tags(f"{prefix}/{ENVIRONMENTS}")


def layers(registry: RunningRegistry, reference: ImageReference) -> list[str]:
    return [layer["digest"] for layer in registry.manifest(reference.sha256)["layers"]]


def containers_left(cache: Path) -> list[str]:
    storage = [f"--root={cache / 'containers' / 'images'}", f"--runroot={cache / 'containers' / 'containers'}"]
    listed = subprocess.run(["buildah", *storage, "containers", "-q"], capture_output=True, text=True, check=True)
    return listed.stdout.split()


def processes_left() -> list[str]:
    return [child.name() for child in psutil.Process().children(recursive=True) if "buildah" in child.name()]


def test_image_reference_is_the_digest_in_the_registry(built: Built, stock: RunningRegistry) -> None:
    manifest = stock.manifest(built.reference.sha256)
    config = json.loads(stock.blob(manifest["config"]["digest"]))["config"]

    assert built.reference.name == f"{stock.address}/models/digits"
    assert config["User"] == "10001:10001"
    assert config["Entrypoint"][1:] == ["-m", "controlled_rollout_scoring"]
    assert {"AML_APP_ROOT=/opt/app", "AZUREML_ENTRY_SCRIPT=score.py", "AZUREML_MODEL_DIR=/opt/models"} <= set(
        config["Env"]
    )
    assert config["WorkingDir"] == "/opt/app"
    assert len(manifest["layers"]) == 3, "the base image, the environment, source and models"


def test_no_secret_or_path_of_the_build_machine_is_in_the_image(built: Built, stock: RunningRegistry) -> None:
    [tag] = environment_tags(stock)
    link = stock.storage / f"docker/registry/v2/repositories/models/{ENVIRONMENTS}/_manifests/tags/{tag}/current/link"
    manifest = stock.manifest(link.read_text())
    layer = gzip.decompress(stock.blob(manifest["layers"][-1]["digest"]))
    config = stock.blob(manifest["config"]["digest"])

    for private in (b"secret-of-the-index", b"secret.host.example", str(built.cache).encode(), b"ca-certificates"):
        assert private not in layer
        assert private not in config
    assert "secret" not in "".join(built.progress_lines).replace("type=secret", "")
    with tarfile.open(fileobj=io.BytesIO(layer)) as archive:
        assert {entry.mtime for entry in archive} == {0}
        assert {name for name in archive.getnames() if name.startswith("run/")} <= {"run/secrets"}


@contextmanager
def unpacked(reference: ImageReference, cache: Path) -> Iterator[tuple[Path, dict[str, Any]]]:
    """Mount an image; yield its root folder and its configuration."""
    buildah = ["buildah", f"--root={cache / 'root'}", f"--runroot={cache / 'run'}"]

    def call(*arguments: str) -> str:
        return subprocess.run([*buildah, *arguments], capture_output=True, text=True, check=True).stdout.strip()

    container = call("from", "--tls-verify=false", str(reference))
    try:
        described = json.loads(call("inspect", "--type", "image", str(reference)))
        yield Path(call("mount", container)), described["OCIv1"]["config"]
    finally:
        call("rm", "--all")


async def test_image_serves_from_a_read_only_root_as_an_unprivileged_user(
    built: Built, registry: RunningRegistry, tmp_path: Path
) -> None:
    reference = await build(
        built, f"{registry.address}/m", tmp_path / "cache", models=model(tmp_path / "model.txt", b"seven")
    )
    bundle = tmp_path / "bundle"
    bundle.mkdir()
    subprocess.run(["runc", "spec"], cwd=bundle, check=True)
    spec = json.loads((bundle / "config.json").read_text())
    with unpacked(reference, tmp_path / "storage") as (root, config):
        port = free_port()
        spec["root"] = {"path": str(root), "readonly": True}
        user = int(str(config["User"]).partition(":")[0])
        spec["process"] |= {"terminal": False, "user": {"uid": user, "gid": user}, "cwd": config["WorkingDir"]}
        spec["process"] |= {"env": config["Env"], "args": [*config["Entrypoint"], "--bind", f"127.0.0.1:{port}"]}
        spec["process"].pop("oomScoreAdj", None)
        spec["linux"]["namespaces"] = [space for space in spec["linux"]["namespaces"] if space["type"] != "network"]
        spec["mounts"] = [mount for mount in spec["mounts"] if mount["type"] not in ("cgroup", "sysfs")]
        spec["mounts"].append({"destination": "/tmp", "type": "tmpfs", "options": ["mode=1777"]})  # noqa: S108
        (bundle / "config.json").write_text(json.dumps(spec))
        name = f"image-test-{os.getpid()}"
        with (tmp_path / "log").open("w") as log:
            running = subprocess.Popen(["runc", "run", "--bundle", bundle, name], stdout=log, stderr=log)
        try:
            answer = await scored(port, running, tmp_path / "log")
        finally:
            subprocess.run(["runc", "kill", name, "KILL"], check=True)
            running.wait()

    assert answer == {"uid": 10001, "models": {"model.txt": "seven"}}


async def scored(port: int, running: "subprocess.Popen[bytes]", log: Path) -> object:
    import httpx

    end = time.monotonic() + DEADLINE_S
    async with httpx.AsyncClient(trust_env=False) as client:
        while True:
            try:
                return (await client.post(f"http://127.0.0.1:{port}/score", content="{}")).json()
            except httpx.TransportError:
                assert running.poll() is None and time.monotonic() < end, log.read_text()
                await asyncio.sleep(0.05)


async def test_a_hit_pushes_nothing_and_takes_less_than_a_second(built: Built, stock: RunningRegistry) -> None:
    before, times = stock.files(), []
    progress: list[str] = []

    for _ in range(3):
        began = time.perf_counter()
        reference = await build(built, built.registry, built.cache, shared_registry=None, progress=progress.append)
        times.append(time.perf_counter() - began)
        assert reference == built.reference

    assert min(times) < 1
    assert [line for line in progress if "build" in line or "pushed" in line] == []
    assert stock.files() == before


async def test_a_changed_model_adds_one_layer_and_builds_nothing(
    built: Built, registry: RunningRegistry, tmp_path: Path
) -> None:
    progress_lines: list[str] = []
    references, times = [], []
    for content in (b"1", b"2"):
        began = time.perf_counter()
        models = model(tmp_path / "model.pkl", content)
        references.append(
            await build(
                built, f"{registry.address}/m", tmp_path / "cache", models=models, progress=progress_lines.append
            )
        )
        times.append(time.perf_counter() - began)
    first, second = (layers(registry, reference) for reference in references)

    assert first[:-1] == second[:-1]
    assert first[-1] != second[-1]
    assert times[-1] < 5
    assert [line for line in progress_lines if "building" in line] == []
    with tarfile.open(registry.blob_file(second[-1])) as archive:
        assert read_file(archive, "opt/models/digits/3/model.pkl") == b"2"


async def test_the_shared_registry_s_environment_is_copied_with_the_same_digest(
    built: Built, stock: RunningRegistry, registry: RunningRegistry, tmp_path: Path
) -> None:
    progress_lines: list[str] = []

    reference = await build(built, f"{registry.address}/other", tmp_path / "cache", progress=progress_lines.append)

    assert reference.sha256 == built.reference.sha256, "the same inputs give the same digest in any registry"
    assert environment_tags(registry, "other") == environment_tags(stock)
    assert any("copying" in line for line in progress_lines)
    assert not (tmp_path / "cache" / "containers").exists()


async def test_an_environment_built_again_has_the_same_digest(
    built: Built, stock: RunningRegistry, tmp_path: Path
) -> None:
    progress_lines: list[str] = []

    reference = await build(
        built, f"{stock.address}/again", tmp_path / "cache", shared_registry=None, progress=progress_lines.append
    )

    assert reference.sha256 == built.reference.sha256
    assert any("building on" in line for line in progress_lines)


def test_a_killed_build_leaves_nothing_and_of_two_at_once_one_builds(
    built: Built, registry: RunningRegistry, tmp_path: Path
) -> None:
    cache = tmp_path / "cache"
    source = write_source(tmp_path / "source", requirements="six==1.17.0\n")
    script = (
        "import asyncio\nfrom controlled_rollout.image import build_container_image\n"
        f"print(asyncio.run(build_container_image({str(source)!r}, name='digits', "
        f"registry='{registry.address}/models', base_image={built.base_image!r}, cache={str(cache)!r}, "
        "progress=print)))\n"
    )

    def start() -> "subprocess.Popen[str]":
        return subprocess.Popen([sys.executable, "-u", "-c", script], stdout=subprocess.PIPE, text=True)

    with start() as killed:
        assert killed.stdout is not None
        assert any("Resolved" in line for line in killed.stdout)
        killed.send_signal(signal.SIGKILL)
    assert environment_tags(registry) == []

    builders = [start(), start()]
    outputs = [builder.communicate(timeout=DEADLINE_S)[0] for builder in builders]

    assert [builder.returncode for builder in builders] == [0, 0]
    assert sum("building on" in text for text in outputs) == 1
    assert len({text.splitlines()[-1] for text in outputs}) == 1
    assert len(environment_tags(registry)) == 1
    assert containers_left(cache) == []
    assert not (cache / "containers" / "build").exists(), "the build's secrets are gone"


async def test_a_cancelled_build_ends_its_processes_and_leaves_no_tag(
    built: Built, registry: RunningRegistry, tmp_path: Path
) -> None:
    resolved = asyncio.Event()
    environment = Environment(requirements=("six==1.16.0",))
    task = asyncio.create_task(
        build(
            built,
            f"{registry.address}/models",
            tmp_path / "cache",
            environment=environment,
            progress=lambda line: resolved.set() if "Resolved" in line else None,
        )
    )
    await asyncio.wait_for(resolved.wait(), DEADLINE_S)

    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task

    assert processes_left() == []
    assert containers_left(tmp_path / "cache") == []
    assert environment_tags(registry) == []
    assert not any(str(tmp_path) in line for line in Path("/proc/mounts").read_text().splitlines() if "merged" in line)


async def test_a_cancelled_push_of_a_model_leaves_no_tag(
    built: Built, registry: RunningRegistry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    big = tmp_path / "model.bin"
    big.touch()
    os.truncate(big, 200_000_000)
    sending = asyncio.Event()
    uploads = registry.storage / "docker/registry/v2/repositories/models/digits/_uploads"
    models = [ModelSource("big", big)]
    task = asyncio.create_task(build(built, f"{registry.address}/models", tmp_path / "cache", models=models))
    end = time.monotonic() + DEADLINE_S
    while not sending.is_set() and time.monotonic() < end:
        if any(path.stat().st_size > 5_000_000 for path in uploads.glob("*/data") if path.exists()):
            sending.set()
        await asyncio.sleep(0.005)

    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task

    assert registry.tags("models/digits") == []
    assert len(environment_tags(registry)) == 1


@pytest.mark.parametrize(
    ("environment", "base_image", "message"),
    [
        ({"requirements": ("six",), "constraints": ("six==0.0.0.1",)}, None,
         r"(?s)\(six\) cannot be installed on .*no version of six==0\.0\.0\.1"),
        ({"requirements": ("httptools<0.1",)}, None, r"(?s)unsatisfiable.*scoring runtime, which needs .*httptools=="),
        ({"python": "3.14.99"}, None, r"(?s)has no Python 3\.14\.99, which the environment asks for.*Choose a base"),
        ({}, "{registry}/base/missing:1", r"base image .*base/missing:1 cannot be found: its registry has no"),
        ({"docker_steps": ("RUN echo no such luck && exit 7",)}, None, r"(?s)cannot be built on .*no such luck"),
    ],
    ids=["excluded by constraint", "conflict with the runtime", "no such Python", "no base image", "docker step fails"],
)  # fmt: skip
async def test_a_failed_build_says_why_and_leaves_no_tag(
    built: Built,
    registry: RunningRegistry,
    tmp_path: Path,
    environment: dict[str, object],
    base_image: str | None,
    message: str,
) -> None:
    base = base_image.format(registry=registry.address) if base_image else built.base_image

    with pytest.raises(ImageError, match=message):
        await build(
            built,
            f"{registry.address}/models",
            built.cache,
            environment=Environment.model_validate(environment),
            base_image=base,
        )

    assert environment_tags(registry) == []
    assert registry.tags("models/digits") == []
    assert containers_left(built.cache) == []


async def test_docker_steps_run_first_and_see_neither_other_builds_nor_passwords_of_other_hosts(
    built: Built, registry: RunningRegistry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "netrc").write_text("machine elsewhere.example login me password of-another-host\n")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.setenv("UV_INDEX_ELSEWHERE_PASSWORD", "of-another-host")
    search = "RUN --mount=type=secret,id=netrc --mount=type=secret,id=settings"
    environment = Environment(
        docker_steps=(
            "RUN test ! -e /run/wheels && echo yes > /opt/prepared",
            f"{search} ! grep -r of-another-host /run/secrets",
            "ENV PREPARED=yes",
        )
    )

    reference = await build(built, f"{registry.address}/models", built.cache, environment=environment)

    manifest = registry.manifest(reference.sha256)
    assert "PREPARED=yes" in json.loads(registry.blob(manifest["config"]["digest"]))["config"]["Env"]
    with tarfile.open(registry.blob_file(manifest["layers"][1]["digest"])) as archive:
        assert read_file(archive, "opt/prepared") == b"yes\n"


async def test_without_buildah_a_hit_works_and_a_build_is_an_error(
    built: Built, registry: RunningRegistry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))

    assert await build(built, built.registry, tmp_path / "cache") == built.reference
    with pytest.raises(ImageError, match=r"buildah is needed .* apt install buildah"):
        await build(built, f"{registry.address}/models", tmp_path / "cache", shared_registry=None)

    assert environment_tags(registry) == []


async def test_a_full_disk_is_an_error_and_leaves_no_tag(
    built: Built, registry: RunningRegistry, tmp_path: Path
) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=60m", "tmpfs", disk], capture_output=True, text=True)
    if mounted.returncode != 0:
        pytest.skip(f"a small disk cannot be mounted here: {mounted.stderr.strip()}")
    try:
        with pytest.raises(ImageError, match=rf"disk is full: .*in the cache folder {disk}/cache"):
            await build(built, f"{registry.address}/models", disk / "cache", shared_registry=None)
    finally:
        subprocess.run(["umount", disk], check=True)

    assert environment_tags(registry) == []


async def test_a_workspace_with_a_registry_builds_there(
    built: Built, registry: RunningRegistry, tmp_path: Path
) -> None:
    workspace = Workspace.from_settings(
        {
            "root": str(tmp_path / "workspace"),
            "registry": f"{registry.address}/models",
            "shared_registry": built.registry,
            "base_image": built.base_image,
        }
    )

    reference = await build_image(workspace, built.source, name="digits")

    assert reference == ImageReference(f"{registry.address}/models/digits", built.reference.sha256)


async def test_missing_base_image_is_an_error_that_names_the_setting(built: Built, tmp_path: Path) -> None:
    with pytest.raises(ImageError, match=r"names no base image, .* set base_image in the workspace's settings"):
        await build(built, built.registry, tmp_path / "cache", base_image=None)


async def test_a_registry_that_is_down_is_unavailable(built: Built, registry: RunningRegistry, tmp_path: Path) -> None:
    with closed_port() as port:
        address = f"127.0.0.1:{port}"

        with pytest.raises(
            RegistryUnavailableError, match=rf"registry {address} does not answer .*: check that it runs"
        ):
            await build(built, f"{address}/models", tmp_path / "cache")


async def test_a_shared_registry_that_is_down_does_not_stop_the_build(
    built: Built, registry: RunningRegistry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    progress_lines: list[str] = []
    monkeypatch.setattr(shutil, "which", lambda program: None)

    with pytest.raises(ImageError, match="buildah is needed"):
        await build(
            built,
            f"{registry.address}/models",
            tmp_path / "cache",
            shared_registry="127.0.0.1:1/models",
            progress=progress_lines.append,
        )

    assert any("not looked up in 127.0.0.1:1/models/environments" in line for line in progress_lines)
