"""The scan gate on the local target: its images are folders; the operator and the command line call the same gate."""

import asyncio
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from controlled_rollout.errors import ScanUnavailableError
from controlled_rollout.image import ImageReference, build_local_image
from controlled_rollout.image.scan import ScanPolicy, ScanSettings, Severity, scan_image
from controlled_rollout.workspace import Workspace, user_cache
from tests.local.empty_scanner import empty_scanner
from tests.local.task_lab import TaskInstance, context
from tests.registry.osv_service import osv_service, vulnerability
from tests.registry.scanner_programs import ScannerName, scanner_or_skip

SERVER = "azureml-inference-server-http"
KNOWN = {"id": "CVE-2026-1000", "severity": "high", "package": SERVER, "fixed": "99.0.0"}
SCRIPT = "def init(): ...\ndef run(data): return data\n"


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("workspace")


@pytest.fixture(scope="module")
def image(root: Path, tmp_path_factory: pytest.TempPathFactory) -> ImageReference:
    source = tmp_path_factory.mktemp("source")
    (source / "score.py").write_text(SCRIPT)
    (source / "requirements.txt").write_text("")
    return asyncio.run(build_local_image(source, name="digits", cache=user_cache()))


@pytest.mark.parametrize("name", ["grype", "trivy"])
async def test_the_environment_of_a_local_image_is_scanned(
    root: Path, image: ImageReference, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: ScannerName
) -> None:
    scanner = scanner_or_skip(name, tmp_path, monkeypatch)
    scanner.knows(datetime.now(UTC), [KNOWN])
    with osv_service() as osv:
        workspace = Workspace(root=root, scanner=name, osv_url=osv.url)
        decision = await scan_image(workspace, image, ScanSettings(policy=ScanPolicy(max_severity=Severity.HIGH)))

    [finding] = decision.passing
    assert (finding.id, finding.package, finding.severity) == (KNOWN["id"], SERVER, Severity.HIGH)
    assert SERVER in osv.queried and "pytest" not in osv.queried


async def test_a_scanner_does_not_get_airflows_settings(
    root: Path, image: ImageReference, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    received = empty_scanner(tmp_path / "bin", monkeypatch, datetime.now(UTC))
    monkeypatch.setenv("AIRFLOW__CORE__FERNET_KEY", "secret-of-airflow")
    monkeypatch.setenv("AIRFLOW_CONN_X", "secret-of-airflow")
    with osv_service() as osv:
        await scan_image(Workspace(root=root, scanner="grype", osv_url=osv.url), image)

    assert "secret-of-airflow" not in received.read_text()


async def test_database_of_last_month_is_an_error(
    root: Path, image: ImageReference, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    empty_scanner(tmp_path / "bin", monkeypatch, datetime.now(UTC) - timedelta(days=30))
    with osv_service() as osv, pytest.raises(ScanUnavailableError, match=r"30\.0 days ago"):
        await scan_image(Workspace(root=root, scanner="grype", osv_url=osv.url), image)


def test_the_task_returns_the_image_that_passed(
    root: Path, image: ImageReference, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from airflow.sdk.exceptions import AirflowFailException

    from controlled_rollout import ScanImageOperator

    empty_scanner(tmp_path / "bin", monkeypatch, datetime.now(UTC))
    with osv_service() as osv:
        extras = f'{{"root": "{root}", "scanner": "grype", "osv_url": "{osv.url}"}}'
        connection = f'{{"conn_type": "controlled_rollout", "extra": {extras}}}'
        monkeypatch.setenv("AIRFLOW_CONN_CONTROLLED_ROLLOUT_DEFAULT", connection)
        ti = TaskInstance("run-1", "scan")
        passed = ScanImageOperator(task_id="scan", image=str(image)).execute(context(ti))
        osv.known[SERVER] = [vulnerability(SERVER, "PYSEC-2026-1", fixed="99.0.0")]
        with pytest.raises(AirflowFailException, match="PYSEC-2026-1"):
            ScanImageOperator(task_id="scan", image=str(image)).execute(context(ti))
        osv.status = 503
        with pytest.raises(ScanUnavailableError):
            ScanImageOperator(task_id="scan", image=str(image)).execute(context(ti))

    assert passed == str(image)
    assert ti.pushed["scan"] == "no vulnerabilities"
    assert "pip-audit wrote no report" in ti.pushed["failure"]


def test_the_command_ends_with_1_if_the_image_is_blocked(
    root: Path, image: ImageReference, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    empty_scanner(tmp_path / "bin", monkeypatch, datetime.now(UTC))
    with osv_service() as osv:
        (tmp_path / "workspace.yaml").write_text(f"root: {root}\nscanner: grype\nosv_url: {osv.url}\n")
        command = [sys.executable, "-m", "controlled_rollout.cli", "scan", str(image)]
        command += ["--workspace", str(tmp_path / "workspace.yaml")]
        fine = subprocess.run(command, capture_output=True, text=True)
        osv.known[SERVER] = [vulnerability(SERVER, "PYSEC-2026-1", fixed="99.0.0")]
        stopped = subprocess.run(command, capture_output=True, text=True)
        accepted = subprocess.run([*command, "--accept", "PYSEC-2026-1"], capture_output=True, text=True)

    assert (fine.returncode, stopped.returncode, accepted.returncode) == (0, 1, 0), stopped.stderr
    assert "no vulnerabilities" in fine.stdout
    assert "must not be rolled out (vulnerabilities: 1 unknown; blocking: 1)" in stopped.stderr
    assert "vulnerabilities: 1 unknown; blocking: 0; accepted: 1" in accepted.stdout
