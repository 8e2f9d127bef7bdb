"""The exit code of every command that listens on a port, when the port is in use."""

import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest


@pytest.fixture
def port_in_use() -> Iterator[str]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield str(server.getsockname()[1])


@pytest.mark.parametrize("command", ["local up --foreground", "score", "telemetry-store"])
def test_a_port_in_use_is_exit_code_2_with_the_port_and_what_to_do(
    command: str, port_in_use: str, tmp_path: Path
) -> None:
    options = {
        "local up --foreground": ["--root", str(tmp_path)],
        "score": [str(tmp_path)],
        "telemetry-store": ["--data", str(tmp_path)],
    }[command]

    # In a process of its own: the supervisor in the foreground takes the place of the command.
    words = [sys.executable, "-m", "controlled_rollout.cli", *command.split(), "--port", port_in_use, *options]
    ended = subprocess.run(words, capture_output=True, text=True, timeout=120)

    output = ended.stdout + ended.stderr
    assert ended.returncode == 2, output
    assert f"port {port_in_use} on 127.0.0.1 cannot be used: Address already in use" in output
    assert "hoose another" in output
