"""How a task group creates its tasks: so that no `default_args` change what the rollout rests on."""

import inspect
from collections.abc import Mapping
from datetime import timedelta
from typing import Any, Final, TypeVar

from airflow.sdk import BaseOperator, TriggerRule

from controlled_rollout.duration import parse_duration

__all__ = ["FIXED", "create_task", "execution_timeout_above", "own_defaults"]

Task = TypeVar("Task", bound=BaseOperator)

# Arguments of every task but the first, which no `default_args` replace: a gate or a roll-back that waits for an
# earlier run would leave a treatment its share. `depends_on_past` keeps the first task waiting.
FIXED: Final[dict[str, Any]] = {"depends_on_past": False, "wait_for_downstream": False, "do_xcom_push": True}
# What a task that goes back needs beyond its time-out, such as for Airflow's own start of it.
MARGIN: Final = timedelta(minutes=10)


def create_task(
    operator: type[Task],
    task_id: str,
    given: Mapping[str, Any] | None = None,
    /,
    *,
    trigger_rule: TriggerRule = TriggerRule.ALL_SUCCESS,
    **arguments: Any,
) -> Task:
    """Create a task of the group, so that no `default_args` change what the rollout rests on.

    Args:
        operator: Its class.
        task_id: Its name in the group.
        given: Further arguments, which the DAG's author has given for it.
        trigger_rule: When it runs.
        **arguments: Its other arguments.

    Raises:
        ValueError: `given` has an argument that the group sets itself.
    """
    own = {**FIXED, **arguments, "task_id": task_id, "trigger_rule": trigger_rule}
    if taken := sorted(own.keys() & (given or {}).keys()):
        raise ValueError(f"{', '.join(taken)} was given to the task {task_id!r} of a rollout, which sets it itself")
    return operator(**{**own_defaults(operator), **(given or {}), **own})


def own_defaults(operator: type[BaseOperator]) -> dict[str, Any]:
    """Return the default values of the arguments that this package has added to Airflow's for an operator.

    Given as arguments they keep away `default_args` of the same name that are meant for other operators, such as
    `timeout` or `version`.
    """
    defaults: dict[str, Any] = {}
    for base in operator.__mro__:
        if base.__module__.startswith("controlled_rollout.") and "__init__" in vars(base):
            for name, parameter in inspect.signature(vars(base)["__init__"]).parameters.items():
                if parameter.kind is parameter.KEYWORD_ONLY and parameter.default is not parameter.empty:
                    defaults.setdefault(name, parameter.default)
    return defaults


def execution_timeout_above(timeout: timedelta | float | str) -> timedelta | None:
    """Return an `execution_timeout` that leaves a task all of its own time-out; None if that is a template."""
    try:
        return parse_duration(timeout) + MARGIN
    except ValueError:
        return None
