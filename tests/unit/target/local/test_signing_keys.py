"""The file of an endpoint's signing keys, and the kept keys of outside issuers."""

import asyncio
import json
import time
from collections.abc import Iterator
from pathlib import Path
from stat import S_IMODE

import pytest

from controlled_rollout.errors import DamagedFileError
from controlled_rollout.target.local import issuer_keys, signing_keys
from controlled_rollout.target.local.issuer_keys import IssuerKeys
from controlled_rollout.tokens import key_set
from tests.local.token_issuer import Issuer, serving
from tests.polling import until

DAY = 24 * 3600


def test_signing_keys_are_made_once_readable_by_their_owner_only_and_rotated_in_their_file(tmp_path: Path) -> None:
    signing_keys.create_signing_keys_if_missing(tmp_path)
    keys, public = signing_keys.read_signing_keys(tmp_path)
    signing_keys.create_signing_keys_if_missing(tmp_path)

    assert signing_keys.read_signing_keys(tmp_path) == (keys, public)
    assert S_IMODE(signing_keys.signing_keys_file(tmp_path).stat().st_mode) == 0o600
    rotated = signing_keys.rotate_signing_keys(tmp_path)
    assert (rotated.former, rotated.current) == (keys.current, keys.next)
    assert signing_keys.read_signing_keys(tmp_path) == (rotated, key_set(rotated))


@pytest.mark.parametrize(
    "content", [None, b"", b"{}", b'{"former": "secret", "current": "b", "next": "c", "later": "d"}']
)
def test_a_damaged_file_is_named_without_its_content_and_a_rotation_repairs_it(
    tmp_path: Path, content: bytes | None
) -> None:
    if content is not None:
        signing_keys.signing_keys_file(tmp_path).write_bytes(content)

    with pytest.raises(DamagedFileError, match="controlled-rollout keys rotate") as raised:
        signing_keys.read_signing_keys(tmp_path)

    assert "secret" not in str(raised.value)
    signing_keys.rotate_signing_keys(tmp_path)
    signing_keys.read_signing_keys(tmp_path)


@pytest.fixture
def issuer() -> Iterator[Issuer]:
    with serving("127.0.0.1") as issuer:
        yield issuer


def names(text: str) -> set[str]:
    return {str(key["kid"]) for key in json.loads(text)["keys"]}


async def test_an_issuers_keys_are_read_again_and_outlive_it_and_the_process_for_a_day(
    tmp_path: Path, issuer: Issuer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(issuer_keys, "REFRESH_S", 0.0)
    monkeypatch.setattr(issuer_keys, "RETRY_S", 0.05)
    uri, changes = f"http://127.0.0.1:{issuer.port}/keys", asyncio.Event()
    later = 0.0
    keys = IssuerKeys(tmp_path, changes.set, clock=lambda: time.time() + later)
    keys.start()
    try:
        unknown = keys.key_set(uri)
        assert not names(unknown) & {"first"}
        assert keys.key_set(uri) == unknown
        await until(lambda: names(keys.key_set(uri)) == {"first"}, "the issuer's key is known")
        assert changes.is_set()
        issuer.keys["second"] = issuer.keys.pop("first")
        await until(lambda: names(keys.key_set(uri)) == {"second"}, "the issuer's other key is known")
        issuer.answers = False
        await until(lambda: keys.warnings(uri), "a warning")
        assert "it answers 503" in keys.warnings(uri)[0]
        assert "accepted for 24.0 h more" in keys.warnings(uri)[0]
        assert names(keys.key_set(uri)) == {"second"}
        changes.clear()
        later = DAY + 1
        await until(changes.is_set, "the router is told")
        assert keys.key_set(uri) == unknown
        assert "every token is refused" in keys.warnings(uri)[0]
    finally:
        await keys.stop()

    # Another process finds them on disk, if they are not too old.
    assert names(IssuerKeys(tmp_path, lambda: None).key_set(uri)) == {"second"}
    assert not names(IssuerKeys(tmp_path, lambda: None, clock=lambda: time.time() + DAY + 1).key_set(uri)) & {"second"}
    again = IssuerKeys(tmp_path, lambda: None)
    again.key_set(uri)
    again.forget_others(set())
    assert list(tmp_path.iterdir()) == []


async def test_keys_are_read_once_the_authorities_of_the_environment_are_there(
    tmp_path: Path, issuer: Issuer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(issuer_keys, "RETRY_S", 0.05)
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "not there.pem"))
    uri = f"http://127.0.0.1:{issuer.port}/keys"
    keys = IssuerKeys(tmp_path, lambda: None)
    keys.start()
    try:
        keys.key_set(uri)
        await until(lambda: keys.warnings(uri), "a warning")
        assert "every token is refused" in keys.warnings(uri)[0]
        monkeypatch.delenv("SSL_CERT_FILE")
        await until(lambda: names(keys.key_set(uri)) == {"first"}, "the issuer's key is known")
    finally:
        await keys.stop()


async def test_what_is_no_key_set_on_disk_lets_nobody_in(tmp_path: Path) -> None:
    uri = "https://login.example/keys"
    keys = IssuerKeys(tmp_path, lambda: None)
    document = json.dumps({"uri": uri, "read": time.time(), "key_set": "{}"})
    keys._file(uri).write_text(document)

    assert names(keys.key_set(uri)) == names(keys.key_set(uri))
    assert not keys.warnings(uri)
