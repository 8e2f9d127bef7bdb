"""What the tests with a real Prometheus need: the program, or a skip that says so."""

import os
import shutil
import subprocess

import pytest


@pytest.fixture(scope="session", autouse=True)
def program() -> None:
    """Skip without Prometheus; a CI run installs it, and fails if it cannot."""
    if shutil.which("prometheus"):
        return
    required = os.environ.get("CI") == "true"
    if os.geteuid() == 0 and required:
        subprocess.run(["apt-get", "update", "-qq"], check=True)
        subprocess.run(["apt-get", "install", "-y", "-qq", "--no-install-recommends", "prometheus"], check=True)
        return
    (pytest.fail if required else pytest.skip)("no tests of evidence from Prometheus: they need prometheus (Debian)")
