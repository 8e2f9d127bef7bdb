"""`controlled-rollout score <folder>`: build, serve, drain."""

import json
import os
import signal
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path

import pytest

from controlled_rollout.errors import ImageError, WorkspaceError
from controlled_rollout.target.local.serve_folder import serve_folder
from controlled_rollout.workspace import user_cache
from tests.local.scoring_environment import refuses_connections
from tests.polling import wait_until
from tests.ports import free_port

SCRIPT = """
import os

def init():
    global weights
    with open(os.path.join(os.environ["AZUREML_MODEL_DIR"], "weights.txt")) as file:
        weights = file.read()

def run(data):
    return {"weights": weights, "got": data, "own": os.environ["OWN"]}
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "My Model"
    folder.mkdir()
    (folder / "score.py").write_text(SCRIPT)
    (folder / "requirements.txt").write_text("")
    (tmp_path / "weights.txt").write_text("heavy")
    return folder


@pytest.fixture
def port() -> int:
    return free_port()


@pytest.mark.parametrize("stop", [signal.SIGINT, signal.SIGTERM])
def test_folder_is_served_with_its_model_until_it_is_stopped(
    folder: Path, tmp_path: Path, port: int, stop: signal.Signals
) -> None:
    program = (
        "import sys\nfrom pathlib import Path\n"
        "from controlled_rollout.image import ModelSource\n"
        "from controlled_rollout.target.local.serve_folder import serve_folder\n"
        "sys.exit(serve_folder(Path(sys.argv[1]), port=int(sys.argv[2]), cache=Path(sys.argv[3]),\n"
        "    models=[ModelSource('m', Path(sys.argv[4]))], environment_variables={'OWN': 'given'}))"
    )
    command = [sys.executable, "-c", program, str(folder), str(port), str(user_cache()), str(tmp_path / "weights.txt")]
    log = tmp_path / "log"
    # A setting of the runtime that no version has as a field.
    environment = {**os.environ, "MAX_BODY_BYTES": "10"}
    with (
        log.open("w") as stderr,
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=stderr, text=True, env=environment) as served,
    ):
        assert served.stdout
        lines: list[str] = []
        while not (lines and lines[-1].startswith("serving")):
            lines.append(served.stdout.readline())
            assert lines[-1], log.read_text()
        request = urllib.request.Request(f"http://127.0.0.1:{port}/score", b"[1]")
        with urllib.request.urlopen(request) as answer:
            scored = json.loads(answer.read())
        with pytest.raises(urllib.error.HTTPError, match="413"):
            urllib.request.urlopen(f"http://127.0.0.1:{port}/score", b"x" * 11)
        os.kill(served.pid, stop)
        code = served.wait(60)

    assert lines[-1] == f"serving {folder} at http://127.0.0.1:{port}/score (Ctrl-C stops)\n"
    assert scored == {"weights": "heavy", "got": "[1]", "own": "given"}
    assert code == 0
    assert "image: local/my-model@sha256:" in log.read_text()


def test_taken_port_is_an_error_before_anything_is_built(folder: Path, tmp_path: Path, port: int) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", port))
        other.listen()
        with pytest.raises(WorkspaceError, match=f"port {port} on 127.0.0.1 cannot be used"):
            serve_folder(folder, port=port, cache=tmp_path / "cache")

    assert not (tmp_path / "cache").exists()


def test_script_that_fails_in_init_gives_its_exit_code(
    folder: Path, tmp_path: Path, port: int, capfd: pytest.CaptureFixture[str]
) -> None:
    code = serve_folder(folder, port=port, cache=user_cache())

    assert code == 3
    output = capfd.readouterr()
    assert "FileNotFoundError" in output.err.splitlines()[-1]
    assert "Ctrl-C stops" not in output.out


def test_missing_entry_script_is_an_error(folder: Path, tmp_path: Path, port: int) -> None:
    with pytest.raises(ImageError, match=r"other\.py"):
        serve_folder(folder, port=port, cache=tmp_path / "cache", entry_script="other.py")


def test_replica_ends_when_the_command_is_killed(folder: Path, tmp_path: Path, port: int) -> None:
    program = (
        "import sys\nfrom pathlib import Path\n"
        "from controlled_rollout.target.local.serve_folder import serve_folder\n"
        "sys.exit(serve_folder(Path(sys.argv[1]), port=int(sys.argv[2]), cache=Path(sys.argv[3])))"
    )
    (folder / "score.py").write_text("def init(): pass\ndef run(data): return 1")
    command = [sys.executable, "-c", program, str(folder), str(port), str(user_cache())]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as served:
        assert served.stdout is not None
        while not served.stdout.readline().startswith("serving"):
            assert served.poll() is None
        served.kill()

        wait_until(lambda: refuses_connections(port), "nothing listens any more")
