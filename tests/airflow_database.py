"""The database of an Airflow in which nothing has run yet: made once in this checkout, and copied for each Airflow."""

import fcntl
import hashlib
import os
import shutil
import sqlite3
import subprocess
import sys
import tempfile
from contextlib import closing
from importlib.metadata import distributions
from pathlib import Path
from typing import Final

__all__ = ["create_database"]

FILE: Final = "airflow.db"
CACHE: Final = Path(__file__).parents[1] / ".work" / "test-cache"
DEADLINE_S: Final = 240.0


def create_database(home: Path) -> None:
    """Give a new AIRFLOW_HOME what `airflow db migrate` makes there, without the seconds that this takes."""
    assert not (home / FILE).exists(), f"{home} has a database, which an Airflow may have open"
    shutil.copyfile(_made(), home / FILE)


def _made() -> Path:
    """Return the database that is copied; make it the first time."""
    digest = hashlib.sha256("\n".join(_packages()).encode()).hexdigest()[:16]
    folder = CACHE / f"airflow-{digest}"
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (folder / FILE).exists():
            with tempfile.TemporaryDirectory(dir=folder) as home:
                _migrate(Path(home))
                # At once, whole: a run that is killed leaves none.
                (Path(home) / FILE).rename(folder / FILE)
    return folder / FILE


def _packages() -> list[str]:
    """Return the packages that may have tables in it, Airflow and its providers, with their versions."""
    found = {(package.name, package.version) for package in distributions()}
    return sorted(f"{name}=={version}" for name, version in found if name.startswith("apache-airflow"))


def _migrate(home: Path) -> None:
    """Let Airflow make its database in a new home. It has no secrets: the key that encrypts them is another file."""
    # Nothing of this project runs in it, and its coverage would take half as long again.
    dropped = ("AIRFLOW", "COVERAGE_PROCESS_CONFIG")
    environment = {name: value for name, value in os.environ.items() if not name.startswith(dropped)}
    environment |= {"AIRFLOW_HOME": str(home), "AIRFLOW__CORE__LOAD_EXAMPLES": "False"}
    migrate = [sys.executable, "-m", "airflow", "db", "migrate"]
    done = subprocess.run(migrate, env=environment, capture_output=True, text=True, timeout=DEADLINE_S)
    assert done.returncode == 0, done.stderr
    # Only the file is copied: nothing may be left in the log that SQLite writes ahead of it.
    with closing(sqlite3.connect(home / FILE)) as database:
        database.execute("PRAGMA wal_checkpoint(TRUNCATE)")
