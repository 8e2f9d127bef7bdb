"""The scan gate: an image in a registry, real scanners with small databases, pip-audit with an OSV service."""

import asyncio
import os
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import psutil
import pytest

from controlled_rollout.errors import ImageError, ScanError, ScanUnavailableError
from controlled_rollout.image import Credentials, ImageReference, build_container_image
from controlled_rollout.image.scan import ScanDecision, ScanPolicy, ScanSettings, Severity, scan_image
from controlled_rollout.workspace import Workspace
from tests.registry.conftest import Built
from tests.registry.osv_service import OsvService, osv_service, vulnerability
from tests.registry.real_registry import RunningRegistry
from tests.registry.scanner_programs import Scanner, ScannerName, scanner_or_skip

SERVER = "azureml-inference-server-http"
IN_PYTHON = {"id": "CVE-2026-1000", "severity": "high", "package": SERVER, "fixed": "99.0.0"}
IN_DEBIAN = {"id": "CVE-2026-2000", "severity": "low", "package": "bash", "fixed": "6.0", "debian": True}
KNOWN: list[dict[str, Any]] = [IN_PYTHON, IN_DEBIAN]


@pytest.fixture
def osv() -> Iterator[OsvService]:
    with osv_service() as service:
        yield service


@pytest.fixture(params=["grype", "trivy"])
def scanner(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Scanner:
    """A real scanner, with an empty folder for its database and nowhere to update it from."""
    return scanner_or_skip(request.param, tmp_path, monkeypatch)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a workspace; its cache has the image's layers after the first test."""
    return tmp_path_factory.mktemp("workspace")


def workspace(root: Path, osv: OsvService, scanner: ScannerName = "grype") -> Workspace:
    return Workspace(root=root, cache_folder=root / "cache", scanner=scanner, osv_url=osv.url)


async def look(
    built: Built,
    root: Path,
    osv: OsvService,
    policy: ScanPolicy | None = None,
    *,
    by: ScannerName = "grype",
    **settings: Any,
) -> ScanDecision:
    return await scan_image(
        workspace(root, osv, by), built.reference, ScanSettings(policy=policy or ScanPolicy(), **settings)
    )


async def test_a_vulnerability_above_the_chosen_severity_blocks_the_image_and_is_listed(
    built: Built, scanner: Scanner, osv: OsvService, root: Path
) -> None:
    scanner.knows(datetime.now(UTC), KNOWN)

    with pytest.raises(ScanError) as stopped:
        await look(built, root, osv, by=scanner.name)

    assert "vulnerabilities: 1 high, 1 low; blocking: 1" in str(stopped.value)
    assert any(
        line.split()[:3] == ["high", "CVE-2026-1000", SERVER] and "99.0.0" in line
        for line in str(stopped.value).splitlines()
    )
    assert "CVE-2026-2000" not in str(stopped.value), "a low one in the distribution does not stop it"


async def test_vulnerabilities_up_to_the_chosen_severity_pass_those_of_pip_audit_with_the_scanners_severity(
    built: Built, scanner: Scanner, osv: OsvService, root: Path
) -> None:
    scanner.knows(datetime.now(UTC), KNOWN)
    osv.known[SERVER] = [vulnerability(SERVER, "PYSEC-2026-1", "CVE-2026-1000", fixed="99.0.0")]

    decision = await look(built, root, osv, ScanPolicy(max_severity=Severity.HIGH), by=scanner.name)

    assert decision.passes
    assert {finding.id for finding in decision.passing} == {"CVE-2026-1000", "CVE-2026-2000"}
    [finding] = [finding for finding in decision.passing if finding.package == SERVER]
    assert (finding.severity, finding.source) == (Severity.HIGH, f"{scanner.name}, pip-audit")
    assert "PYSEC-2026-1" in finding.aliases


async def test_a_vulnerability_without_a_rating_blocks_the_image_until_it_is_accepted(
    built: Built, scanner: Scanner, osv: OsvService, root: Path
) -> None:
    scanner.knows(datetime.now(UTC), [])
    osv.known[SERVER] = [vulnerability(SERVER, "PYSEC-2026-1", "CVE-2026-1000", fixed="99.0.0")]

    with pytest.raises(ScanError, match=r"unknown +PYSEC-2026-1 +azureml"):
        await look(built, root, osv, ScanPolicy(max_severity=Severity.CRITICAL), by=scanner.name)
    decision = await look(built, root, osv, ScanPolicy(accepted=frozenset({"CVE-2026-1000"})), by=scanner.name)

    assert decision.n_accepted == 1
    assert SERVER in osv.queried and "pip" not in osv.queried, "only the environment is scanned"


async def test_a_scan_without_a_database_is_no_pass(
    built: Built, scanner: Scanner, osv: OsvService, root: Path
) -> None:
    with pytest.raises(
        ScanUnavailableError, match=r"failed \(exit code 1\): the image was not scanned, which is not a pass"
    ):
        await look(built, root, osv, by=scanner.name)


async def test_a_database_that_is_too_old_is_no_pass(
    built: Built, scanner: Scanner, osv: OsvService, root: Path
) -> None:
    scanner.knows(datetime.now(UTC) - timedelta(days=6), [])

    with pytest.raises(ScanUnavailableError, match=r"6\.0 days ago; it may be 5 days old at most"):
        await look(built, root, osv, by=scanner.name)
    assert (await look(built, root, osv, ScanPolicy(max_database_age=timedelta(days=7)), by=scanner.name)).passes


async def test_a_vulnerability_service_that_does_not_answer_is_no_pass(
    built: Built, scanner: Scanner, osv: OsvService, root: Path
) -> None:
    scanner.knows(datetime.now(UTC), [])
    osv.status = 503

    with pytest.raises(ScanUnavailableError, match="pip-audit wrote no report"):
        await look(built, root, osv, by=scanner.name)


async def test_missing_scanner_is_an_error(built: Built, osv: OsvService, root: Path, tmp_path: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PATH", str(tmp_path))
        with pytest.raises(ScanUnavailableError, match="the scanner 'grype' is not installed"):
            await look(built, root, osv)


BROKEN = {
    "it fails": ("echo nothing works >&2; exit 1", "failed .exit code 1.*\nnothing works"),
    "it writes nothing": ("exit 0", "wrote no report"),
    "it writes what is no report": ('echo "<html>" > "$5"', "report cannot be parsed"),
    "it writes another report": ('echo "{\\"dependencies\\": []}" > "$5"', "report cannot be parsed .matches"),
}


@pytest.mark.parametrize("how", BROKEN)
async def test_a_scanner_that_fails_is_no_pass(
    built: Built, osv: OsvService, root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    script, message = BROKEN[how]
    program(tmp_path, script, monkeypatch)

    with pytest.raises(ScanUnavailableError, match=message):
        await look(built, root, osv)


async def test_hanging_scanner_is_killed_after_its_timeout(
    built: Built, osv: OsvService, root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program(tmp_path, f"sleep 600 & echo $! > {tmp_path}/child; wait", monkeypatch)
    began = time.monotonic()

    with pytest.raises(ScanUnavailableError, match="did not end within 3 s and was stopped"):
        await look(built, root, osv, timeout=timedelta(seconds=3))

    assert time.monotonic() - began < 60
    child = int((tmp_path / "child").read_text())
    end = time.monotonic() + 10
    while psutil.pid_exists(child) and psutil.Process(child).status() != psutil.STATUS_ZOMBIE:
        assert time.monotonic() < end
        await asyncio.sleep(0.05)
    assert not list((root / "cache" / "scans").glob("run-*")), "nothing of the scan is left"


def program(folder: Path, script: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Put a program with the scanner's name first on the PATH."""
    place = folder / "bin"
    place.mkdir()
    (place / "grype").write_text(f"#!/bin/sh\n{script}\n")
    (place / "grype").chmod(0o755)
    monkeypatch.setenv("PATH", f"{place}:{os.environ['PATH']}")


ROBOT = Credentials("robot", "hunter2")


async def pushed(built: Built, registry: RunningRegistry, cache: Path) -> ImageReference:
    return await build_container_image(
        built.source,
        name="digits",
        registry=f"{registry.address}/models",
        cache=cache,
        base_image=built.base_image,
        shared_registry=built.registry,
        credentials={registry.address: ROBOT},
    )


async def test_scan_uses_the_credentials_of_the_build(
    built: Built, with_password: RunningRegistry, scanner: Scanner, osv: OsvService, tmp_path: Path
) -> None:
    scanner.knows(datetime.now(UTC), KNOWN)
    image, progress_lines = await pushed(built, with_password, tmp_path / "cache"), list[str]()
    settings = ScanSettings(policy=ScanPolicy(max_severity=Severity.HIGH))
    place = workspace(tmp_path / "root", osv, scanner.name)

    decision = await scan_image(
        place, image, settings, credentials={with_password.address: ROBOT}, progress=progress_lines.append
    )

    assert {finding.id for finding in decision.passing} == {"CVE-2026-1000", "CVE-2026-2000"}
    assert "hunter2" not in "\n".join(progress_lines)
    with pytest.raises(ImageError, match="needs a user name and a password, and none are given"):
        await scan_image(place, image, settings)


async def test_a_scanner_gets_the_password_in_a_private_file_only(
    built: Built,
    with_password: RunningRegistry,
    osv: OsvService,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    program(
        tmp_path,
        f"env > {tmp_path}/received; echo $* >> {tmp_path}/received; ls -lR . >> {tmp_path}/received; exit 1",
        monkeypatch,
    )
    image = await pushed(built, with_password, tmp_path / "cache")

    with pytest.raises(ScanUnavailableError):
        await scan_image(workspace(tmp_path / "root", osv), image, credentials={with_password.address: ROBOT})

    received = (tmp_path / "received").read_text()
    assert f"registry:{image}" in received and "DOCKER_CONFIG=" in received
    assert "hunter2" not in received and "cm9ib3Q6aHVudGVyMg" not in received, "neither as it is nor encoded"
    assert [line.split()[0] for line in received.splitlines() if line.endswith("config.json")] == ["-rw-------"]
    assert not list((tmp_path / "root").rglob("config.json")), "the file is gone"
