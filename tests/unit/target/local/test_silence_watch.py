"""The supervisor's checks whether somebody looks after rollouts go on, whatever happens to one of them."""

import errno
from pathlib import Path

import pytest

from controlled_rollout.target.local import silence_watch
from controlled_rollout.target.local.revisions import RevisionStore
from controlled_rollout.target.local.silence_watch import SilenceWatch
from controlled_rollout.workspace import Workspace
from tests.polling import until


class Unlisted(RevisionStore):
    """Revisions whose folder cannot be listed."""

    asked = 0

    def endpoints(self) -> list[str]:
        self.asked += 1
        raise OSError(errno.EMFILE, "too many open files")


async def test_a_folder_that_cannot_be_listed_ends_neither_the_checks_nor_the_supervisors_stop(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(silence_watch, "INTERVAL_S", 0.01)
    revisions = Unlisted(tmp_path)
    watch = SilenceWatch(Workspace.local(tmp_path), revisions, runtime=tmp_path, credentials={})
    watch.start()

    await until(lambda: revisions.asked > 2, "it checks again and again", timeout_s=60)
    await watch.stop()
