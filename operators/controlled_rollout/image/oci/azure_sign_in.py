"""Signing in to an Azure Container Registry as the process's own identity: no password is kept anywhere.

Source: "Azure Container Registry integration with Azure Active Directory" (azure.github.io/acr/AAD-OAuth.html): a token
of Entra ID is exchanged for a registry's, which stands for a password of the user with the empty id.
"""

from collections.abc import AsyncIterator, Iterable, Mapping
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, Final

from controlled_rollout.errors import ImageError, RegistryUnavailableError
from controlled_rollout.image.oci.registry_client import Credentials
from controlled_rollout.image.reference import registry_host

if TYPE_CHECKING:
    from azure.core.credentials_async import AsyncTokenCredential

__all__ = ["is_azure", "sign_in", "with_own_identity"]

SCOPE: Final = "https://containerregistry.azure.net/.default"
SUFFIXES: Final = (".azurecr.io", ".azurecr.us", ".azurecr.cn")
NOBODY: Final = "00000000-0000-0000-0000-000000000000"
TIMEOUT_S: Final = 30.0


def is_azure(host: str) -> bool:
    """Whether a registry is an Azure Container Registry."""
    return host.endswith(SUFFIXES)


async def with_own_identity(users: Mapping[str, Credentials], places: Iterable[str | None]) -> dict[str, Credentials]:
    """Return the users, and this process's identity for each Azure Container Registry that has none among them.

    Args:
        users: By host.
        places: Registries with their prefixes, or images; None stands for none.

    Raises:
        RegistryUnavailableError: A registry does not answer.
        ImageError: There is no identity, or a registry does not let it in.
    """
    hosts = {registry_host(place) for place in places if place}
    missing = sorted(host for host in hosts - set(users) if is_azure(host))
    if not missing:
        return dict(users)
    async with _own_credential() as credential:
        return {**users, **{host: await sign_in(host, credential) for host in missing}}


async def sign_in(host: str, credential: "AsyncTokenCredential", *, client: Any = None) -> Credentials:
    """Return a user of a registry that stands for an identity; good for three hours.

    Args:
        host: The registry, such as `models.azurecr.io`.
        credential: The identity.
        client: An `httpx.AsyncClient`; None for one of its own.

    Raises:
        RegistryUnavailableError: The registry does not answer.
        ImageError: There is no identity, or the registry does not let it in.
    """
    import httpx
    from azure.core.exceptions import ClientAuthenticationError

    try:
        token = (await credential.get_token(SCOPE)).token
    except ClientAuthenticationError as error:
        first = str(error.message).partition("\n")[0]
        raise ImageError(
            f"no identity to sign in to {host} with ({first}): give the worker one (workload identity, managed "
            "identity), or name a connection with login and password in the workspace's registry_conn_id"
        ) from None
    asked = {"grant_type": "access_token", "service": host, "access_token": token}
    async with httpx.AsyncClient(timeout=TIMEOUT_S) if client is None else _kept(client) as sender:
        try:
            answer = await sender.post(f"https://{host}/oauth2/exchange", data=asked)
        except httpx.TransportError as error:
            raise RegistryUnavailableError(
                f"registry {host} does not answer ({error or type(error).__name__}): check the name, and that it can "
                "be reached from here"
            ) from None
    if answer.status_code >= 500 or answer.status_code == 429:
        raise RegistryUnavailableError(f"registry {host} cannot sign anybody in now: {answer.status_code}")
    try:
        return Credentials(NOBODY, str(answer.json()["refresh_token"]))
    except (ValueError, KeyError, TypeError):
        raise ImageError(
            f"registry {host} does not let this identity in ({answer.status_code} {answer.reason_phrase}): it needs "
            "the role AcrPush on the registry"
        ) from None


@asynccontextmanager
async def _kept(client: Any) -> AsyncIterator[Any]:
    yield client


@asynccontextmanager
async def _own_credential() -> "AsyncIterator[AsyncTokenCredential]":
    try:
        from azure.identity.aio import DefaultAzureCredential
    except ImportError:
        raise ImageError(
            "azure-identity is needed to sign in to an Azure Container Registry without a connection: install "
            "airflow-provider-controlled-rollout with the extra azure, or name a connection in registry_conn_id"
        ) from None
    async with DefaultAzureCredential() as credential:
        yield credential
