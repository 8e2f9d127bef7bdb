"""Grype, and small vulnerability databases for it, made by hand.

Compiling it takes minutes: tests use one that is there, on the PATH or compiled before, and compile it when
SCANNER_TESTS=1 asks for that.
"""

import json
import os
import shutil
import subprocess
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from cluster.lab.binaries import MODULES, program
from cluster.lab.cache import cache_folder


def grype_or_skip() -> Path:
    """Return the compiled program, or skip the test."""
    compiled = any((cache_folder() / "programs").glob("grype-*/grype"))
    if not compiled and os.environ.get("SCANNER_TESTS") != "1":
        pytest.skip(f"Grype is not compiled yet ({MODULES / 'grype'}): SCANNER_TESTS=1 compiles it, for minutes")
    if not shutil.which("go") and not compiled:
        pytest.skip("Grype cannot be compiled without Go")
    return program("grype", of="grype")


def grype_database(folder: Path, built: datetime, vulnerabilities: list[dict[str, Any]]) -> None:
    """Write a database that Grype finds when GRYPE_DB_CACHE_DIR is `folder`."""
    place = folder / "6"
    place.mkdir(parents=True)
    entries = json.dumps({"built": built.isoformat(), "vulnerabilities": vulnerabilities})
    subprocess.run([program("database", of="grype"), place], input=entries, text=True, check=True)
