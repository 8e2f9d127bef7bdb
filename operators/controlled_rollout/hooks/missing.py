"""Tells a connection that does not exist from one that nobody could read: Airflow says of both that it is not defined.

A missing default connection means the local workspace, and a missing Kubernetes connection the cluster of the own pod.
While a secrets backend or Airflow's API server is away neither must be taken for what the connection would have said.
"""

import asyncio
from collections.abc import Sequence
from typing import Any

from controlled_rollout.errors import TargetUnavailableError

__all__ = ["acheck_is_missing", "can_ask_asynchronously", "check_is_missing"]


def check_is_missing(conn_id: str) -> None:
    """Return if every secrets backend says that it has no such connection; raise if one could not say.

    Raises:
        TargetUnavailableError: A backend does not answer, or has the connection after all: a later try may read it.
    """
    for backend in _backends():
        try:
            answer = (
                _api_server().send(_connection_request(conn_id))
                if _asks_api_server(backend)
                else backend.get_connection(conn_id)
            )
        except Exception as error:
            raise _unreadable_error(conn_id, backend, error) from error
        _check_answer(conn_id, backend, answer)


def can_ask_asynchronously() -> bool:
    """Return whether Airflow can be asked without blocking; `dag.test()` runs triggers where it can not."""
    from airflow.sdk.execution_time import task_runner

    comms = getattr(task_runner, "SUPERVISOR_COMMS", None)
    return comms is None or hasattr(comms, "asend")


async def acheck_is_missing(conn_id: str) -> None:
    """Like `check_is_missing`, but does not block the triggerer's event loop.

    Raises:
        TargetUnavailableError: A backend does not answer, or has the connection after all: a later try may read it.
    """
    for backend in _backends():
        try:
            if _asks_api_server(backend):
                answer = await _api_server().asend(_connection_request(conn_id))
            else:
                answer = await asyncio.to_thread(backend.get_connection, conn_id)
        except Exception as error:
            raise _unreadable_error(conn_id, backend, error) from error
        _check_answer(conn_id, backend, answer)


def _backends() -> Sequence[Any]:
    """Return the secrets backends that Airflow asks in this process, in its order."""
    from airflow.sdk.execution_time.supervisor import ensure_secrets_backend_loaded

    return ensure_secrets_backend_loaded()


def _asks_api_server(backend: Any) -> bool:
    """Return whether a backend passes on what the API server says: it takes every error for a missing connection."""
    from airflow.sdk.execution_time.secrets.execution_api import ExecutionAPISecretsBackend

    return isinstance(backend, ExecutionAPISecretsBackend)


def _api_server() -> Any:
    """Return what asks Airflow's API server for this task or trigger."""
    from airflow.sdk.execution_time import task_runner

    return task_runner.SUPERVISOR_COMMS


def _connection_request(conn_id: str) -> Any:
    """Return the request for a connection."""
    from airflow.sdk.execution_time.comms import GetConnection

    return GetConnection(conn_id=conn_id)


def _check_answer(conn_id: str, backend: Any, answer: Any) -> None:
    """Raise TargetUnavailableError unless a backend has answered that there is no such connection."""
    from airflow.sdk.exceptions import ErrorType
    from airflow.sdk.execution_time.comms import ErrorResponse

    if answer is None or (isinstance(answer, ErrorResponse) and answer.error is ErrorType.CONNECTION_NOT_FOUND):
        return
    if isinstance(answer, ErrorResponse):
        raise _unreadable_error(conn_id, backend, f"{answer.error.value}: {answer.detail}")
    raise _unreadable_error(conn_id, backend, "it did not have the connection a moment ago, and has it now")


def _unreadable_error(conn_id: str, backend: Any, problem: object) -> TargetUnavailableError:
    """Return the error for a connection of which nobody knows whether it exists."""
    kind = type(problem).__name__ if isinstance(problem, Exception) else ""
    return TargetUnavailableError(
        f"the connection {conn_id!r} was asked for and cannot be read: {type(backend).__name__} does not say whether "
        f"it exists ({': '.join(filter(None, (kind, str(problem))))}); no other target is used in its place: make that "
        "secrets backend available again"
    )
