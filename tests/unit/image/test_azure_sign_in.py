"""The exchange of an identity's token for a registry's, as Microsoft documents it. Entra ID cannot run here."""

from types import SimpleNamespace

import httpx
import pytest
from azure.core.exceptions import ClientAuthenticationError

from controlled_rollout.errors import ImageError, RegistryUnavailableError
from controlled_rollout.image.oci.azure_sign_in import is_azure, sign_in


class Identity:
    """What azure-identity's credentials are asked for."""

    def __init__(self, error=None) -> None:
        self.error = error
        self.scopes = []

    async def get_token(self, *scopes):
        self.scopes += scopes
        if self.error:
            raise self.error
        return SimpleNamespace(token="token-of-entra")


async def exchange(answer, identity=None):
    asked = []

    def handle(request: pytest.FixtureRequest):
        asked.append(request)
        if isinstance(answer, Exception):
            raise answer
        return answer

    async with httpx.AsyncClient(transport=httpx.MockTransport(handle)) as client:
        return await sign_in("mine.azurecr.io", identity or Identity(), client=client), asked


async def test_the_identity_s_token_becomes_a_password_of_nobody() -> None:
    identity = Identity()

    user, [request] = await exchange(httpx.Response(200, json={"refresh_token": "token-of-acr"}), identity)

    assert identity.scopes == ["https://containerregistry.azure.net/.default"]
    assert str(request.url) == "https://mine.azurecr.io/oauth2/exchange"
    assert b"grant_type=access_token&service=mine.azurecr.io&access_token=token-of-entra" in request.content
    assert user.username == "00000000-0000-0000-0000-000000000000"
    assert user.password == "token-of-acr"
    assert "token-of-acr" not in repr(user)


@pytest.mark.parametrize(
    ("answer", "kind", "message"),
    [
        (httpx.Response(401, json={"errors": []}), ImageError, "does not let this identity in .401.*AcrPush"),
        (httpx.Response(503), RegistryUnavailableError, "cannot sign anybody in now: 503"),
        (httpx.ConnectError("refused"), RegistryUnavailableError, "mine.azurecr.io does not answer .refused"),
    ],
)
async def test_what_goes_wrong_is_told_without_the_token(answer, kind, message: str) -> None:
    with pytest.raises(kind, match=message) as caught:
        await exchange(answer)

    assert "token-of-entra" not in str(caught.value)


async def test_a_worker_without_an_identity_is_told_what_to_do() -> None:
    error = ClientAuthenticationError("DefaultAzureCredential failed\nand a long story")

    with pytest.raises(ImageError, match=r"no identity .*DefaultAzureCredential failed\).*registry_conn_id"):
        await exchange(httpx.Response(200), Identity(error))


@pytest.mark.parametrize(
    ("host", "azure"), [("a.azurecr.io", True), ("azurecr.io.example", False), ("127.0.0.1", False)]
)
def test_azure_s_registries_are_known_by_their_names(host: str, azure: bool) -> None:
    assert is_azure(host) is azure
