"""Azurite, Microsoft's emulator of Azure Storage, on a port of its own; installed from npm once."""

import fcntl
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.needs import skip

if TYPE_CHECKING:
    from azure.storage.blob import BlobServiceClient

VERSION = "3.35.0"
DEADLINE_S = 60.0
# The container that the tests of one account share.
CONTAINER = "rollouts"
# The account that every Azurite has, with the key that its documentation names.
ACCOUNT = "devstoreaccount1"
KEY = "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw=="


def why_no_azurite() -> str | None:
    """Return why Azurite cannot be installed on this machine; None where it can."""
    missing = [name for name in ("node", "npm") if not shutil.which(name)]
    return f"Azurite takes {' and '.join(missing)}, not installed here" if missing else None


def install_azurite() -> None:
    """Install Azurite from npm, unless it is there."""
    with _locked():
        if not _program().exists():
            sys.stderr.write(f"lab: installing Azurite {VERSION} from npm\n")
            options = ["--silent", "--no-audit", "--no-fund", "--prefix", str(_folder())]
            subprocess.run(["npm", "install", *options, f"azurite@{VERSION}"], check=True)


def _folder() -> Path:
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "controlled-rollout" / f"azurite-{VERSION}"


def _program() -> Path:
    return _folder() / "node_modules" / ".bin" / "azurite-blob"


@contextmanager
def _locked() -> Iterator[None]:
    _folder().mkdir(parents=True, exist_ok=True)
    with (_folder() / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


class Azurite:
    """An emulator on a port of its own, which can be away for a while: what it keeps stays in its folder.

    Args:
        folder: For its files; it is made.
        host: Where it listens.
        certificate: Its certificate and key, for https.
    """

    def __init__(self, folder: Path, host: str = "127.0.0.1", certificate: tuple[Path, Path] | None = None) -> None:
        if why_not := why_no_azurite() or (None if _program().exists() else "Azurite is not installed: run `make lab`"):
            skip(why_not)
        with socket.socket() as probe:
            probe.bind((host, 0))
            self._port = probe.getsockname()[1]
        folder.mkdir(parents=True, exist_ok=True)
        self._folder, self._host, self._certificate = folder, host, certificate
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def address(self) -> str:
        """The address of its account."""
        return f"{'https' if self._certificate else 'http'}://{self._host}:{self._port}/{ACCOUNT}"

    @property
    def connection_string(self) -> str:
        """What signs in to it."""
        protocol = self.address.partition(":")[0]
        return (
            f"DefaultEndpointsProtocol={protocol};AccountName={ACCOUNT};AccountKey={KEY};BlobEndpoint={self.address};"
        )

    def start(self) -> None:
        """Start it, and wait until it answers."""
        where = ["--blobHost", self._host, "--blobPort", str(self._port), "--location", str(self._folder)]
        # The clients speak a newer version of the protocol than the emulator knows.
        how = ["--silent", "--skipApiVersionCheck", "--disableTelemetry"]
        if self._certificate:
            certificate, key = self._certificate
            how += ["--cert", str(certificate), "--key", str(key)]
        log_file = self._folder / "log"
        with log_file.open("a") as log:
            process = subprocess.Popen([_program(), *where, *how], stdout=log, stderr=log, cwd=self._folder)
        self._process = process
        end = time.monotonic() + DEADLINE_S
        while True:
            with socket.socket() as probe:
                if probe.connect_ex((self._host, self._port)) == 0:
                    return
            assert process.poll() is None and time.monotonic() < end, log_file.read_text()
            time.sleep(0.05)

    def stop(self) -> None:
        """End it; nothing happens if it does not run."""
        if self._process is not None:
            self._process.terminate()
            self._process.wait()
            self._process = None


@contextmanager
def serving_blobs(folder: Path) -> Iterator[str]:
    """Serve blobs in the block and give their connection string; skip the test where Azurite is not installed."""
    azurite = Azurite(folder)
    azurite.start()
    try:
        yield azurite.connection_string
    finally:
        azurite.stop()


@contextmanager
def signed_in_to_blobs(folder: Path, container: str) -> "Iterator[BlobServiceClient]":
    """Serve blobs in the block, with a container and with their credential in the environment; give a client."""
    from azure.storage.blob import BlobServiceClient

    with serving_blobs(folder) as connection_string, pytest.MonkeyPatch.context() as patch:
        patch.setenv("AZURE_STORAGE_CONNECTION_STRING", connection_string)
        with BlobServiceClient.from_connection_string(connection_string) as client:
            client.create_container(container)
            yield client
