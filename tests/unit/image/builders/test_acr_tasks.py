"""Builds by ACR Tasks: the real client, with a fake of Azure's management API."""

import asyncio
import base64
import dataclasses
import io
import random
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest

from controlled_rollout.errors import ImageError, RegistryUnavailableError
from controlled_rollout.image import Credentials
from controlled_rollout.image.builders import build_context
from controlled_rollout.image.builders.build_request import BuildRequest
from controlled_rollout.image.builders.registry.acr_tasks import AcrTasksBuilder
from controlled_rollout.image.oci.registry_client import Repository
from controlled_rollout.image.scoring_runtime import build_files
from tests.archives import read_file
from tests.unit.image.builders.acr_management import ACR_ID, RUN_ID, Identity, Management, answering

REQUEST = BuildRequest(
    repository=Repository.parse("mine.azurecr.io/models/environments"),
    tag="ab" * 32,
    base_image="docker.io/library/python@sha256:" + "0" * 64,
    python=">=3.10",
    requirements=("six==1.17.0",),
    build_files={name: path.read_text() for name, path in build_files().items()},
    credentials={
        "mine.azurecr.io": Credentials("nobody", "token-of-acr"),
        "docker.io": Credentials("me", "hunter2"),
    },
    constraints=("numpy<2",),
)


@pytest.fixture(autouse=True)
def small_uv(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Replace uv, which is large, by a small file."""
    uv = tmp_path / "uv"
    uv.write_bytes(random.Random(1).randbytes(1_500_000))
    monkeypatch.setattr(build_context, "find_uv", lambda: str(uv))


async def build(
    at: Management,
    *,
    order: BuildRequest = REQUEST,
    is_pushed: Callable[[], bool] = lambda: False,
    progress_lines: list[str] | None = None,
    acr_id: str = ACR_ID,
) -> list[str]:
    lines = [] if progress_lines is None else progress_lines

    async def there() -> bool:
        return is_pushed()

    with answering(at) as transport:
        carrier = transport()
        try:
            builder = AcrTasksBuilder(acr_id, credential=Identity(), transport=carrier, poll_s=0.01)
            await builder.build(order, is_pushed=there, progress=lines.append)
        finally:
            await carrier.close()
    return lines


def finished(status: str = "Succeeded", *logs: str) -> Management:
    return Management(["Queued", "Running", status], list(logs) or ["", "STEP 1\nSTE", "STEP 1\nSTEP 2\n"])


async def test_a_run_is_named_by_the_hash_and_its_log_is_reported() -> None:
    at = finished()

    progress_lines = await build(at)

    [(_, path, body)] = [request for request in at.requests if "/taskRuns/" in request[1] and request[0] == "PUT"]
    request = body["properties"]["runRequest"]
    task = base64.b64decode(request["encodedTaskContent"]).decode()
    assert path.endswith(f"/registries/mine/taskRuns/environment-{'ab' * 16}")
    assert request["sourceLocation"] == "source/1.tar.gz"
    assert request["platform"]["os"] == "Linux"
    assert f"--tag $Registry/models/environments:{REQUEST.tag} --file Dockerfile ." in task
    assert f"- $Registry/models/environments:{REQUEST.tag}" in task
    assert "DOCKER_BUILDKIT=1" in task
    assert [line for line in progress_lines if "STEP" in line] == ["environment: STEP 1", "environment: STEP 2"]


async def test_the_files_of_the_build_are_uploaded_with_the_arguments_in_the_dockerfile() -> None:
    at = finished()

    await build(at)

    with tarfile.open(fileobj=io.BytesIO(at.uploaded)) as archive:
        assert {"Dockerfile", "install-environment", "environment.txt", "uv"} <= set(archive.getnames())
        dockerfile = read_file(archive, "Dockerfile").decode()
        assert read_file(archive, "environment.txt") == b"--constraint constraints.txt\nsix==1.17.0\n"
        assert read_file(archive, "constraints.txt") == b"numpy<2\n"
    assert f'ARG BASE_IMAGE="{REQUEST.base_image}"\n' in dockerfile
    assert 'ARG PYTHON=">=3.10"\n' in dockerfile


async def test_only_credentials_of_other_registries_are_handed_over() -> None:
    at = finished()

    progress_lines = await build(at)

    [(_, _, body)] = [request for request in at.requests if "/taskRuns/" in request[1] and request[0] == "PUT"]
    registries = body["properties"]["runRequest"]["credentials"]["customRegistries"]
    assert set(registries) == {"docker.io"}
    assert registries["docker.io"]["password"] == {"value": "hunter2", "type": "Opaque"}
    assert not any(secret in line for line in progress_lines for secret in ("hunter2", "token-of-acr", "a-signature"))
    assert b"hunter2" not in at.uploaded


async def test_an_image_that_is_pushed_by_now_is_not_built() -> None:
    at = finished()

    await build(at, is_pushed=lambda: True)

    assert at.requests == []


async def test_a_run_of_another_task_is_followed() -> None:
    at = finished()
    at.running = "Running"

    progress_lines = await build(at)

    assert at.paths("PUT") == []
    assert any("is building it, waiting" in line for line in progress_lines)


@pytest.mark.parametrize(
    ("status", "message"),
    [
        ("Failed", r"(?s)cannot be built on .*no such luck"),
        ("Canceled", f"run {RUN_ID}, .* was cancelled: no tag was pushed"),
        ("Timeout", "took more than 3600 s"),
    ],
)
async def test_failed_run_is_an_error_with_its_cause(status: str, message: str) -> None:
    with pytest.raises(ImageError, match=message):
        await build(finished(status, "", "STEP 2/13: RUN\nerror: no such luck\n"))


@pytest.mark.parametrize("ours", [True, False])
async def test_a_cancelled_build_cancels_its_own_run_only(ours: bool) -> None:
    at = Management(["Running"], ["begun\n"], running=None if ours else "Running")
    progress_lines: list[str] = []
    task = asyncio.create_task(build(at, progress_lines=progress_lines))
    async with asyncio.timeout(60):
        while not any("begun" in line for line in progress_lines):
            await asyncio.sleep(0.01)

    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task

    assert any(path.endswith(f"/runs/{RUN_ID}/cancel") for path in at.paths("POST")) is ours


@pytest.mark.parametrize(
    ("refuse", "kind", "message"),
    [
        ((403, "AuthorizationFailed"), ImageError, "does not let this identity in: .*taskRuns/write"),
        ((401, "InvalidAuthenticationToken"), ImageError, "does not let this identity in"),
        ((404, "ResourceGroupNotFound"), ImageError, "refuses: .*ResourceGroupNotFound"),
    ],
)
async def test_refusal_of_azure_names_what_to_do(refuse: tuple[int, str], kind: type[Exception], message: str) -> None:
    at = finished()
    at.refuse = refuse

    with pytest.raises(kind, match=message):
        await build(at)

    assert at.paths("PUT") == []


async def test_an_azure_that_does_not_answer_is_unavailable() -> None:
    class Away:
        async def open(self) -> None: ...

        async def close(self) -> None: ...

        async def __aenter__(self) -> "Away":
            return self

        async def __aexit__(self, *args: object) -> None: ...

        async def send(self, request: object, **config: object) -> None:
            from azure.core.exceptions import ServiceResponseError

            raise ServiceResponseError("nobody there")

    async def there() -> bool:
        return False

    builder = AcrTasksBuilder(ACR_ID, credential=Identity(), transport=Away(), retry_total=0)
    with pytest.raises(RegistryUnavailableError, match="does not answer: nobody there"):
        await builder.build(REQUEST, is_pushed=there, progress=lambda line: None)


async def test_an_image_for_another_registry_is_refused() -> None:
    order = dataclasses.replace(REQUEST, repository=Repository.parse("other.azurecr.io/models/environments"))

    with pytest.raises(ImageError, match=r"builds in the registry mine .acr_id., and the image is for other"):
        await build(finished(), order=order)


async def test_a_requirement_with_a_password_is_refused() -> None:
    order = dataclasses.replace(
        REQUEST, requirements=("--extra-index-url https://me:${INDEX_PASSWORD}@index.example/",)
    )

    with pytest.raises(ImageError, match="name INDEX_PASSWORD: the builder acr_tasks hands no secret to Azure"):
        await build(finished(), order=order)
