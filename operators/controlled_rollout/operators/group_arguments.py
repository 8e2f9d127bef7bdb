"""What a task group has to know when the DAG is parsed: the arguments that decide which tasks it has, and the DAG."""

from collections.abc import Mapping
from datetime import timedelta
from typing import Any

from airflow.sdk import DAG

from controlled_rollout.arguments import check_choice
from controlled_rollout.checks.plan import looks_too_rarely
from controlled_rollout.duration import parse_duration
from controlled_rollout.operators.image_build import MODEL_KEY, BuildImageOperator
from controlled_rollout.rollout import OnSilence

__all__ = ["check_fixed_arguments", "check_looks_in_time", "check_run_has_no_timeout", "model_of"]

WHY = "it is read when the DAG is parsed, so it can be no template, no other task's result and not mapped"


def check_fixed_arguments(*, flags: Mapping[str, Any], mappings: Mapping[str, Any], asks: bool) -> None:
    """Raise ValueError for an argument that a task group cannot read when the DAG is parsed.

    A template would count as yes, whatever it renders to.

    Args:
        flags: Arguments that have to be True or False, by name.
        mappings: Arguments that have to be mappings, or None, by name.
        asks: Whether a task of the group may ask a person.

    Raises:
        ValueError: One has another type; or there are settings for questions, and nobody is asked.
    """
    for name, value in flags.items():
        if not isinstance(value, bool):
            raise ValueError(f"{name}={value!r}: give True or False; {WHY}")
    for name, value in mappings.items():
        if value is not None and not isinstance(value, Mapping):
            raise ValueError(f"{name}={value!r}: give a mapping, whose values may be templates; {WHY}")
    if mappings.get("approval_settings") and not asks:
        raise ValueError(
            "approval_settings were given, but no task of this rollout asks a person: give approval=True or "
            "on_deadline='ask' as well, or leave them out"
        )


def check_run_has_no_timeout(dag: DAG) -> None:
    """Raise ValueError if Airflow would end the DAG's runs after a time, with all of their tasks.

    Raises:
        ValueError: It would.
    """
    if dag.dagrun_timeout is not None:
        raise ValueError(
            f"the DAG has dagrun_timeout={dag.dagrun_timeout}, which would end a rollout without its roll-back and "
            "leave the treatment its traffic: leave it out; decision_timeout and on_deadline say how long a gate waits"
        )


def check_looks_in_time(on_silence: str, silence: timedelta | float | str, interval: timedelta | float | str) -> None:
    """Raise ValueError if the looks of the gates come so rarely that their treatment would be taken back between two.

    What is a template is read by the rollout's first task.

    Args:
        on_silence: What happens when nobody has looked for `silence`.
        silence: How long that is.
        interval: The time between two looks.

    Raises:
        ValueError: They do; or `on_silence` is no choice.
    """
    check_choice("on_silence", on_silence, *OnSilence)
    try:
        times = parse_duration(silence), parse_duration(interval)
    except ValueError:
        return
    if on_silence == OnSilence.ROLL_BACK and (problem := looks_too_rarely(*times)):
        raise ValueError(problem)


def model_of(image: Any, mlflow_alias: str | None, mlflow_model: str | None) -> str | None:
    """Return which model of MLflow's registry gets the alias: the one that is given, else a template for the image's.

    Args:
        image: The image, perhaps the output of a task.
        mlflow_alias: The alias; None for none.
        mlflow_model: The model, if it is given.

    Raises:
        ValueError: There is an alias, and neither is the model given nor does a task of this package build the image.
    """
    if mlflow_alias is None or mlflow_model is not None:
        return mlflow_model
    builder = getattr(image, "operator", None)
    if not isinstance(builder, BuildImageOperator):
        raise ValueError(
            f"mlflow_alias={mlflow_alias!r} was given, and which model gets it is not known: give "
            "mlflow_model='models:/<name>/<version>', or the output of a BuildImageOperator as image"
        )
    return f"{{{{ ti.xcom_pull(task_ids={builder.task_id!r}, key={MODEL_KEY!r}) or '' }}}}"
