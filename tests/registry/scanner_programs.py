"""Real scanners, and small vulnerability databases for them, made with the scanners' own writers.

`make lab` compiles Grype. Trivy is used where it is on the PATH, and `make lab` has compiled the program that makes its
database.
"""

import json
import os
import shutil
import subprocess
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Literal

import pytest

from tests.cluster.lab.programs import is_compiled, program
from tests.needs import skip

__all__ = ["Scanner", "ScannerName", "scanner_or_skip"]

ScannerName = Literal["trivy", "grype"]
BOOKWORM = {"system": "debian", "major": "12", "codename": "bookworm"}


@dataclass(frozen=True)
class Scanner:
    """A real scanner without a database, and without a source for one.

    Attributes:
        name: The program's.
        database: The folder in which it looks for its database.
    """

    name: ScannerName
    database: Path

    def knows(self, built: datetime, vulnerabilities: list[dict[str, Any]]) -> None:
        """Create the scanner's database with these vulnerabilities.

        Args:
            built: When it says that it was built.
            vulnerabilities: Each with `id`, `severity`, `package`, `fixed`; `debian` for a package of Debian 12.
        """
        if self.name == "grype":
            target, maker = self.database / "6", program("database", of="grype")
            entries = [_for_grype(**known) for known in vulnerabilities]
        else:
            target, maker = self.database / "db", program("trivy-database", of="trivy-database")
            entries = [_for_trivy(**known) for known in vulnerabilities]
        target.mkdir(parents=True)
        document = json.dumps({"built": built.isoformat(), "vulnerabilities": entries})
        subprocess.run([maker, target], input=document, text=True, check=True)


def scanner_or_skip(name: ScannerName, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Scanner:
    """Return a scanner, on the PATH from now on, with an empty folder for its database; or skip the test."""
    scanner = Scanner(name, folder / "database")
    if name == "trivy":
        if not shutil.which("trivy") or not is_compiled("trivy-database"):
            pytest.skip("Trivy is not on the PATH (if it is: run `make lab`)")
        monkeypatch.setenv("TRIVY_CACHE_DIR", str(scanner.database))
        monkeypatch.setenv("TRIVY_SKIP_DB_UPDATE", "true")
        return scanner
    if not is_compiled("grype"):
        skip("Grype is not compiled: run `make lab`")
    monkeypatch.setenv("PATH", f"{program('grype', of='grype').parent}:{os.environ['PATH']}")
    monkeypatch.setenv("GRYPE_DB_CACHE_DIR", str(scanner.database))
    monkeypatch.setenv("GRYPE_DB_AUTO_UPDATE", "false")
    return scanner


def _for_grype(id: str, severity: str, package: str, fixed: str, debian: bool = False) -> dict[str, Any]:
    where = {"ecosystem": "deb", **BOOKWORM} if debian else {"ecosystem": "python"}
    return {"id": id, "severity": severity, "package": package, "fixed": fixed, "aliases": [], **where}


def _for_trivy(id: str, severity: str, package: str, fixed: str, debian: bool = False) -> dict[str, Any]:
    where = {"system": "debian 12"} if debian else {}
    return {"id": id, "severity": severity.upper(), "package": package, "fixed": fixed, **where}
