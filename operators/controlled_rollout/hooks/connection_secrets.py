"""Makes secrets of the target from Airflow's connections that a version's environment variables name.

The endpoint's document names the secret, never the value, and the target keeps it: replicas start again without
Airflow.
"""

import hashlib
import re
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Final

from airflow.sdk.exceptions import AirflowNotFoundException
from airflow.sdk.log import redact  # type: ignore[attr-defined] # it has no __all__

from controlled_rollout.environment_variables import SECRET_KEY
from controlled_rollout.errors import ArgumentError

if TYPE_CHECKING:
    from airflow.sdk import Connection

__all__ = ["Secrets", "secret_name", "with_connections"]

# The values of secrets by key, by the secret's name.
Secrets = dict[str, dict[str, str]]

VARIABLES: Final = "environment_variables"
FIELDS: Final = ("login", "password", "host", "port", "schema", "extra", "uri")
EXTRA_PREFIX: Final = "extra."


def with_connections(
    settings: Mapping[str, Any], connection: "Callable[[str], Connection]"
) -> tuple[dict[str, Any], Secrets]:
    """Return a version's settings with references to secrets in place of those to connections, and those secrets.

    Args:
        settings: The settings of a version.
        connection: Returns the connection of an id; Airflow masks its password in logs from then on.

    Raises:
        ArgumentError: A connection does not exist or does not have the field, or a text has what Airflow masks.
    """
    variables = settings.get(VARIABLES)
    if not isinstance(variables, Mapping):
        return dict(settings), {}
    secrets: Secrets = {}
    replaced = {}
    for name, value in variables.items():
        if isinstance(value, str) and redact(value) != value:
            raise ArgumentError(
                f"{VARIABLES}.{name} has a text that Airflow masks in logs, such as a connection's password, and would "
                f"be in the endpoint's document: write {{'connection': …, 'field': …}} instead"
            )
        if not isinstance(value, Mapping) or "connection" not in value:
            replaced[name] = value
            continue
        if set(value) != {"connection", "field"} or not all(isinstance(part, str) for part in value.values()):
            raise ArgumentError(
                f"{VARIABLES}.{name} names a connection: give connection (its id) and field, both text, and no more"
            )
        conn_id, field = value["connection"], value["field"]
        secret = secret_name(conn_id)
        secrets.setdefault(secret, {})[field] = _field_value(name, conn_id, field, connection)
        replaced[name] = {"secret": secret, "key": field}
    return {**settings, VARIABLES: replaced}, secrets


def secret_name(conn_id: str) -> str:
    """Return the name of the secret for a connection; two connections never have the same."""
    readable = re.sub(r"[^a-z0-9]+", "-", conn_id.lower()).strip("-")[:40].strip("-")
    digest = hashlib.sha256(conn_id.encode()).hexdigest()[:8]
    return "-".join(part for part in ("airflow-connection", readable, digest) if part)


def _field_value(name: str, conn_id: str, field: str, connection: "Callable[[str], Connection]") -> str:
    """Return the value of a connection's field; raise ArgumentError if there is none."""
    if field not in FIELDS and not (field.startswith(EXTRA_PREFIX) and SECRET_KEY.fullmatch(field)):
        raise ArgumentError(
            f"{VARIABLES}.{name} names the field {field!r} of the connection {conn_id!r}: known are "
            f"{', '.join(FIELDS)} and {EXTRA_PREFIX}<name>"
        )
    try:
        found = connection(conn_id)
    except AirflowNotFoundException as error:
        raise ArgumentError(
            f"{VARIABLES}.{name} names the connection {conn_id!r}, which does not exist: create it, or correct the name"
        ) from error
    if field.startswith(EXTRA_PREFIX):
        value = found.extra_dejson.get(field.removeprefix(EXTRA_PREFIX))
    else:
        value = found.get_uri() if field == "uri" else getattr(found, field)
    if value in (None, ""):
        raise ArgumentError(
            f"{VARIABLES}.{name} names the field {field!r} of the connection {conn_id!r}, which is empty: fill it in, "
            "or correct the name"
        )
    return str(value)
