"""The programs that scan: Trivy or Grype, and pip-audit. Each runs for a bounded time.

A program gets user and password in a file that only this user can read, never as an argument. Its output goes to the
task's log. It runs in an empty folder, so that no ignore file of the scanned project applies.
"""

import asyncio
import importlib.util
import os
import re
import shutil
import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Final

from controlled_rollout.addresses import is_loopback, no_proxy_variables
from controlled_rollout.errors import ScanUnavailableError
from controlled_rollout.image.builders.build_context import registry_auth_file
from controlled_rollout.image.oci.registry_client import Credentials
from controlled_rollout.image.reference import ImageReference
from controlled_rollout.image.run_command import run_command
from controlled_rollout.image.scan.scanner_reports import (
    grype_report,
    pip_audit_report,
    trivy_database_built_at,
    trivy_report,
)
from controlled_rollout.image.scan.vulnerabilities import ScanReport

__all__ = ["SCANNERS", "ScanRun", "Scanner", "Subject", "run_pip_audit", "scanner_named"]

COLOUR: Final = re.compile(r"\x1b\[[0-9;]*m")
# A report has each package's location and each vulnerability's texts: tens of megabytes are common, more is a mistake.
MAX_REPORT_BYTES: Final = 512_000_000
EXCERPT_LINES: Final = 8
# Airflow's settings, which are no business of a scanner; and settings of pip-audit that would change what it scans.
NOT_INHERITED: Final = ("AIRFLOW_", "_AIRFLOW_", "PIP_AUDIT_")
EVERY_SEVERITY: Final = "UNKNOWN,LOW,MEDIUM,HIGH,CRITICAL"

Subject = ImageReference | Path
"""What is scanned: an image in a registry, by its digest, or a folder of this machine with installed packages."""


@dataclass(frozen=True)
class ScanRun:
    """Where and how the programs of one scan run.

    Attributes:
        folder: An empty folder for this scan, private to this user.
        cache: A folder for what programs keep between scans.
        lock: A file descriptor that every process inherits.
        timeout: The longest time that one program may take.
        credentials: A user for each registry that needs one, by host.
        progress: Called with each line of a program's output.
    """

    folder: Path
    cache: Path
    lock: int
    timeout: timedelta
    credentials: Mapping[str, Credentials]
    progress: Callable[[str], None]

    async def call(
        self, name: str, command: Sequence[str], settings: Mapping[str, str] | None = None
    ) -> tuple[int, list[str]]:
        """Run a scanner program; return its exit code and its last output lines.

        Raises:
            ScanUnavailableError: It took too long; it and all that it started have ended.
        """

        def report(line: str) -> None:
            """Report one output line as progress, without colour codes."""
            if text := COLOUR.sub("", line).strip():
                self.progress(f"{name}: {text}")

        seconds, environment = self.timeout.total_seconds(), self._program_environment(settings or {})
        try:
            async with asyncio.timeout(seconds):
                exit_code, lines = await run_command(
                    command, self.folder, environment=environment, lock=self.lock, on_line=report
                )
        except TimeoutError as error:
            raise ScanUnavailableError(
                f"{name} did not end within {seconds:g} s and was stopped: give it more time, or see in the lines "
                "above what it waited for"
            ) from error
        return exit_code, [COLOUR.sub("", line) for line in lines]

    def read_report(self, name: str, file: Path, exit_code: int, lines: Sequence[str]) -> bytes:
        """Return the content of the report file that a scanner program wrote.

        Raises:
            ScanUnavailableError: It wrote none, or one that is too big.
        """
        size = file.stat().st_size if file.is_file() else 0
        if size == 0:
            raise ScanUnavailableError(
                f"{name} wrote no report (exit code {exit_code}): the image was not scanned.\n{_last_lines(lines)}"
            )
        if size > MAX_REPORT_BYTES:
            raise ScanUnavailableError(
                f"{name} wrote a report of {size / 1e6:,.0f} MB, and "
                f"{MAX_REPORT_BYTES / 1e6:,.0f} MB at most are read: the image was not scanned"
            )
        return file.read_bytes()

    def _program_environment(self, settings: Mapping[str, str]) -> dict[str, str]:
        """Return the program's environment variables: inherited ones, registry credentials and `settings`."""
        inherited = {name: value for name, value in os.environ.items() if not name.startswith(NOT_INHERITED)}
        inherited |= no_proxy_variables(os.environ)
        return {**inherited, "NO_COLOR": "1", **self._auth_settings(), **settings}

    def _auth_settings(self) -> dict[str, str]:
        """Write the registries' credentials to a file; return the variable `DOCKER_CONFIG` that names its folder."""
        if not self.credentials:
            return {}
        folder = self.folder / "auth"
        folder.mkdir(mode=0o700, exist_ok=True)
        descriptor = os.open(folder / "config.json", os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(descriptor, "wb") as stream:
            stream.write(registry_auth_file(self.credentials))
        return {"DOCKER_CONFIG": str(folder)}


class Scanner(ABC):
    """A program that finds vulnerable packages of every kind in an image or a folder."""

    name: str
    install: str

    def find(self) -> str:
        """Return the path of the scanner program.

        Raises:
            ScanUnavailableError: It is not installed.
        """
        path = shutil.which(self.name)
        if path is None:
            raise ScanUnavailableError(
                f"the scanner {self.name!r} is not installed on this machine: {self.install}. "
                "The image was not scanned, which is not a pass"
            )
        return path

    @abstractmethod
    async def scan(self, subject: Subject, run: ScanRun) -> ScanReport:
        """Run the scanner on an image or a folder and return its report.

        Raises:
            ScanUnavailableError: The program or its database is missing, or the program failed.
        """


class Trivy(Scanner):
    """Trivy, by Aqua Security."""

    name = "trivy"
    install = "see trivy.dev for the packages of your system"

    async def scan(self, subject: Subject, run: ScanRun) -> ScanReport:
        """Run Trivy on an image in a registry, or on a folder."""
        program, file, target = self.find(), run.folder / "trivy.json", str(subject)
        kind = ["image", "--image-src", "remote"] if isinstance(subject, ImageReference) else ["rootfs"]
        filters = ["--scanners", "vuln", "--severity", EVERY_SEVERITY, "--ignore-unfixed=false", "--exit-code", "0"]
        # Longer than ours: Trivy's own time-out has a message that does not say where it was set.
        options = ["--no-progress", "--timeout", f"{run.timeout.total_seconds() + 60:.0f}s"]
        command = [program, *kind, *filters, *options, "--format", "json", "--output", str(file), target]
        exit_code, lines = await run.call(self.name, command)
        if exit_code != 0:
            raise _program_failed_error(self.name, exit_code, lines)
        content = run.read_report(self.name, file, exit_code, lines)
        built = trivy_database_built_at(await self._version_json(program, run))
        return trivy_report(content, target=target, built=built, distribution=isinstance(subject, ImageReference))

    async def _version_json(self, program: str, run: ScanRun) -> bytes:
        """Return the JSON output of `trivy version`, which has the database's build time; empty if it failed."""
        exit_code, lines = await run.call(self.name, [program, "version", "--format", "json"])
        output = "\n".join(lines)
        return output[output.find("{") :].encode() if exit_code == 0 else b""


class Grype(Scanner):
    """Grype, by Anchore."""

    name = "grype"
    install = "see oss.anchore.com for the packages of your system"

    async def scan(self, subject: Subject, run: ScanRun) -> ScanReport:
        """Run Grype on an image in a registry, or on a folder."""
        program, file, target = self.find(), run.folder / "grype.json", str(subject)
        in_registry = isinstance(subject, ImageReference)
        settings = {"GRYPE_CHECK_FOR_APP_UPDATE": "false", "GRYPE_FAIL_ON_SEVERITY": ""}
        # The policy checks the database's age, with a message of its own.
        settings |= {"GRYPE_DB_VALIDATE_AGE": "false"}
        if isinstance(subject, ImageReference) and is_loopback(subject.name.partition("/")[0]):
            settings["GRYPE_REGISTRY_INSECURE_USE_HTTP"] = "true"
        source = f"registry:{target}" if in_registry else f"dir:{target}"
        command = [program, source, "--output", "json", "--file", str(file)]
        exit_code, lines = await run.call(self.name, command, settings)
        if exit_code != 0:
            raise _program_failed_error(self.name, exit_code, lines)
        content = run.read_report(self.name, file, exit_code, lines)
        return grype_report(content, target=target, distribution=in_registry)


SCANNERS: Final[dict[str, type[Scanner]]] = {"trivy": Trivy, "grype": Grype}


def scanner_named(name: str) -> Scanner:
    """Return the scanner with this name, `trivy` or `grype`.

    Raises:
        ScanUnavailableError: There is none.
    """
    if name not in SCANNERS:
        raise ScanUnavailableError(f"scanner {name!r} is not known: choose one of {', '.join(SCANNERS)}")
    return SCANNERS[name]()


async def run_pip_audit(requirements: Sequence[str], run: ScanRun, *, osv_url: str | None = None) -> ScanReport:
    """Run pip-audit on the packages of a Python environment and return its report.

    Args:
        requirements: Each as `name==version`, each name once.
        run: Where and how it runs.
        osv_url: The query address of an OSV service; None for PyPI's own vulnerability data.

    Raises:
        ScanUnavailableError: It is not installed, or its service does not answer.
    """
    if importlib.util.find_spec("pip_audit") is None:
        raise ScanUnavailableError(
            "pip-audit is not installed: pip install 'airflow-provider-controlled-rollout[scan]'. "
            "The environment was not scanned, which is not a pass"
        )
    requirements_file, file = run.folder / "requirements.txt", run.folder / "pip-audit.json"
    requirements_file.write_text("".join(f"{line}\n" for line in requirements), encoding="utf-8")
    service = ["--vulnerability-service", "osv", "--osv-url", osv_url] if osv_url else []
    # The list is complete: nothing has to be resolved or installed.
    source = ["--requirement", str(requirements_file), "--no-deps", "--disable-pip", *service]
    options = ["--format", "json", "--output", str(file), "--progress-spinner", "off", "--cache-dir", str(run.cache)]
    exit_code, lines = await run.call("pip-audit", [sys.executable, "-P", "-m", "pip_audit", *source, *options])
    # Exit code 1 means vulnerabilities or a failure; only a report tells one from the other.
    if exit_code not in (0, 1):
        raise _program_failed_error("pip-audit", exit_code, lines)
    return pip_audit_report(run.read_report("pip-audit", file, exit_code, lines), n_packages=len(requirements))


def _program_failed_error(name: str, exit_code: int, lines: Sequence[str]) -> ScanUnavailableError:
    """Return the error for a scanner program that failed, with the last lines of its output."""
    return ScanUnavailableError(
        f"{name} failed (exit code {exit_code}): the image was not scanned, which is not a pass.\n{_last_lines(lines)}"
    )


def _last_lines(lines: Sequence[str]) -> str:
    """Return the last lines of a program's output as text. Scanners write the error last."""
    written = [line.strip() for line in lines if line.strip()]
    return "\n".join(written[-EXCERPT_LINES:]) or "it wrote nothing"
