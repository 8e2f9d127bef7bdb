"""What has happened to a rollout, and who is to be told. Light: a DAG file imports it."""

import threading
from collections.abc import Callable, Sequence
from enum import StrEnum
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from airflow.sdk import BaseNotifier, Context

__all__ = ["EVENT_KEY", "Event", "call_each", "notifiers_of", "with_event"]

# What a task of a rollout adds to the context of its notifiers: the event, and what it knows of it.
EVENT_KEY: Final = "controlled_rollout"
# How long each notifier of a hold may take: the looks go on after that.
LONGEST_CALL_S: Final = 60.0


class Event(StrEnum):
    """What people are told."""

    ON_HOLD = "on_hold"
    PROMOTED = "promoted"
    ROLLED_BACK = "rolled_back"
    NOT_ROLLED_BACK = "not_rolled_back"
    FAILED = "failed"
    DONE = "done"
    STUCK = "stuck"


def notifiers_of(argument: str, given: Any) -> "list[BaseNotifier]":
    """Return the notifiers that an argument has as a list; raise ValueError for anything that cannot be called.

    Args:
        argument: The argument's name.
        given: One, or several.
    """
    notifiers = list(given) if isinstance(given, list | tuple) else [given]
    if not all(callable(notifier) for notifier in notifiers):
        raise ValueError(f"{argument}={given!r}: give notifiers of Airflow, such as [RolloutNotifier(…)]")
    return notifiers


def with_event(context: "Context", event: Event, reason: str = "", table: str = "") -> "Context":
    """Return a task's context with the event that its notifiers report, its reason and its claims.

    Args:
        context: The task's context, which stays as it is.
        event: What has happened.
        reason: Why, in a sentence.
        table: The claims of a look, as lines of text.
    """
    known = {"event": event.value, "reason": reason, "table": table}
    return {**context, EVENT_KEY: known}  # type: ignore[typeddict-unknown-key] # Airflow's type has a fixed set


def call_each(
    notifiers: Sequence[Callable[["Context"], object]],
    context: "Context",
    log: Callable[[str], None],
    *,
    longest_s: float = LONGEST_CALL_S,
) -> None:
    """Call each notifier; one that fails, or takes too long, keeps no other from being called, and changes nothing.

    Args:
        notifiers: What to call.
        context: What they are called with.
        log: Takes a sentence about each that has failed.
        longest_s: How long each may take, in seconds; it goes on in a thread of its own.
    """
    for notifier in notifiers:
        failures: list[BaseException] = []

        def call(notifier: Callable[["Context"], object] = notifier, failures: list[BaseException] = failures) -> None:
            """Call the notifier, and keep what it raises."""
            try:
                notifier(context)
            except BaseException as error:
                failures.append(error)

        thread = threading.Thread(target=call, name="notifier", daemon=True)
        thread.start()
        thread.join(longest_s)
        if thread.is_alive():
            log(
                f"{type(notifier).__name__} has not ended within {longest_s:.0f} s, and may have told nobody: the "
                "rollout goes on"
            )
        elif failures:
            log(f"{type(notifier).__name__} could not tell people: {failures[0]}")
