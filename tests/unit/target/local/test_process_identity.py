"""A process is more than its number: who gets a signal, and who never does."""

import os
import signal
import subprocess
from collections.abc import Iterator

import pytest

from controlled_rollout.target.local.process_identity import ProcessIdentity
from tests.polling import until


@pytest.fixture
def sleeping() -> Iterator["subprocess.Popen[bytes]"]:
    with subprocess.Popen(["sleep", "60"]) as process:
        yield process
        process.kill()


def identity_of(process: "subprocess.Popen[bytes]") -> ProcessIdentity:
    identity = ProcessIdentity.of(process.pid)
    assert identity is not None
    return identity


def test_the_very_process_gets_the_signal(sleeping: "subprocess.Popen[bytes]") -> None:
    identity = identity_of(sleeping)

    assert identity.is_running()
    assert identity.send_signal(signal.SIGTERM)

    assert sleeping.wait(10) == -signal.SIGTERM
    assert not identity.is_running()
    assert not identity.send_signal(signal.SIGTERM)


@pytest.mark.parametrize("other", [{"started": 1}, {"boot": "another boot"}, {"command": "controlled-rollout local"}])
def test_another_process_with_the_same_number_gets_no_signal(
    sleeping: "subprocess.Popen[bytes]", other: dict[str, object]
) -> None:
    identity = identity_of(sleeping).model_copy(update=other)

    assert not identity.is_running()
    assert not identity.send_signal(signal.SIGKILL)

    assert sleeping.poll() is None


def test_a_process_that_has_ended_and_is_not_waited_for_does_not_run() -> None:
    process = subprocess.Popen(["true"])
    identity = identity_of(process)
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)

    assert not identity.is_running()

    process.wait()


async def test_a_stopped_process_is_suspended(sleeping: "subprocess.Popen[bytes]") -> None:
    identity = identity_of(sleeping)
    assert not identity.is_suspended()

    sleeping.send_signal(signal.SIGSTOP)

    await until(identity.is_suspended, "the process is suspended")


def test_a_number_without_a_process_has_no_identity() -> None:
    assert ProcessIdentity.of(2**22 + 1) is None
