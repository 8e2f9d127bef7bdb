"""A caller's key never gets into the store: only a hash with the store's own secret, another one at each endpoint."""

import json
from pathlib import Path
from typing import Any

from controlled_rollout.telemetry_store import otlp
from controlled_rollout.telemetry_store.user_hash import UserHash
from controlled_rollout.telemetry_store.values import properties_json
from tests.unit.telemetry_store.test_store_otlp import ENVOY, export

KEY = "somebody@example.com"


def properties(users: UserHash | None, **attributes: Any) -> dict[str, Any]:
    """Return the properties of the row of a span with further attributes."""
    rows = otlp.rows_of_spans(export({**ENVOY, **attributes}), users).rows["AppRequests"]
    found: dict[str, Any] = json.loads(str(rows[0][-1]))
    return found


def test_the_key_of_a_span_becomes_a_hash_by_endpoint_and_store() -> None:
    """The same caller has one hash at one endpoint of one store, and another one everywhere else."""
    one, other = UserHash(b"1" * 32), UserHash(b"2" * 32)
    found = properties(one, sticky_key=KEY)
    assert KEY not in json.dumps(found)
    assert len(found["user"]) == 32
    assert properties(one, sticky_key=KEY)["user"] == found["user"]
    assert properties(one, sticky_key=KEY, endpoint="letters")["user"] != found["user"]
    assert properties(one, sticky_key=f"{KEY} ")["user"] != found["user"]
    assert properties(other, sticky_key=KEY)["user"] != found["user"]
    assert len(properties(one, sticky_key="x" * 60_000)["user"]) == 32


def test_without_a_key_there_is_no_user_whatever_else_a_span_says() -> None:
    """An empty key is none, and nobody can set the hash himself."""
    users = UserHash(b"1" * 32)
    assert "user" not in properties(users)
    assert "user" not in properties(users, sticky_key="")
    assert "user" not in properties(users, user="forged")
    assert "sticky_key" not in properties(None, sticky_key=KEY)


def test_no_other_way_into_the_store_keeps_a_key() -> None:
    """A collector that forgets to make a hash of it stores no key, and no user."""
    assert json.loads(properties_json({"sticky_key": KEY, "endpoint": "digits"})) == {"endpoint": "digits"}


def test_a_store_keeps_its_secret_and_makes_a_new_one_of_a_damaged_file(tmp_path: Path) -> None:
    """It is the owner's alone, the same after a restart."""
    attributes = {"sticky_key": KEY, "endpoint": "digits"}

    def user() -> str:
        """Return the hash that a store on this folder makes now."""
        copy: dict[str, Any] = dict(attributes)
        UserHash.of(tmp_path).replace_key(copy)
        return str(copy["user"])

    first = user()
    assert user() == first
    file = tmp_path / "user-hash.key"
    assert file.stat().st_mode & 0o777 == 0o600
    file.write_bytes(b"short")
    assert user() != first
