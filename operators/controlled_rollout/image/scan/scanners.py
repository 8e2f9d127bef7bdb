"""The programs that look at an image, called: Trivy or Grype, and pip-audit. Each runs for a bounded time.

A program is told a user and a password by a file that only it can read, never by an argument, and what it says goes to
the task's log. The folder that it runs in is empty: an ignore file of the project that it scans is not read.
"""

import asyncio
import base64
import importlib.util
import json
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

from controlled_rollout.addresses import is_loopback
from controlled_rollout.errors import ScanUnavailableError
from controlled_rollout.image.oci.registry_client import Credentials
from controlled_rollout.image.reference import ImageReference
from controlled_rollout.image.run_command import run
from controlled_rollout.image.scan.findings import Report
from controlled_rollout.image.scan.scanner_reports import grype_report, pip_audit_report, trivy_database, trivy_report

__all__ = ["SCANNERS", "Bench", "Subject", "audit", "scanner"]

COLOUR: Final = re.compile(r"\x1b\[[0-9;]*m")
# A report names each package's place and each vulnerability's texts: tens of megabytes are common, more is a mistake.
MAX_REPORT_BYTES: Final = 512_000_000
TOLD_LINES: Final = 8
# What a worker knows and a scanner need not; and settings of pip-audit that would change what it looks at.
NOT_INHERITED: Final = ("AIRFLOW_", "_AIRFLOW_", "PIP_AUDIT_")
EVERY_SEVERITY: Final = "UNKNOWN,LOW,MEDIUM,HIGH,CRITICAL"

Subject = ImageReference | Path
"""What is looked at: an image in a registry, by its digest, or a folder of this machine with installed packages."""


@dataclass(frozen=True)
class Bench:
    """Where and how programs run.

    Attributes:
        folder: An empty folder of one's own, private to this user.
        cache: A folder for what programs keep between scans.
        lock: A file descriptor that every process inherits.
        timeout: How long one program may take.
        credentials: A user for each registry that asks for one, by host.
        progress: Called with each line that a program says.
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
        """Run a program; return its exit status and its last lines.

        Raises:
            ScanUnavailableError: It took too long; it and all that it started have ended.
        """

        def say(line: str) -> None:
            if said := COLOUR.sub("", line).strip():
                self.progress(f"{name}: {said}")

        try:
            async with asyncio.timeout(self.timeout.total_seconds()):
                code, lines = await run(
                    command, self.folder, environment=self._environment(settings or {}), lock=self.lock, line=say
                )
        except TimeoutError:
            raise ScanUnavailableError(
                f"{name} did not end within {self.timeout.total_seconds():g} s and was stopped: give it more time, or "
                "see in the lines above what it waited for"
            ) from None
        return code, [COLOUR.sub("", line) for line in lines]

    def report(self, name: str, file: Path, code: int, lines: Sequence[str]) -> bytes:
        """Return the report that a program wrote.

        Raises:
            ScanUnavailableError: It wrote none, or an endless one.
        """
        size = file.stat().st_size if file.is_file() else 0
        if size == 0:
            raise ScanUnavailableError(
                f"{name} wrote no report (exit status {code}): nobody has looked at the image.\n{essence(lines)}"
            )
        if size > MAX_REPORT_BYTES:
            raise ScanUnavailableError(f"{name} wrote a report of {size / 1e6:,.0f} MB: that is none")
        return file.read_bytes()

    def _environment(self, settings: Mapping[str, str]) -> dict[str, str]:
        inherited = {name: value for name, value in os.environ.items() if not name.startswith(NOT_INHERITED)}
        return {**inherited, "NO_COLOR": "1", **self._users(), **settings}

    def _users(self) -> dict[str, str]:
        """Return the setting that leads to a file with the registries' users, if there are any."""
        if not self.credentials:
            return {}
        folder = self.folder / "users"
        folder.mkdir(mode=0o700, exist_ok=True)
        users = {
            host: {"auth": base64.b64encode(f"{user.username}:{user.password}".encode()).decode()}
            for host, user in self.credentials.items()
        }
        descriptor = os.open(folder / "config.json", os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(descriptor, "w", encoding="utf-8") as stream:
            json.dump({"auths": users}, stream)
        return {"DOCKER_CONFIG": str(folder)}


class Scanner(ABC):
    """A program that finds vulnerable packages of every kind in an image or a folder."""

    name: str
    install: str

    def find(self) -> str:
        """Return the program's path.

        Raises:
            ScanUnavailableError: It is not installed.
        """
        found = shutil.which(self.name)
        if found is None:
            raise ScanUnavailableError(
                f"the scanner {self.name!r} was asked for and is not installed on this machine: {self.install}. "
                "Without it nobody has looked at the image, which is not a pass"
            )
        return found

    @abstractmethod
    async def scan(self, subject: Subject, bench: Bench) -> Report:
        """Look at an image or a folder.

        Raises:
            ScanUnavailableError: The program or its database is missing, or it could not do its work.
        """


class Trivy(Scanner):
    """Trivy, of Aqua Security."""

    name = "trivy"
    install = "see trivy.dev for the packages of your system"

    async def scan(self, subject: Subject, bench: Bench) -> Report:
        """See `Scanner`."""
        program, file, asked = self.find(), bench.folder / "trivy.json", str(subject)
        kind = ["image", "--image-src", "remote"] if isinstance(subject, ImageReference) else ["rootfs"]
        what = ["--scanners", "vuln", "--severity", EVERY_SEVERITY, "--ignore-unfixed=false", "--exit-code", "0"]
        # Its own time-out would come first otherwise, with a message that does not say whose it is.
        how = ["--no-progress", "--timeout", f"{bench.timeout.total_seconds() + 60:.0f}s"]
        command = [program, *kind, *what, *how, "--format", "json", "--output", str(file), asked]
        code, lines = await bench.call(self.name, command)
        if code != 0:
            raise failed(self.name, code, lines)
        content = bench.report(self.name, file, code, lines)
        built = trivy_database(await self._version(program, bench))
        return trivy_report(content, asked=asked, built=built, distribution=isinstance(subject, ImageReference))

    async def _version(self, program: str, bench: Bench) -> bytes:
        """Return what it says of its database: the report does not."""
        code, lines = await bench.call(self.name, [program, "version", "--format", "json"])
        said = "\n".join(lines)
        return said[said.find("{") :].encode() if code == 0 else b""


class Grype(Scanner):
    """Grype, of Anchore."""

    name = "grype"
    install = "see oss.anchore.com for the packages of your system"

    async def scan(self, subject: Subject, bench: Bench) -> Report:
        """See `Scanner`."""
        program, file, asked = self.find(), bench.folder / "grype.json", str(subject)
        remote = isinstance(subject, ImageReference)
        settings = {"GRYPE_CHECK_FOR_APP_UPDATE": "false", "GRYPE_FAIL_ON_SEVERITY": ""}
        # How old the database may be is the policy's affair, which says it in its own words.
        settings |= {"GRYPE_DB_VALIDATE_AGE": "false"}
        if isinstance(subject, ImageReference) and is_loopback(subject.name.partition("/")[0]):
            settings["GRYPE_REGISTRY_INSECURE_USE_HTTP"] = "true"
        what = f"registry:{asked}" if remote else f"dir:{asked}"
        command = [program, what, "--output", "json", "--file", str(file)]
        code, lines = await bench.call(self.name, command, settings)
        if code != 0:
            raise failed(self.name, code, lines)
        return grype_report(bench.report(self.name, file, code, lines), asked=asked, distribution=remote)


SCANNERS: Final[dict[str, type[Scanner]]] = {"trivy": Trivy, "grype": Grype}


def scanner(name: str) -> Scanner:
    """Return the scanner of that name.

    Raises:
        ScanUnavailableError: It is not known.
    """
    if name not in SCANNERS:
        raise ScanUnavailableError(f"scanner {name!r} is not known: choose one of {', '.join(SCANNERS)}")
    return SCANNERS[name]()


async def audit(requirements: Sequence[str], bench: Bench, *, osv_url: str | None = None) -> Report:
    """Ask pip-audit about the packages of an environment.

    Args:
        requirements: Each as `name==version`, each name once.
        bench: Where it runs.
        osv_url: The query address of an OSV service; None for PyPI's own vulnerability data.

    Raises:
        ScanUnavailableError: It is not installed, or its service does not answer.
    """
    if importlib.util.find_spec("pip_audit") is None:
        raise ScanUnavailableError(
            "pip-audit is not installed beside this program: pip install 'airflow-provider-controlled-rollout[scan]'. "
            "Without it nobody has looked at the environment, which is not a pass"
        )
    asked, file = bench.folder / "requirements.txt", bench.folder / "pip-audit.json"
    asked.write_text("".join(f"{line}\n" for line in requirements), encoding="utf-8")
    service = ["--vulnerability-service", "osv", "--osv-url", osv_url] if osv_url else []
    # Everything is resolved already, and nothing is to be installed to find that out again.
    what = ["--requirement", str(asked), "--no-deps", "--disable-pip", *service]
    how = ["--format", "json", "--output", str(file), "--progress-spinner", "off", "--cache-dir", str(bench.cache)]
    code, lines = await bench.call("pip-audit", [sys.executable, "-P", "-m", "pip_audit", *what, *how])
    # Also 1 when it found something: only a report tells that from a failure.
    if code not in (0, 1):
        raise failed("pip-audit", code, lines)
    return pip_audit_report(bench.report("pip-audit", file, code, lines), asked=len(requirements))


def failed(name: str, code: int, lines: Sequence[str]) -> ScanUnavailableError:
    """Return the error of a program that did not do its work."""
    return ScanUnavailableError(
        f"{name} failed (exit status {code}): nobody has looked at the image, which is not a pass.\n{essence(lines)}"
    )


def essence(lines: Sequence[str]) -> str:
    """Return the last lines that a program said: what is wrong stands at the end."""
    said = [line.strip() for line in lines if line.strip()]
    return "\n".join(said[-TOLD_LINES:]) or "it said nothing"
