"""Azurite, Microsoft's emulator of Azure Storage, on a port of its own; installed from npm once."""

import fcntl
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

VERSION = "3.35.0"
DEADLINE_S = 60.0
# The account that every Azurite has, with the key that its documentation names.
ACCOUNT = "devstoreaccount1"
KEY = "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw=="


def azurite_or_skip() -> Path:
    """Return the program that serves blobs, installed first if nobody has; skip the test where there is no npm."""
    npm = shutil.which("npm")
    if npm is None or shutil.which("node") is None:
        why = "Azurite needs Node and npm"
        (pytest.fail if os.environ.get("CI") == "true" else pytest.skip)(why)
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    folder = Path(base) / "controlled-rollout" / f"azurite-{VERSION}"
    program = folder / "node_modules" / ".bin" / "azurite-blob"
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not program.exists():
            quiet = ["--silent", "--no-audit", "--no-fund"]
            subprocess.run([npm, "install", *quiet, "--prefix", folder, f"azurite@{VERSION}"], check=True)
    return program


@contextmanager
def serving_blobs(folder: Path) -> Iterator[str]:
    """Serve blobs in the block and give the connection string that leads there."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    folder.mkdir(parents=True, exist_ok=True)
    where = ["--blobHost", "127.0.0.1", "--blobPort", str(port), "--location", str(folder)]
    # Clients are newer than the emulator.
    how = ["--silent", "--skipApiVersionCheck", "--disableTelemetry"]
    with (folder / "log").open("w") as log:
        process = subprocess.Popen([azurite_or_skip(), *where, *how], stdout=log, stderr=log, cwd=folder)
    try:
        end = time.monotonic() + DEADLINE_S
        while True:
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    break
            assert process.poll() is None and time.monotonic() < end, (folder / "log").read_text()
            time.sleep(0.05)
        yield (
            f"DefaultEndpointsProtocol=http;AccountName={ACCOUNT};AccountKey={KEY};"
            f"BlobEndpoint=http://127.0.0.1:{port}/{ACCOUNT};"
        )
    finally:
        process.terminate()
        process.wait()
