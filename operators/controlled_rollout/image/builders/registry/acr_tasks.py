"""The builder in Azure: the Azure Container Registry builds the environment image itself, as a run of ACR Tasks.

Source: Microsoft.ContainerRegistry 2019-06-01-preview (registries, taskRuns, runs), the YAML reference of ACR Tasks.
There is no Azure where this is tested: the client's own requests are answered as that reference says.
"""

import asyncio
import base64
import gzip
import io
import re
import tempfile
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from controlled_rollout.errors import ImageError, RegistryUnavailableError
from controlled_rollout.image.builders.build_context import failure, write_context
from controlled_rollout.image.builders.build_request import BuildRequest
from controlled_rollout.image.builders.build_secrets import VARIABLE, build_secrets
from controlled_rollout.image.cancellable_thread import in_thread
from controlled_rollout.image.inputs.files import package
from controlled_rollout.image.oci.layer import layer_of_files
from controlled_rollout.image.oci.manifest import architecture
from controlled_rollout.image.run_command import CREDENTIALS, KEPT_LINES
from controlled_rollout.image.scoring_runtime import DOCKERFILE

if TYPE_CHECKING:
    from azure.core.credentials_async import AsyncTokenCredential
    from azure.mgmt.containerregistry.aio import ContainerRegistryManagementClient

__all__ = ["AcrTasksBuilder"]

API_VERSION: Final = "2019-06-01-preview"
TIMEOUT_S: Final = 3600
POLL_S: Final = 2.0
RETRIES: Final = 10
# What the event loop can send without being kept from everything else.
BLOCK_BYTES: Final = 1 << 20
UNFINISHED: Final = ("queued", "started", "running")
SUCCEEDED: Final = "succeeded"
ROLE: Final = (
    "on the registry it needs listBuildSourceUploadUrl/action, taskRuns/read, taskRuns/write, runs/read, runs/cancel/"
    "action and runs/listLogSasUrl/action of Microsoft.ContainerRegistry/registries, such as the role Contributor has"
)
TASK: Final = """\
version: v1.1.0
steps:
  - build: --tag {image} --file Dockerfile .
    timeout: {timeout_s}
    env:
      - DOCKER_BUILDKIT=1
  - push:
      - {image}
"""


@dataclass(frozen=True)
class _Place:
    """A registry as Azure's management knows it."""

    subscription: str
    group: str
    name: str


class AcrTasksBuilder:
    """Builds in the workspace's own Azure Container Registry.

    The run is a taskRun resource named by the environment's hash: a build that finds it at work follows it.
    Nothing that this machine has set for indexes is handed over: the registry installs from the public one.

    Args:
        acr_id: The registry's resource id.
        credential: Who signs in; None for the process's own identity.
        transport: For tests: where requests go.
        retry_total: How often a request is tried again.
        poll_s: How often the run is looked at, in seconds.
    """

    def __init__(
        self,
        acr_id: str,
        *,
        credential: "AsyncTokenCredential | None" = None,
        transport: Any = None,
        retry_total: int = RETRIES,
        poll_s: float = POLL_S,
    ) -> None:
        parts = acr_id.strip("/").split("/")
        self._place = _Place(parts[1], parts[3], parts[7])
        self._credential = credential
        self._transport = transport
        self._retry_total = retry_total
        self._poll_s = poll_s

    async def build(
        self, order: BuildRequest, *, is_there: Callable[[], Awaitable[bool]], progress: Callable[[str], None]
    ) -> None:
        """See `Builder`.

        Raises:
            RegistryUnavailableError: Azure's management does not answer.
        """
        self._check(order, progress)
        async with AsyncExitStack() as stack:
            stack.enter_context(_azure_errors(self._place))
            client = await stack.enter_async_context(self._client())
            if await is_there():
                return
            run = _Run(client, self._place, order, progress, self._transport, self._poll_s)
            run_id, ours = await run.begin()
            try:
                status, lines = await run.follow(run_id)
            except asyncio.CancelledError:
                if ours:
                    await asyncio.shield(run.cancel(run_id))
                raise
        if status != SUCCEEDED:
            raise _failure(order, run_id, status, lines)

    def _check(self, order: BuildRequest, progress: Callable[[str], None]) -> None:
        if order.target.host.partition(".")[0].lower() != self._place.name.lower():
            raise ImageError(
                f"the builder acr_tasks builds in the registry {self._place.name} (acr_id), and the image is for "
                f"{order.target.host}: set registry and acr_id to the same registry"
            )
        if named := sorted({name for line in order.requirements for name in VARIABLE.findall(line)}):
            raise ImageError(
                f"the requirements name {', '.join(named)}: the builder acr_tasks hands no secret to Azure. Choose the "
                "builder buildah or kubernetes, or an index that asks for no password"
            )
        settings = build_secrets(order.requirements)
        if len(settings) > 1 or settings["settings"]:
            progress(f"{order.short}: what this machine has set for indexes and certificates is not used in Azure")

    @asynccontextmanager
    async def _client(self) -> "AsyncIterator[ContainerRegistryManagementClient]":
        try:
            from azure.identity.aio import DefaultAzureCredential
            from azure.mgmt.containerregistry.aio import ContainerRegistryManagementClient
        except ImportError as error:
            raise ImageError(
                f"the builder acr_tasks needs a package that is missing ({error.name}): install "
                "airflow-provider-controlled-rollout with the extra azure"
            ) from None
        more: dict[str, Any] = {"retry_total": self._retry_total}
        more |= {"transport": self._transport} if self._transport else {}
        async with AsyncExitStack() as stack:
            credential: Any = self._credential or await stack.enter_async_context(DefaultAzureCredential())
            yield await stack.enter_async_context(
                ContainerRegistryManagementClient(credential, self._place.subscription, API_VERSION, **more)
            )


@dataclass(frozen=True)
class _Run:
    """One build of one environment, as the registry's management sees it."""

    client: Any
    place: _Place
    order: BuildRequest
    progress: Callable[[str], None]
    transport: Any
    poll_s: float

    @property
    def name(self) -> str:
        return f"environment-{self.order.tag[:32]}"

    @property
    def at(self) -> tuple[str, str]:
        return self.place.group, self.place.name

    async def begin(self) -> tuple[str, bool]:
        """Return the id of the run that builds, and whether it was begun here."""
        found = await self._found()
        if found and found.status and found.status.lower() in UNFINISHED:
            self.progress(f"{self.order.short}: run {found.run_id} of {self.place.name} is building it, waiting")
            return str(found.run_id), False
        models = self.client.models(API_VERSION)
        upload = await self.client.registries.get_build_source_upload_url(*self.at)
        archive = await in_thread(lambda stop: _archive(self.order))
        async with self._blob(upload.upload_url) as blob:
            await blob.upload_blob(io.BytesIO(archive), length=len(archive), overwrite=True)
        task = TASK.format(image=f"$Registry/{self.order.target.path}:{self.order.tag}", timeout_s=TIMEOUT_S)
        request = models.EncodedTaskRunRequest(
            encoded_task_content=base64.b64encode(task.encode()).decode(),
            source_location=upload.relative_path,
            platform=models.PlatformProperties(os="Linux", architecture=architecture()),
            timeout=TIMEOUT_S,
            credentials=self._users(models),
        )
        # The path of what was uploaded is new each time: a run that failed is not taken for this one.
        await self.client.task_runs.begin_create(
            *self.at,
            self.name,
            models.TaskRun(run_request=request, force_update_tag=upload.relative_path),
            polling=False,
        )
        while (begun := await self._found()) is None or not begun.run_id:
            await asyncio.sleep(self.poll_s)
        self.progress(
            f"{self.order.short}: building on {self.order.base_image} in run {begun.run_id} of {self.place.name}"
        )
        return str(begun.run_id), True

    async def _found(self) -> Any:
        from azure.core.exceptions import ResourceNotFoundError

        with suppress(ResourceNotFoundError):
            return (await self.client.task_runs.get(*self.at, self.name)).run_result
        return None

    def _users(self, models: Any) -> Any:
        """Return the users of other registries, which base images may be in; its own the registry knows."""
        others = {host: user for host, user in self.order.credentials.items() if host != self.order.target.host}
        if not others:
            return None
        secret = models.SecretObject
        return models.Credentials(
            custom_registries={
                host: models.CustomRegistryCredentials(
                    user_name=secret(value=user.username, type="Opaque"),
                    password=secret(value=user.password, type="Opaque"),
                )
                for host, user in others.items()
            }
        )

    async def follow(self, run_id: str) -> tuple[str, list[str]]:
        """Hand on the run's log until it ends; return how it ended, and the last lines."""
        lines: deque[str] = deque(maxlen=KEPT_LINES)
        log = (await self.client.runs.get_log_sas_url(*self.at, run_id)).log_link
        read = b""
        offset = 0
        while True:
            status = str((await self.client.runs.get(*self.at, run_id)).status).rpartition(".")[2].lower()
            fresh = await self._log(log, offset)
            offset += len(fresh)
            *whole, read = (read + fresh).split(b"\n")
            if status not in UNFINISHED:
                whole, read = [*whole, read], b""
            for line in whole:
                self._say(line.decode(errors="replace").rstrip(), lines)
            if status not in UNFINISHED:
                return status, list(lines)
            await asyncio.sleep(self.poll_s)

    def _say(self, line: str, lines: "deque[str]") -> None:
        told = CREDENTIALS.sub("://***@", line)
        lines.append(told)
        if told.strip():
            self.progress(f"environment: {told}")

    async def _log(self, url: str, offset: int) -> bytes:
        """Return what has been written to a log since it was `offset` bytes long."""
        from azure.core.exceptions import HttpResponseError

        async with self._blob(url) as blob:
            try:
                return bytes(await (await blob.download_blob(offset=offset)).readall())
            except HttpResponseError as error:
                if error.status_code in (404, 416):  # not begun; nothing new
                    return b""
                raise

    @asynccontextmanager
    async def _blob(self, url: str) -> AsyncIterator[Any]:
        from azure.storage.blob.aio import BlobClient

        more: dict[str, Any] = {"max_single_put_size": BLOCK_BYTES, "max_block_size": BLOCK_BYTES}
        more |= {"transport": self.transport} if self.transport else {}
        client = BlobClient.from_blob_url(url, **more)
        try:
            yield client
        finally:
            if not self.transport:
                await client.close()

    async def cancel(self, run_id: str) -> None:
        """End the run."""
        await (await self.client.runs.begin_cancel(*self.at, run_id)).wait()


def _archive(order: BuildRequest) -> bytes:
    """Return the files of the build as a `.tar.gz`, with what is asked for written into the Dockerfile."""
    with tempfile.TemporaryDirectory(prefix="controlled-rollout-") as temporary:
        folder = Path(temporary) / "context"
        write_context(order, folder)
        dockerfile = folder / DOCKERFILE
        text = dockerfile.read_text(encoding="utf-8")
        text = re.sub(r"(?m)^ARG BASE_IMAGE$", f'ARG BASE_IMAGE="{order.base_image}"', text)
        text = re.sub(r"(?m)^ARG PYTHON=.*$", f'ARG PYTHON="{order.python}"', text)
        dockerfile.write_text(text, encoding="utf-8")
        files = package(folder).files
        return gzip.compress(b"".join(layer_of_files(files).chunks()), compresslevel=1, mtime=0)


def _failure(order: BuildRequest, run_id: str, status: str, lines: list[str]) -> ImageError:
    if status in ("canceled", "timeout"):
        how = "was cancelled" if status == "canceled" else f"took more than {TIMEOUT_S} s"
        return ImageError(f"run {run_id}, which builds the environment image, {how}: no tag was pushed")
    return failure(order, lines)


class _azure_errors:
    """Turns what Azure's clients raise into errors that say what to do."""

    def __init__(self, place: _Place) -> None:
        self._place = place

    def __enter__(self) -> None: ...

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: object) -> None:
        from azure.core.exceptions import (
            ClientAuthenticationError,
            HttpResponseError,
            ServiceRequestError,
            ServiceResponseError,
        )

        who = f"Azure's management of the registry {self._place.name}"
        if isinstance(error, (ServiceRequestError, ServiceResponseError)):
            raise RegistryUnavailableError(f"{who} does not answer: {error.message}") from None
        if isinstance(error, HttpResponseError):
            said = str(error.message).partition("\n")[0]
            if isinstance(error, ClientAuthenticationError) or error.status_code == 403:
                raise ImageError(f"{who} does not let this identity in: {said}: {ROLE}") from None
            if error.status_code == 429 or (error.status_code or 0) >= 500:
                raise RegistryUnavailableError(f"{who} cannot serve now: {said}") from None
            raise ImageError(f"{who} refuses: {said}") from None
