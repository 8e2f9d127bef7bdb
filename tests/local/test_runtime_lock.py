"""What the scoring runtime needs is installed in the versions and with the hashes of its lock."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from controlled_rollout.image.builders.uv import find_uv
from controlled_rollout.image.scoring_runtime import install_command, runtime_folder

LOCK = f"lock-{sys.version_info.major}.{sys.version_info.minor}.txt"
PIN = re.compile(r"^([a-z0-9][a-z0-9._-]*)==(\S+)", re.MULTILINE)


@pytest.fixture
def environment(tmp_path: Path) -> Path:
    subprocess.run([find_uv(), "venv", "--quiet", "--python", sys.executable, tmp_path / "environment"], check=True)
    return tmp_path / "environment"


def install(environment: Path, requirements: str, *, locks: Path | None = None) -> "subprocess.CompletedProcess[str]":
    file = environment.parent / "requirements.txt"
    file.write_text(requirements)
    command = install_command(find_uv(), environment, file)
    return subprocess.run([*command[:-1], str(locks or command[-1])], capture_output=True, text=True)


def installed(environment: Path) -> dict[str, str]:
    command = [find_uv(), "pip", "freeze", "--python", str(environment / "bin" / "python")]
    return dict(PIN.findall(subprocess.run(command, capture_output=True, text=True, check=True).stdout))


def locked() -> dict[str, str]:
    return dict(PIN.findall((runtime_folder() / LOCK).read_text()))


def test_what_an_environment_does_not_bring_itself_is_exactly_what_is_locked(environment: Path) -> None:
    done = install(environment, "six==1.17.0\n")

    assert done.returncode == 0, done.stderr
    assert {name: version for name, version in installed(environment).items() if name != "six"} == {
        name: version for name, version in locked().items() if name != "six"
    }


def test_what_an_environment_brings_itself_is_solved_as_it_asks_and_the_rest_stays_locked(environment: Path) -> None:
    done = install(environment, "idna==3.9\nurllib3<2.5\n")

    assert done.returncode == 0, done.stderr
    assert "as the environment brings them itself: idna==" in done.stdout
    packages = installed(environment)
    assert packages["idna"] == "3.9" != locked()["idna"]
    assert {name for name, version in locked().items() if packages[name] != version} == {"idna", "urllib3"}
    assert not (environment / "solving").exists()


def test_a_package_that_has_another_content_than_the_locked_one_is_refused(environment: Path, tmp_path: Path) -> None:
    locks = tmp_path / "locks"
    locks.mkdir()
    text = (runtime_folder() / LOCK).read_text()
    (locks / LOCK).write_text(re.sub(r"(?m)^(certifi==\S+ \\\n +--hash=sha256:)[0-9a-f]{8}", r"\g<1>00000000", text))

    done = install(environment, "", locks=locks)

    assert done.returncode not in (0, 84)
    assert "Hash mismatch for `certifi" in done.stdout + done.stderr


def test_an_environment_that_cannot_be_solved_says_so_without_the_lock(environment: Path) -> None:
    done = install(environment, "six==0.0.0.1\n")

    assert done.returncode not in (0, 84)
    assert "no version of six==0.0.0.1" in done.stdout + done.stderr


def test_a_python_that_the_runtime_is_not_locked_for_is_refused(environment: Path, tmp_path: Path) -> None:
    (tmp_path / "locks").mkdir()
    shutil.copy(runtime_folder() / LOCK, tmp_path / "locks" / "lock-3.1.txt")

    done = install(environment, "", locks=tmp_path / "locks")

    assert done.returncode == 84
    assert "not locked for Python 3." in done.stdout
