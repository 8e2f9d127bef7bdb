"""Damaged files of one endpoint: it is closed and named, everything else goes on, and the repair takes effect."""

import asyncio
import os
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from controlled_rollout.cli import main
from controlled_rollout.endpoint import Endpoint
from controlled_rollout.errors import DamagedFileError
from controlled_rollout.target.local import supervisor
from controlled_rollout.target.waiting import wait_until_without_traffic
from tests.local.local_target_lab import DEADLINE, Lab, is_folder_free, running
from tests.polling import until


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[Lab]:
    with running(tmp_path) as lab:
        yield lab


async def status_of(lab: Lab, name: str, key: str | None) -> int:
    """Return the HTTP status of one request to an endpoint, on a connection of its own."""
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    async with httpx.AsyncClient(timeout=20, trust_env=False) as caller:
        url = f"{lab.state.router_url}/api/v1/service/{name}/score"
        return (await caller.post(url, json={}, headers=headers)).status_code


async def closed(lab: Lab, key: str) -> None:
    """Wait until beta-x is closed: the supervisor looks at the files every second."""

    async def is_closed() -> bool:
        return {await status_of(lab, "beta-x", who) for who in (key, None, "wrong")} == {503}

    await until(is_closed, "beta-x is closed", timeout_s=10)


async def test_a_damaged_endpoint_is_closed_while_the_others_go_on_and_opens_once_it_is_repaired(
    lab: Lab, capsys: pytest.CaptureFixture[str]
) -> None:
    both = Endpoint(name="alpha").create_version("one", image=await lab.image())
    both = both.create_version("two", image=await lab.image("second"), traffic_percentile=50.0)
    alpha, _ = await lab.serve(both)
    beta, _ = await lab.serve(both.model_copy(update={"name": "beta-x"}))
    keys, alpha_key = await lab.target.keys("beta-x"), (await lab.target.keys("alpha")).primary
    folder = lab.workspace.endpoints_folder / "beta-x"

    (folder / "keys.json").unlink()
    await closed(lab, keys.primary)

    status = await lab.target.status("beta-x")
    assert str(folder / "keys.json") in str(status.trouble)
    assert status.served_revision == 0
    alpha, rolled_back = await lab.serve(alpha.shift("two", 0))
    assert rolled_back.weight_ppm == {"one": 1_000_000}
    assert await status_of(lab, "alpha", alpha_key) == 200
    # A roll-back of the closed endpoint itself is done once it is stored: nobody gets traffic there.
    beta = await lab.apply(beta.shift("two", 0))
    await wait_until_without_traffic(lab.target, "beta-x", "two", beta.revision, timeout=DEADLINE)

    renewed = await lab.target.regenerate_key("beta-x", "primary")

    answers = [await status_of(lab, "beta-x", key) for key in (renewed.primary, renewed.secondary)]
    assert answers == [200, 200]
    assert [await status_of(lab, "beta-x", key) for key in (keys.primary, keys.secondary, None)] == [401, 401, 401]

    revision = folder / "revisions" / f"{beta.revision:08d}.json"
    content = revision.read_bytes()
    revision.write_bytes(content[: len(content) // 2])
    await closed(lab, renewed.primary)
    with pytest.raises(DamagedFileError, match=revision.name):
        await lab.target.endpoint("beta-x")
    await lab.serve(alpha.shift("two", 25))

    # The next start leaves out the damaged endpoint only, and the status of all endpoints names the file.
    assert await asyncio.to_thread(supervisor.stop_workspace, lab.workspace) == 0
    assert await asyncio.to_thread(supervisor.start_workspace, lab.workspace, port=0, detach=True) == 0
    assert str(revision) in capsys.readouterr().out
    assert await status_of(lab, "alpha", alpha_key) == 200
    await closed(lab, renewed.primary)
    assert await asyncio.to_thread(main, ["status", "--workspace", _settings(lab)]) == 0
    printed = capsys.readouterr().out
    assert str(revision) in printed
    assert "alpha  http" in printed

    revision.write_bytes(content)

    async def is_open() -> bool:
        return await status_of(lab, "beta-x", renewed.primary) == 200

    await until(is_open, "beta-x is open again", timeout_s=20)
    assert (await lab.target.status("beta-x")).trouble is None


def _settings(lab: Lab) -> str:
    """Return the path of a workspace file that leads to the lab."""
    file = lab.folder / "workspace.yaml"
    file.write_text(f"target: local\nroot: {lab.workspace.root}\n")
    return str(file)


async def test_a_key_is_revoked_when_the_command_has_returned(lab: Lab) -> None:
    await lab.serve(Endpoint(name="alpha").create_version("one", image=await lab.image()))

    for _ in range(5):
        revoked = (await lab.target.keys("alpha")).primary
        renewed = await lab.target.regenerate_key("alpha", "primary")

        answers = [await status_of(lab, "alpha", key) for key in (revoked, renewed.primary, renewed.secondary)]
        assert answers == [401, 200, 200]


async def test_the_file_by_which_a_running_workspace_is_found_is_written_again(lab: Lab) -> None:
    endpoint, _ = await lab.serve(Endpoint(name="alpha").create_version("one", image=await lab.image()))
    file = lab.workspace.state_file
    content = file.read_bytes()

    def make_a_pipe() -> None:
        file.unlink()
        os.mkfifo(file)

    for damage in (lambda: file.write_text("{"), lambda: file.write_bytes(content[:-9]), file.unlink, make_a_pipe):
        damage()

        async def is_whole() -> bool:
            return file.is_file() and file.read_bytes() == content

        await until(is_whole, "the file of the state is as it was", timeout_s=20)
    assert (await lab.target.status("alpha")).served_revision == endpoint.revision


async def test_a_running_workspace_whose_lock_is_deleted_locks_its_folder_again(lab: Lab) -> None:
    (lab.workspace.root / "lock").unlink()

    await until(lambda: (lab.workspace.root / "lock").exists(), "the lock is there again", timeout_s=20)
    # A moment between the file and its lock is left to whoever makes it.
    await until(lambda: not is_folder_free(lab.workspace), "it is locked", timeout_s=20)
