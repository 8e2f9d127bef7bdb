"""Sign in to an Azure Container Registry with the process's own identity: no password is kept anywhere.

Source: "Azure Container Registry integration with Azure Active Directory" (azure.github.io/acr/AAD-OAuth.html): a token
of Entra ID is exchanged for a token of the registry, which is the password of a user with an empty id.
"""

from collections.abc import AsyncIterator, Iterable, Mapping
from contextlib import asynccontextmanager, nullcontext
from typing import TYPE_CHECKING, Any, Final

from controlled_rollout.errors import ImageError, RegistryUnavailableError
from controlled_rollout.image.oci.registry_client import Credentials
from controlled_rollout.image.oci.responses import parse_json, read_document
from controlled_rollout.image.reference import registry_host

if TYPE_CHECKING:
    from azure.core.credentials_async import AsyncTokenCredential

__all__ = ["is_azure_registry", "sign_in_to_registry", "with_azure_credentials"]

SCOPE: Final = "https://containerregistry.azure.net/.default"
SUFFIXES: Final = (".azurecr.io", ".azurecr.us", ".azurecr.cn")
EMPTY_USER: Final = "00000000-0000-0000-0000-000000000000"
TIMEOUT_S: Final = 30.0


def is_azure_registry(host: str) -> bool:
    """Whether a host is an Azure Container Registry, by its domain name."""
    return host.endswith(SUFFIXES)


async def with_azure_credentials(
    credentials: Mapping[str, Credentials], registries: Iterable[str | None]
) -> dict[str, Credentials]:
    """Add credentials for each Azure Container Registry that has none, by signing in with this process's identity.

    Args:
        credentials: By host.
        registries: Registries with their prefixes, or images; None is skipped.

    Raises:
        RegistryUnavailableError: A registry does not answer.
        ImageError: There is no identity, or a registry does not let it in.
    """
    hosts = {registry_host(registry) for registry in registries if registry}
    missing = sorted(host for host in hosts - set(credentials) if is_azure_registry(host))
    if not missing:
        return dict(credentials)
    async with _default_azure_credential() as identity:
        return {**credentials, **{host: await sign_in_to_registry(host, identity) for host in missing}}


async def sign_in_to_registry(host: str, credential: "AsyncTokenCredential", *, client: Any = None) -> Credentials:
    """Exchange an Entra ID identity for registry credentials that are valid for three hours.

    Args:
        host: The registry, such as `models.azurecr.io`.
        credential: The identity.
        client: An `httpx.AsyncClient`; None for a new one.

    Raises:
        RegistryUnavailableError: The registry does not answer.
        ImageError: There is no identity, or the registry does not let it in.
    """
    import httpx
    from azure.core.exceptions import ClientAuthenticationError

    try:
        token = (await credential.get_token(SCOPE)).token
    except ClientAuthenticationError as error:
        message = str(error.message).partition("\n")[0]
        raise ImageError(
            f"no identity to sign in to {host} with ({message}): give the worker one (workload identity, managed "
            "identity), or name a connection with login and password in the workspace's registry_conn_id"
        ) from error
    form = {"grant_type": "access_token", "service": host, "access_token": token}
    async with httpx.AsyncClient(timeout=TIMEOUT_S) if client is None else nullcontext(client) as sender:
        try:
            request = sender.build_request("POST", f"https://{host}/oauth2/exchange", data=form)
            answer = await read_document(await sender.send(request, stream=True), host)
        except httpx.TransportError as error:
            raise RegistryUnavailableError(
                f"registry {host} does not answer ({str(error) or type(error).__name__}): check the name, and that it "
                "can be reached from here"
            ) from error
    if answer.status_code >= 500 or answer.status_code == 429:
        raise RegistryUnavailableError(f"registry {host} cannot sign in now: {answer.status_code}: try again later")
    try:
        return Credentials(EMPTY_USER, str(parse_json(answer.content)["refresh_token"]))
    except (ValueError, KeyError, TypeError) as error:
        raise ImageError(
            f"registry {host} does not let this identity in ({answer.status_code} {answer.reason_phrase}): it needs "
            "the role AcrPush on the registry"
        ) from error


@asynccontextmanager
async def _default_azure_credential() -> "AsyncIterator[AsyncTokenCredential]":
    """Context manager: open Azure's `DefaultAzureCredential` of this process, and close it on exit."""
    try:
        from azure.identity.aio import DefaultAzureCredential
    except ImportError as error:
        raise ImageError(
            "azure-identity is needed to sign in to an Azure Container Registry without a connection: install "
            "airflow-provider-controlled-rollout with the extra azure, or name a connection in registry_conn_id"
        ) from error
    async with DefaultAzureCredential() as credential:
        yield credential
