"""The environment variables of a version: what is taken, what is refused, and that no message shows a value."""

from pathlib import Path
from typing import Any

import pytest

from controlled_rollout.endpoint import Endpoint
from controlled_rollout.environment_variables import SecretReference, check_secret_values
from controlled_rollout.errors import DamagedFileError, EndpointError
from controlled_rollout.target import refusals
from controlled_rollout.target.kubernetes import manifests
from controlled_rollout.target.local import secret_files
from controlled_rollout.version import Version
from controlled_rollout.workspace import Workspace

IMAGE = "registry.example/digits@sha256:" + "0" * 64
WORKSPACE = Workspace.from_settings({"target": "kubernetes", "gateway": "edge/public"})
OWNER = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "root", "uid": "1"}}
TOKEN = {"secret": "feature-store", "key": "token"}


def version(**variables: Any) -> Version:
    return Version(name="one", image=IMAGE, environment_variables=variables)


def test_texts_and_references_survive_json() -> None:
    given = version(THRESHOLD="0.7", TOKEN=TOKEN, EMPTY="")

    assert given.environment_variables["TOKEN"] == SecretReference(secret="feature-store", key="token")
    assert Version.model_validate_json(given.model_dump_json()) == given


@pytest.mark.parametrize(
    ("name", "value", "reason"),
    [
        ("9LIVES", "hunter2", "not beginning with a digit"),
        ("A B", "hunter2", "use letters"),
        ("A=B", "hunter2", "use letters"),
        ("WORKER_COUNT", "2", "set the version's worker_count instead"),
        ("AML_APP_ROOT", "/", "leave it out"),
        ("PYTHONPATH", "/", "leave it out"),
        ("RETRIES", 3, "is of the type int: give a text"),
        ("DEBUG", True, "is of the type bool"),
        ("NOTHING", None, "is of the type NoneType"),
        ("A", "hunter2\0", "NUL"),
        ("A", "hunter2\ud800", "half of a surrogate pair"),
        ("MAX_BODY_BYTES", "200000000", "from 1 to 100,000,000"),
        ("MAX_BODY_BYTES", "1e6", "no whole number"),
        ("MAX_BODY_BYTES", "9" * 5000, "no whole number"),
        ("MAX_QUEUED_REQUESTS", "0", "no whole number"),
        ("AZUREML_LOG_LEVEL", "hunter2", "choose one of DEBUG, INFO"),
        ("TOKEN", {"secret": "a", "value": "hunter2"}, "has the fields secret, value"),
        ("TOKEN", {"secret": "A_B", "key": "a"}, "cannot have the name 'A_B'"),
        ("TOKEN", {"secret": "../a", "key": "a"}, "cannot have the name"),
        ("TOKEN", {"secret": "a", "key": ".."}, "cannot have the key"),
        ("TOKEN", {"secret": "controlled-rollout-digits-keys", "key": "primary"}, "endpoints' own secrets"),
        ("LONG", "hunter2" * 10_000, "may have 32,768"),
    ],
)
def test_what_cannot_be_is_refused_without_showing_a_value(name: str, value: Any, reason: str) -> None:
    with pytest.raises(EndpointError, match=reason) as refusal:
        version(**{name: value})
    assert "hunter2" not in str(refusal.value)


def test_kubernetes_gets_references_as_such_and_replaces_nothing_in_a_text() -> None:
    endpoint = Endpoint(name="digits").create_version(
        "one", image=IMAGE, environment_variables={"COST": "$(HOME) $5 $$", "TOKEN": TOKEN}
    )

    pod = manifests.deployment(endpoint, endpoint.versions["one"], WORKSPACE, owner=OWNER)["spec"]["template"]

    variables = pod["spec"]["containers"][0]["env"]
    assert {"name": "COST", "value": "$$(HOME) $$5 $$$$"} in variables
    assert {"name": "TOKEN", "valueFrom": {"secretKeyRef": {"name": "feature-store", "key": "token"}}} in variables
    assert len({variable["name"] for variable in variables}) == len(variables)


def test_only_keys_of_secrets_that_no_version_named_before_are_looked_up() -> None:
    before = Endpoint(name="digits").create_version("one", image=IMAGE, environment_variables={"TOKEN": TOKEN})
    other = {"secret": "feature-store", "key": "other"}
    after = before.create_version("two", image=IMAGE, environment_variables={"A": TOKEN, "B": other})

    assert refusals.new_references(after, before) == {SecretReference(**other): "two"}
    assert refusals.new_references(after.delete_version("two"), after) == {}


@pytest.mark.parametrize("value", ["hunter2\0", "hunter2\udc80", "hunter2" * 20_000])
def test_a_secret_takes_no_value_that_could_be_no_environment_variable(value: str) -> None:
    with pytest.raises(EndpointError, match="the key 'token' of the secret 'store'") as refusal:
        check_secret_values("store", {"token": value})
    assert "hunter2" not in str(refusal.value)


def test_a_damaged_file_of_a_secret_is_named_without_its_content(tmp_path: Path) -> None:
    reference = SecretReference(secret="store", key="token")
    for content in ("hunter2", '["hunter2"]', '{"token": 2}', '{"token": "hunter2\\u0000"}'):
        (tmp_path / "store.json").write_text(content)
        with pytest.raises(DamagedFileError, match=r"store\.json cannot be read") as failure:
            secret_files.read_value(tmp_path, reference)
        assert "hunter2" not in str(failure.value)
    secret_files.store(tmp_path / "new", "store", {"token": "x"})
    assert secret_files.read_value(tmp_path / "new", reference) == "x"
