"""PostgreSQL, a real one, with its data in a temporary folder, on a Unix socket there."""

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.needs import skip

__all__ = ["running_postgres"]

# The database refuses to run as root.
USER = "postgres" if os.geteuid() == 0 else os.environ.get("USER", "nobody")


def _program(name: str) -> str | None:
    """Return the path of one of PostgreSQL's programs; Debian does not have them on the PATH."""
    installed = sorted(Path("/usr/lib/postgresql").glob(f"*/bin/{name}"))
    return str(installed[-1]) if installed else shutil.which(name)


@contextmanager
def running_postgres() -> Iterator[Path]:
    """Run a server; yield the folder of its socket. Users of this machine may connect, with any password or none."""
    initdb, pg_ctl = _program("initdb"), _program("pg_ctl")
    if initdb is None or pg_ctl is None:
        skip("PostgreSQL is not installed: run `make lab` (on Debian, as root)")
    # Not pytest's folder: the path of a socket may not have more than 107 bytes, and the user must get there.
    with tempfile.TemporaryDirectory(prefix="controlled-rollout-postgres-") as folder:
        as_user = ["setpriv", f"--reuid={USER}", "--clear-groups"] if os.geteuid() == 0 else []
        if as_user:
            shutil.chown(folder, USER)
        data = f"{folder}/data"

        def run(*command: str) -> None:
            done = subprocess.run(
                [*as_user, *command],
                capture_output=True,
                text=True,
                cwd=folder,
                env={"PATH": "/usr/bin:/bin", "LC_ALL": "C"},
            )
            assert done.returncode == 0, done.stdout + done.stderr

        run(initdb, "--no-sync", "--encoding=UTF8", "--auth=trust", "--username=postgres", "-D", data)
        options = f"-c listen_addresses='' -c fsync=off -c shared_buffers=8MB -k {folder}"
        run(pg_ctl, "start", "-w", "-t", "60", "-D", data, "-l", f"{folder}/log", "-o", options)
        try:
            yield Path(folder)
        finally:
            run(pg_ctl, "stop", "-w", "-m", "immediate", "-D", data)
