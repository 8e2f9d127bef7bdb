"""The builder in Azure: the Azure Container Registry builds the environment image itself, as a run of ACR Tasks.

Source: Microsoft.ContainerRegistry 2019-06-01-preview (registries, taskRuns, runs), the YAML reference of ACR Tasks.
The tests have no Azure: they answer the real client's requests as that reference describes.
"""

import asyncio
import base64
import gzip
import io
import re
import tempfile
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from controlled_rollout.errors import ImageError, RegistryUnavailableError
from controlled_rollout.image.builders.build_context import build_error, write_build_context
from controlled_rollout.image.builders.build_request import BuildRequest
from controlled_rollout.image.builders.build_secrets import build_secrets
from controlled_rollout.image.cancellable_thread import in_thread
from controlled_rollout.image.credentials import hide_credentials
from controlled_rollout.image.environment.requirements import VARIABLE
from controlled_rollout.image.inputs.files import read_source_folder
from controlled_rollout.image.oci.layer import layer_of_files
from controlled_rollout.image.oci.manifest import oci_architecture
from controlled_rollout.image.run_command import KEPT_LINES
from controlled_rollout.image.scoring_runtime import DOCKERFILE

if TYPE_CHECKING:
    from azure.core.credentials_async import AsyncTokenCredential
    from azure.mgmt.containerregistry.aio import ContainerRegistryManagementClient

__all__ = ["AcrTasksBuilder"]

API_VERSION: Final = "2019-06-01-preview"
TIMEOUT_S: Final = 3600
POLL_S: Final = 2.0
RETRIES: Final = 10
# Small enough that sending a block does not hold up the event loop.
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
class _AcrResource:
    """A registry's resource in Azure."""

    subscription: str
    group: str
    name: str


class AcrTasksBuilder:
    """Builds in the workspace's own Azure Container Registry.

    The run is a taskRun resource named by the environment's hash: a build that finds it running follows it.
    This machine's settings for package indexes are not handed over: the registry installs from PyPI.

    Args:
        acr_id: The registry's resource id.
        credential: The identity that signs in; None for the process's own.
        transport: For tests: where requests go.
        retry_total: How often a request is repeated.
        poll_s: Seconds between two looks at the run.
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
        self._acr = _AcrResource(parts[1], parts[3], parts[7])
        self._credential = credential
        self._transport = transport
        self._retry_total = retry_total
        self._poll_s = poll_s

    async def build(
        self, request: BuildRequest, *, is_pushed: Callable[[], Awaitable[bool]], progress: Callable[[str], None]
    ) -> None:
        """Build and push the image with a run of Azure Container Registry Tasks; report its log as progress.

        Raises:
            RegistryUnavailableError: Azure's management API does not answer.
        """
        self._check_request(request, progress)
        async with AsyncExitStack() as stack:
            client = await stack.enter_async_context(self._management_client())
            stack.enter_context(_azure_errors(self._acr))
            if await is_pushed():
                return
            run = _TaskRun(client, self._acr, request, progress, self._transport, self._poll_s)
            run_id, is_new = await run.begin()
            try:
                status, lines = await run.follow(run_id)
            except asyncio.CancelledError:
                if is_new:
                    await asyncio.shield(run.cancel(run_id))
                raise
        if status != SUCCEEDED:
            raise _run_error(request, run_id, status, lines)

    def _check_request(self, request: BuildRequest, progress: Callable[[str], None]) -> None:
        """Check that ACR Tasks can build a request: same registry, and no requirement that needs a password.

        Raises:
            ImageError: The image is for another registry, or a requirement needs a password.
        """
        host = request.repository.host
        if host.partition(".")[0].lower() != self._acr.name.lower():
            raise ImageError(
                f"the builder acr_tasks builds in the registry {self._acr.name} (acr_id), and the image is for "
                f"{host}: set registry and acr_id to the same registry"
            )
        if variables := sorted({name for line in request.requirements for name in VARIABLE.findall(line)}):
            raise ImageError(
                f"the requirements name {', '.join(variables)}: the builder acr_tasks hands no secret to Azure. Choose "
                "the builder buildah or kubernetes, or an index that needs no password"
            )
        secrets = build_secrets(request.requirements, request.build_files[DOCKERFILE])
        if len(secrets) > 1 or secrets["settings"]:
            progress(f"{request.label}: this machine's settings for indexes and certificates are not used in Azure")

    @asynccontextmanager
    async def _management_client(self) -> "AsyncIterator[ContainerRegistryManagementClient]":
        """Context manager: open Azure's management client of the registry, and close it on exit."""
        try:
            from azure.identity.aio import DefaultAzureCredential
            from azure.mgmt.containerregistry.aio import ContainerRegistryManagementClient
        except ImportError as error:
            raise ImageError(
                f"the builder acr_tasks needs a package that is missing ({error.name}): install "
                "airflow-provider-controlled-rollout with the extra azure"
            ) from error
        options: dict[str, Any] = {"retry_total": self._retry_total}
        options |= {"transport": self._transport} if self._transport else {}
        async with AsyncExitStack() as stack:
            credential: Any = self._credential or await stack.enter_async_context(DefaultAzureCredential())
            yield await stack.enter_async_context(
                ContainerRegistryManagementClient(credential, self._acr.subscription, API_VERSION, **options)
            )


@dataclass(frozen=True)
class _TaskRun:
    """The run of ACR Tasks that builds one environment."""

    client: Any
    acr: _AcrResource
    request: BuildRequest
    progress: Callable[[str], None]
    transport: Any
    poll_s: float

    @property
    def name(self) -> str:
        """The run's name, derived from the image's tag."""
        return f"environment-{self.request.tag[:32]}"

    @property
    def resource(self) -> tuple[str, str]:
        """The resource group and the name of the registry."""
        return self.acr.group, self.acr.name

    async def begin(self) -> tuple[str, bool]:
        """Find or start the run that builds this environment image; return its id and whether it was started here."""
        run = await self._find_last_run()
        if run and run.status and run.status.lower() in UNFINISHED:
            self.progress(f"{self.request.label}: run {run.run_id} of {self.acr.name} is building it, waiting")
            return str(run.run_id), False
        models = self.client.models(API_VERSION)
        upload = await self.client.registries.get_build_source_upload_url(*self.resource)
        archive = await in_thread(lambda _: _context_archive(self.request))
        async with self._blob_client(upload.upload_url) as blob:
            await blob.upload_blob(io.BytesIO(archive), length=len(archive), overwrite=True)
        task = TASK.format(image=f"$Registry/{self.request.repository.path}:{self.request.tag}", timeout_s=TIMEOUT_S)
        run_request = models.EncodedTaskRunRequest(
            encoded_task_content=base64.b64encode(task.encode()).decode(),
            source_location=upload.relative_path,
            platform=models.PlatformProperties(os="Linux", architecture=oci_architecture()),
            timeout=TIMEOUT_S,
            credentials=self._credentials(models),
        )
        # The upload's path is new each time, so a run that failed is not taken for this one.
        await self.client.task_runs.begin_create(
            *self.resource,
            self.name,
            models.TaskRun(run_request=run_request, force_update_tag=upload.relative_path),
            polling=False,
        )
        while (run := await self._find_last_run()) is None or not run.run_id:
            await asyncio.sleep(self.poll_s)
        self.progress(
            f"{self.request.label}: building on {self.request.base_image} in run {run.run_id} of {self.acr.name}"
        )
        return str(run.run_id), True

    async def _find_last_run(self) -> Any:
        """Return the most recent run for this environment image, or None."""
        from azure.core.exceptions import ResourceNotFoundError

        with suppress(ResourceNotFoundError):
            return (await self.client.task_runs.get(*self.resource, self.name)).run_result
        return None

    def _credentials(self, models: Any) -> Any:
        """Return the run's credentials for other registries with base images. ACR needs none for itself."""
        own_host = self.request.repository.host
        others = {host: user for host, user in self.request.credentials.items() if host != own_host}
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
        """Report the run's log as progress until the run ends; return its final status and the last log lines."""
        lines: deque[str] = deque(maxlen=KEPT_LINES)
        log = (await self.client.runs.get_log_sas_url(*self.resource, run_id)).log_link
        unfinished_line = b""
        offset = 0
        while True:
            status = str((await self.client.runs.get(*self.resource, run_id)).status).rpartition(".")[2].lower()
            content = await self._read_log(log, offset)
            offset += len(content)
            *finished_lines, unfinished_line = (unfinished_line + content).split(b"\n")
            if status not in UNFINISHED:
                finished_lines.append(unfinished_line)
            for line in finished_lines:
                self._report_log_line(line.decode(errors="replace").rstrip(), lines)
            if status not in UNFINISHED:
                return status, list(lines)
            await asyncio.sleep(self.poll_s)

    def _report_log_line(self, log_line: str, lines: "deque[str]") -> None:
        """Remove credentials from a log line, append it to `lines` and report it as progress."""
        line = hide_credentials(log_line)
        lines.append(line)
        if line.strip():
            self.progress(f"environment: {line}")

    async def _read_log(self, url: str, offset: int) -> bytes:
        """Download the run's log from byte `offset` on; return no bytes if there is nothing new."""
        from azure.core.exceptions import HttpResponseError

        async with self._blob_client(url) as blob:
            try:
                return bytes(await (await blob.download_blob(offset=offset)).readall())
            except HttpResponseError as error:
                if error.status_code in (404, 416):  # no log yet; nothing new
                    return b""
                raise

    @asynccontextmanager
    async def _blob_client(self, url: str) -> AsyncIterator[Any]:
        """Context manager: open a client for a blob's signed URL, and close it on exit."""
        from azure.storage.blob.aio import BlobClient

        options: dict[str, Any] = {"max_single_put_size": BLOCK_BYTES, "max_block_size": BLOCK_BYTES}
        options |= {"transport": self.transport} if self.transport else {}
        client = BlobClient.from_blob_url(url, **options)
        try:
            yield client
        finally:
            if not self.transport:
                await client.close()

    async def cancel(self, run_id: str) -> None:
        """Cancel the run in Azure, and wait until it is cancelled."""
        await (await self.client.runs.begin_cancel(*self.resource, run_id)).wait()


def _context_archive(request: BuildRequest) -> bytes:
    """Return the build context as a `.tar.gz`, with the build arguments written into the Dockerfile."""
    with tempfile.TemporaryDirectory(prefix="controlled-rollout-") as temporary:
        folder = Path(temporary) / "context"
        write_build_context(request, folder)
        dockerfile = folder / DOCKERFILE
        text = dockerfile.read_text(encoding="utf-8")
        text = re.sub(r"(?m)^ARG BASE_IMAGE$", f'ARG BASE_IMAGE="{request.base_image}"', text)
        text = re.sub(r"(?m)^ARG PYTHON=.*$", f'ARG PYTHON="{request.python}"', text)
        dockerfile.write_text(text, encoding="utf-8")
        layer = layer_of_files(read_source_folder(folder).files)
        return gzip.compress(b"".join(layer.chunks()), compresslevel=1, mtime=0)


def _run_error(request: BuildRequest, run_id: str, status: str, lines: list[str]) -> ImageError:
    """Return the error for a run that failed, was cancelled or took too long."""
    if status in ("canceled", "timeout"):
        how = "was cancelled" if status == "canceled" else f"took more than {TIMEOUT_S} s"
        return ImageError(f"run {run_id}, which builds the environment image, {how}: no tag was pushed")
    return build_error(request, lines)


@contextmanager
def _azure_errors(acr: _AcrResource) -> Iterator[None]:
    """Context manager: convert exceptions of Azure's clients to errors that say what to do."""
    from azure.core.exceptions import (
        ClientAuthenticationError,
        HttpResponseError,
        ServiceRequestError,
        ServiceResponseError,
    )

    api = f"Azure's management API of the registry {acr.name}"
    try:
        yield
    except (ServiceRequestError, ServiceResponseError) as error:
        raise RegistryUnavailableError(f"{api} does not answer: {error.message}") from error
    except HttpResponseError as error:
        message = str(error.message).partition("\n")[0]
        if isinstance(error, ClientAuthenticationError) or error.status_code == 403:
            raise ImageError(f"{api} does not let this identity in: {message}: {ROLE}") from error
        if error.status_code == 429 or (error.status_code or 0) >= 500:
            raise RegistryUnavailableError(f"{api} cannot answer now: {message}") from error
        raise ImageError(f"{api} refuses: {message}") from error
