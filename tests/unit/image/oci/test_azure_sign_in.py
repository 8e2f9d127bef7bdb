"""The exchange of an Entra ID token for a registry's, as Microsoft documents it; Entra ID is a fake."""

import httpx
import pytest
from azure.core.exceptions import ClientAuthenticationError

from controlled_rollout.errors import ImageError, RegistryUnavailableError
from controlled_rollout.image import Credentials
from controlled_rollout.image.oci.azure_sign_in import is_azure_registry, sign_in_to_registry
from tests.unit.image.builders.acr_management import Identity


async def exchange(
    answer: httpx.Response | Exception, identity: Identity | None = None
) -> tuple[Credentials, list[httpx.Request]]:
    """Sign in to a registry that gives this answer; return the credentials and the requests."""
    requests = []

    def handle(request: httpx.Request) -> httpx.Response:
        requests.append(request)
        if isinstance(answer, Exception):
            raise answer
        return httpx.Response(answer.status_code, stream=httpx.ByteStream(answer.content))

    async with httpx.AsyncClient(transport=httpx.MockTransport(handle)) as client:
        return await sign_in_to_registry("mine.azurecr.io", identity or Identity(), client=client), requests


async def test_token_of_the_identity_becomes_the_password_of_the_null_user() -> None:
    identity = Identity()

    user, [request] = await exchange(httpx.Response(200, json={"refresh_token": "token-of-acr"}), identity)

    assert identity.scopes == ["https://containerregistry.azure.net/.default"]
    assert str(request.url) == "https://mine.azurecr.io/oauth2/exchange"
    assert b"grant_type=access_token&service=mine.azurecr.io&access_token=token-of-entra" in request.content
    assert user.username == "00000000-0000-0000-0000-000000000000"
    assert user.password == "token-of-acr"
    assert "token-of-acr" not in repr(user)


@pytest.mark.parametrize(
    ("answer", "error", "message"),
    [
        (httpx.Response(401, json={"errors": []}), ImageError, "does not let this identity in .401.*AcrPush"),
        (httpx.Response(503), RegistryUnavailableError, "cannot sign in now: 503"),
        (httpx.ConnectError("refused"), RegistryUnavailableError, "mine.azurecr.io does not answer .refused"),
    ],
)
async def test_failed_exchange_is_an_error_without_the_token(
    answer: httpx.Response | Exception, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message) as caught:
        await exchange(answer)

    assert "token-of-entra" not in str(caught.value)


async def test_worker_without_an_identity_is_an_error_that_names_the_setting() -> None:
    error = ClientAuthenticationError("DefaultAzureCredential failed\nand a long story")

    with pytest.raises(ImageError, match=r"no identity .*DefaultAzureCredential failed\).*registry_conn_id"):
        await exchange(httpx.Response(200), Identity(error))


@pytest.mark.parametrize(
    ("host", "azure"), [("a.azurecr.io", True), ("azurecr.io.example", False), ("127.0.0.1", False)]
)
def test_azure_registries_are_recognised_by_their_host_names(host: str, azure: bool) -> None:
    assert is_azure_registry(host) is azure
