"""The Secret of an endpoint's signing keys: made once, made again if somebody deletes or damages it, rotated once."""

import base64
from typing import cast

import pytest

from controlled_rollout.cluster.api import Api, Object
from controlled_rollout.errors import ConflictError
from controlled_rollout.target.kubernetes import signing_keys_secret
from controlled_rollout.target.kubernetes.names import endpoint_labels
from controlled_rollout.tokens import SigningKeys

OWNER: Object = {"metadata": {"name": "controlled-rollout-digits", "uid": "1"}}


class OneSecret:
    """An API server with one Secret at most; others may change it between a read and a write."""

    def __init__(self) -> None:
        self.data: dict[str, str] | None = None
        self.is_changed_by_others = False

    async def find(self, path: str) -> Object | None:
        assert path.endswith("/secrets/controlled-rollout-digits-signing-keys")
        metadata = {
            "namespace": "models",
            "name": "controlled-rollout-digits-signing-keys",
            "labels": endpoint_labels("digits"),
            "resourceVersion": "1",
        }
        encoded = {name: base64.b64encode(text.encode()).decode() for name, text in (self.data or {}).items()}
        return None if self.data is None else {"metadata": metadata, "data": encoded}

    async def create(self, path: str, body: Object) -> Object | None:
        if self.is_changed_by_others:
            self.data = SigningKeys.new().model_dump()
        if self.data is not None:
            return None
        self.data = dict(body["stringData"])
        return body

    async def merge_if_unchanged(self, path: str, current: Object, body: Object) -> Object | None:
        if self.is_changed_by_others:
            return None
        self.data = {**(self.data or {}), **body["stringData"]}
        return body


@pytest.fixture
def server() -> OneSecret:
    return OneSecret()


async def restore(server: OneSecret, *, dry_run: bool = False) -> tuple[SigningKeys | None, list[str]]:
    found = await signing_keys_secret.restore(cast(Api, server), "models", "digits", OWNER, dry_run=dry_run)
    return found[0], [str(drift) for drift in found[1]]


async def test_signing_keys_are_made_once_and_looking_makes_none(server: OneSecret) -> None:
    looked = await restore(server, dry_run=True)
    assert (looked[0], server.data) == (None, None)
    assert "does not exist" in looked[1][0]

    made, _ = await restore(server)
    again, drift = await restore(server)

    assert made is not None and server.data == made.model_dump()
    assert (again, drift) == (made, [])
    assert await signing_keys_secret.read(cast(Api, server), "models", "digits") == made


@pytest.mark.parametrize("damage", [{"current": ""}, {"next": "no key"}, {"former": "x", "later": "y"}])
async def test_damaged_signing_keys_are_made_anew_and_it_is_said(server: OneSecret, damage: dict[str, str]) -> None:
    before, _ = await restore(server)
    assert before is not None
    server.data = {**before.model_dump(), **damage}

    after, drift = await restore(server)

    assert after is not None and after.current != before.current
    assert server.data == after.model_dump()
    assert "tokens of before are refused" in drift[0]
    assert "no key" not in drift[0]


async def test_of_two_writers_that_make_the_keys_the_second_takes_those_of_the_first(server: OneSecret) -> None:
    server.is_changed_by_others = True
    keys, drift = await restore(server)
    assert keys is not None
    assert (keys.model_dump(), drift) == (server.data, [])


async def test_without_keys_no_step_goes_on(server: OneSecret) -> None:
    server.data, server.is_changed_by_others = {"current": "damaged"}, True

    with pytest.raises(ConflictError, match="try again"):
        await restore(server)


async def test_a_rotation_is_refused_if_somebody_else_has_rotated_meanwhile(server: OneSecret) -> None:
    before, _ = await restore(server)
    assert before is not None
    api = cast(Api, server)
    rotated = await signing_keys_secret.rotate(api, "models", "digits", before)
    assert rotated.current == before.next

    for at in (before, rotated):
        server.is_changed_by_others = at == rotated
        with pytest.raises(ConflictError, match="somebody else changed them meanwhile"):
            await signing_keys_secret.rotate(api, "models", "digits", at)
    assert server.data == rotated.model_dump()
