"""The note of a look on a real API server, which dates it by its own clock as well."""

from datetime import UTC, datetime, timedelta
from pathlib import Path

from controlled_rollout.cluster.api import Api
from controlled_rollout.target.kubernetes.look_notes import read_look_note, write_look_note
from controlled_rollout.target.kubernetes.provisioning import apply_root
from tests.cluster.lab import Lab
from tests.cluster.sandbox import create_sandbox


async def test_a_look_by_a_clock_that_is_wrong_has_the_time_at_which_the_api_server_stored_it(
    lab: Lab, namespace: str, tmp_path: Path
) -> None:
    workspace = create_sandbox(lab, namespace, {}, tmp_path).workspace
    async with Api.open(workspace) as api:
        await apply_root(api, workspace, "digits")
        for wrong_by in (timedelta(hours=-3), timedelta(hours=3)):
            begin = datetime.now(UTC).replace(microsecond=0)
            await write_look_note(api, namespace, "digits", "v2a", begin + wrong_by)
            note = await read_look_note(api, namespace, "digits")
            assert note is not None and begin <= note.at <= datetime.now(UTC)
        right = datetime.now(UTC)
        await write_look_note(api, namespace, "digits", "v2a", right)
        note = await read_look_note(api, namespace, "digits")
        assert note is not None and note.at == right
