import json
from pathlib import Path

import pytest

from controlled_rollout.collection_settings import Collection
from controlled_rollout.environment_variables import SecretReference
from controlled_rollout.errors import WorkspaceError
from controlled_rollout.target.local import secret_files
from controlled_rollout.target.local.spools import end_spools, prepare_spool

SALT = SecretReference(secret="data", key="salt")


def test_replica_is_told_what_to_append_and_the_collector_what_it_may_keep(tmp_path: Path) -> None:
    secret_files.store(tmp_path / "secrets", "data", {"salt": "a secret"})
    collection = Collection(keep=("age", "name"), mask=("age",), hash=("name",), salt=SALT, share=0.25)
    spool = tmp_path / "spools" / "digits" / "blue" / "blue-1-0a1b2c3d"

    variables = prepare_spool(spool, collection, tmp_path / "secrets")

    assert variables == {
        "CAPTURE_SPOOL": str(spool),
        "CAPTURE_SHARE": "0.25",
        "CAPTURE_MAX_BODY_BYTES": "1000000",
        "CAPTURE_SPOOL_BYTES": "256000000",
        "CAPTURE_ENDPOINT": "digits",
        "CAPTURE_VERSION": "blue",
        "CAPTURE_REPLICA": "blue-1-0a1b2c3d",
    }
    assert json.loads((spool / "spool.json").read_text()) == {
        "endpoint": "digits",
        "version": "blue",
        "replica": "blue-1-0a1b2c3d",
        "layout": "parquet",
        "keep": ["age", "name"],
        "mask": ["age"],
        "hash": ["name"],
        "salt_file": str(spool / "salt"),
        "subscription": "default",
        "resource_group": "default",
        "workspace": "default",
    }
    assert (spool / "salt").read_text() == "a secret"
    assert [oct((spool / name).stat().st_mode & 0o777) for name in ("", "salt", "spool.json")] == [
        "0o700",
        "0o600",
        "0o600",
    ]


def test_replica_whose_salt_is_gone_is_refused_and_one_without_salt_needs_none(tmp_path: Path) -> None:
    spool = tmp_path / "spools" / "digits" / "blue" / "blue-1-0a1b2c3d"
    salted = Collection(hash=("name",), salt=SALT)
    with pytest.raises(WorkspaceError, match="'data' with the key 'salt' is not in"):
        prepare_spool(spool, salted, tmp_path / "secrets")
    assert not spool.exists()

    prepare_spool(spool, Collection(), tmp_path / "secrets")

    assert json.loads((spool / "spool.json").read_text())["salt_file"] is None
    assert not (spool / "salt").exists()


def test_spools_of_ended_replicas_are_marked_for_the_collector(tmp_path: Path) -> None:
    end_spools(tmp_path / "spools")
    spools = [tmp_path / "spools" / "digits" / "blue" / name for name in ("blue-1-00000000", "blue-2-11111111")]
    for spool in spools:
        prepare_spool(spool, Collection(), tmp_path / "secrets")
    end_spools(spools[0])
    assert [(spool / "ended").exists() for spool in spools] == [True, False]
    end_spools(tmp_path / "spools")
    assert [(spool / "ended").exists() for spool in spools] == [True, True]
