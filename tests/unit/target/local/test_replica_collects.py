"""A replica that cannot collect serves all the same."""

from pathlib import Path

import pytest

from controlled_rollout.collection_settings import Collection
from controlled_rollout.endpoint import Version
from controlled_rollout.image import ImageReference, LocalImage
from controlled_rollout.target.local import replica as replica_module
from controlled_rollout.target.local.log_file import LogFile
from controlled_rollout.target.local.replica import LaunchSpec, Replica
from tests.polling import until

# Prints its environment instead of serving.
ENVIRONMENT = "#!/bin/sh\nenv\n"


@pytest.mark.parametrize("full", [True, False])
async def test_replica_on_a_full_disk_starts_without_capture_and_its_log_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, full: bool
) -> None:
    def no_space(*arguments: object) -> dict[str, str]:
        raise OSError(28, "No space left on device")

    if full:
        monkeypatch.setattr(replica_module, "prepare_spool", no_space)
    python = tmp_path / "python"
    python.write_text(ENVIRONMENT)
    python.chmod(0o700)
    spec = LaunchSpec(
        image=LocalImage(ImageReference("local/digits", "0"), tmp_path, tmp_path, "score.py", python, "e"),
        image_variables={},
        worker_count=1,
        concurrency=1,
        scoring_timeout_ms=1_000,
        max_wait_ms=500,
        environment_variables={},
        secrets_folder=tmp_path,
        collection=Collection(),
    )
    log = LogFile(tmp_path / "replica.log")
    replica = Replica(
        "blue-1",
        spec,
        Version(name="blue"),
        runtime=tmp_path,
        log=log,
        spools_folder=tmp_path / "spools" / "digits" / "blue",
        on_change=lambda: None,
    )
    try:
        await until(lambda: "exited with code 0" in "\n".join(log.tail(100)), "it has been started")
    finally:
        await replica.stop()

    lines = log.tail(100)
    assert any("collects nothing until it starts again: [Errno 28] No space" in line for line in lines) == full
    assert any(line.startswith("CAPTURE_SPOOL=") for line in lines) != full
    assert bool(list((tmp_path / "spools").rglob("ended"))) != full
