"""Connections that environment variables name become secrets of the target."""

from typing import Any

import pytest
from airflow.sdk import Connection
from airflow.sdk.exceptions import AirflowNotFoundException
from airflow.sdk.log import mask_secret

from controlled_rollout.environment_variables import check_secret
from controlled_rollout.errors import ArgumentError
from controlled_rollout.hooks.connection_secrets import secret_name, with_connections
from controlled_rollout.version import Version

STORE = Connection(
    conn_id="Feature_Store", conn_type="http", login="ada", password="p4ssw0rd-of-store", extra='{"token": "t0ken-x"}'
)


def connection(conn_id: str) -> Connection:
    if conn_id != STORE.conn_id:
        raise AirflowNotFoundException(f"{conn_id} isn't defined")
    return STORE


def settings(**variables: Any) -> dict[str, Any]:
    return {"cpu_cores": 0.5, "environment_variables": variables}


def test_a_connections_fields_become_keys_of_one_secret_and_the_settings_have_no_value() -> None:
    given = settings(
        THRESHOLD="0.7",
        PASSWORD={"connection": "Feature_Store", "field": "password"},
        TOKEN={"connection": "Feature_Store", "field": "extra.token"},
        OTHER={"secret": "others", "key": "token"},
    )

    replaced, secrets = with_connections(given, connection)

    name = secret_name("Feature_Store")
    assert secrets == {name: {"password": "p4ssw0rd-of-store", "extra.token": "t0ken-x"}}
    assert "p4ssw0rd-of-store" not in str(replaced)
    assert replaced["cpu_cores"] == 0.5
    version = Version(name="one", **replaced)
    assert version.model_dump()["environment_variables"] == {
        "THRESHOLD": "0.7",
        "PASSWORD": {"secret": name, "key": "password"},
        "TOKEN": {"secret": name, "key": "extra.token"},
        "OTHER": {"secret": "others", "key": "token"},
    }


def test_names_of_connections_that_are_no_names_of_secrets_stay_apart() -> None:
    names = {secret_name(conn_id) for conn_id in ("a_b", "a-b", "A_B", "__", "ü", "x" * 250)}

    assert len(names) == 6
    for name in names:
        check_secret(name, "password")


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({"connection": "missing", "field": "password"}, "'missing', which does not exist"),
        ({"connection": "Feature_Store", "field": "secret"}, "known are login, password"),
        ({"connection": "Feature_Store", "field": "schema"}, "which is empty"),
        ({"connection": "Feature_Store", "field": "extra.none"}, "which is empty"),
        ({"connection": "Feature_Store"}, "give connection"),
        ({"connection": "Feature_Store", "field": "login", "key": "x"}, "and no more"),
        ("Bearer m4sked-before", "that Airflow masks"),
    ],
)
def test_what_cannot_be_read_is_refused_without_a_value(value: Any, message: str) -> None:
    mask_secret("m4sked-before")

    with pytest.raises(ArgumentError, match=message) as refusal:
        with_connections(settings(NAME=value), connection)
    assert "m4sked-before" not in str(refusal.value)


def test_settings_without_variables_are_left_as_they_are() -> None:
    assert with_connections({"cpu_cores": 1}, connection) == ({"cpu_cores": 1}, {})
    assert with_connections({"environment_variables": "no mapping"}, connection)[1] == {}
