"""A certificate that Envoy has not taken over does not stay on disk, where a restarted Envoy would find it."""

from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest

from controlled_rollout.target.local import envoy_process
from controlled_rollout.target.local.certificate_pair import CertificatePair, read_pair
from controlled_rollout.target.local.envoy_process import EnvoyProcess
from controlled_rollout.target.local.log_file import LogFile
from tests.certificates import Authority

AUTHORITY = Authority()


def pair(*names: str) -> CertificatePair:
    made = AUTHORITY.pair(names=names)
    return read_pair(made.certificate, made.key, datetime.now(UTC))


@pytest.fixture
def envoy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[EnvoyProcess]:
    """A router whose Envoy does not run, so that it takes nothing over."""
    monkeypatch.setattr(envoy_process, "CONFIRM_TIMEOUT_S", 0.1)
    yield EnvoyProcess(
        tmp_path / "envoy",
        LogFile(tmp_path / "router.log"),
        host="127.0.0.1",
        port=8443,
        telemetry_port=None,
        on_change=lambda: None,
    )


async def test_the_one_of_before_is_on_disk_again(envoy: EnvoyProcess) -> None:
    assert envoy.url == "http://127.0.0.1:8443"
    assert await envoy.serve_certificate(pair("127.0.0.1"))
    before = envoy.files.certificate.read_bytes()
    await envoy.listen()

    assert not await envoy.serve_certificate(pair("models.example"))

    assert envoy.files.certificate.read_bytes() == before
    # Callers are still told the address that the certificate of before is for.
    assert envoy.url == "https://127.0.0.1:8443"


async def test_callers_are_told_a_name_that_the_certificate_is_for(envoy: EnvoyProcess) -> None:
    assert await envoy.serve_certificate(pair("localhost"))

    assert envoy.url == "https://localhost:8443"
