"""What a notification says, from the endpoint's history and the record: what happened, why, the table, links. Pure."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

from controlled_rollout.endpoint import Endpoint
from controlled_rollout.errors import EvidenceError
from controlled_rollout.gate import describe, verdict_from_dict
from controlled_rollout.notifications.event import Event
from controlled_rollout.record import Decision
from controlled_rollout.steps.new_control import judgement_before
from controlled_rollout.target.protocol import Revision
from controlled_rollout.text_table import text_table
from controlled_rollout.visible_text import visible_text

__all__ = ["RolloutMessage", "as_text", "message_about", "rollout_of_run"]

LONGEST_REASON: Final = 1_000
MOST_LINES: Final = 40
LONGEST_LINE: Final = 160
DIGEST_LETTERS: Final = 19


HEADLINES: Final = {
    Event.ON_HOLD: "{what} is on hold: promote it, or roll it back",
    Event.PROMOTED: "{what} is promoted: it is the control now",
    Event.ROLLED_BACK: "{what} is rolled back",
    Event.NOT_ROLLED_BACK: "{what} could NOT be rolled back: it may still have traffic",
    Event.FAILED: "{what}: a task of the rollout has failed",
    Event.DONE: "{what}: a task of the rollout is done",
    Event.STUCK: "{what} is still being rolled out",
}
# The steps of the record whose reason is the reason of an event, the most telling first.
REASON_STEPS: Final[dict[Event, tuple[str, ...]]] = {
    Event.ON_HOLD: ("hold",),
    Event.PROMOTED: ("promote",),
    Event.ROLLED_BACK: ("roll_back",),
    Event.STUCK: ("look", "hold", "ask"),
}


@dataclass(frozen=True, slots=True)
class RolloutMessage:
    """What people are told about one rollout.

    Attributes:
        event: What happened.
        headline: The same in a sentence, with endpoint and version.
        reason: Why, in a sentence.
        versions: The endpoint's versions: name, role, per cent of the traffic, the image's digest.
        claims: The claims of the newest look as lines of text; empty without one.
        links: Where to look further, by name.
    """

    event: Event
    headline: str
    reason: str
    versions: tuple[tuple[str, str, str, str], ...] = ()
    claims: tuple[str, ...] = ()
    links: tuple[tuple[str, str], ...] = ()


def message_about(
    event: Event,
    *,
    endpoint: str,
    version: str,
    history: Sequence[Revision] = (),
    newest_first: Iterable[Decision] = (),
    reason: str = "",
    trouble: str = "",
    table: str = "",
    links: Sequence[tuple[str, str]] = (),
) -> RolloutMessage:
    """Return what to tell people. Nothing of it is longer than a chat takes, and nothing of it acts on a terminal.

    Args:
        event: What happened.
        endpoint: The endpoint's name.
        version: The version's name; empty if it is not known.
        history: The endpoint's revisions, oldest first; empty if they cannot be read, or there is none any more.
        newest_first: The record's decisions about the version, newest first; read once.
        reason: Why, as the caller knows it; the record's word counts more for a promotion and a roll-back.
        trouble: What should have been done as well and was not, in a sentence.
        table: The claims of a look, as the caller knows them.
        links: Where to look further, by name.
    """
    decisions = list(newest_first)
    recorded = _recorded_reason(event, decisions)
    why = recorded if recorded and (not reason or event in (Event.PROMOTED, Event.ROLLED_BACK)) else reason
    sentences = filter(None, (_one_line(why or "no reason is known"), _one_line(trouble)))
    what = f"version {version} of endpoint {endpoint}" if version else f"endpoint {endpoint}"
    return RolloutMessage(
        event=event,
        headline=_one_line(HEADLINES[event].format(what=what)),
        reason=_shortened("; ".join(sentences), LONGEST_REASON),
        versions=_versions(history[-1].endpoint) if history else (),
        claims=_bounded_lines(table or _claims_text(decisions)),
        links=tuple(links),
    )


def as_text(message: RolloutMessage) -> str:
    """Return a message as plain text, for a log or a mail."""
    parts = [message.headline, f"why: {message.reason}"]
    if message.versions:
        parts += ["", text_table([("version", "role", "traffic", "image"), *message.versions], left_columns=2)]
    if message.claims:
        parts += ["", *message.claims]
    if message.links:
        parts += ["", *(f"{name}: {address}" for name, address in message.links)]
    return "\n".join(parts)


def rollout_of_run(endpoint: Endpoint, run: str) -> str | None:
    """Return the version that a run is rolling out on an endpoint; None if its rollout is over.

    Args:
        endpoint: The endpoint.
        run: The run, as `dag/run`.
    """
    rollout = endpoint.rollout
    return rollout.version if rollout is not None and rollout.is_of_run(run) else None


def _recorded_reason(event: Event, newest_first: Sequence[Decision]) -> str:
    """Return why something happened, by the record; empty if it does not say."""
    if event is Event.PROMOTED and (judged := judgement_before(newest_first)):
        return _reason_text(judged)
    for step in REASON_STEPS.get(event, ()):
        found = next((decision for decision in newest_first if decision.step == step), None)
        if found is None:
            continue
        return _reason_text(found)
    return ""


def _reason_text(decision: Decision) -> str:
    """Return a decision's reason, with its outcome or who has made it where that says more."""
    outcome = decision.outcome.replace("_", " ") if decision.outcome and decision.step in ("go_on", "look") else ""
    by = f" ({decision.who})" if decision.step in ("promote", "roll_back") else ""
    return f"{outcome}{': ' if outcome else ''}{_one_line(decision.reason)}{by}"


def _claims_text(newest_first: Sequence[Decision]) -> str:
    """Return the claims of the newest look as text; empty without one that can be read."""
    look = next((decision for decision in newest_first if decision.step == "look" and decision.verdict), None)
    try:
        return describe(verdict_from_dict(look.verdict)) if look is not None and look.verdict else ""
    except EvidenceError:
        return ""


def _versions(endpoint: Endpoint) -> tuple[tuple[str, str, str, str], ...]:
    """Return each version's name, role, per cent of the traffic, and the begin of its image's digest."""
    shares = endpoint.effective_traffic()
    return tuple(
        (name, version.type.value, f"{shares[name]:g} %", version.image.rpartition("@")[2][:DIGEST_LETTERS])
        for name, version in endpoint.versions.items()
    )


def _bounded_lines(table: str) -> tuple[str, ...]:
    """Return the lines of a table, not too many and none too long."""
    lines = [_shortened(visible_text(line.rstrip()), LONGEST_LINE) for line in table.splitlines()]
    left_out = len(lines) - MOST_LINES
    return (*lines[:MOST_LINES], *([f"… {left_out} more lines"] if left_out > 0 else []))


def _one_line(text: str) -> str:
    """Return the first line of a text, without what acts on a terminal."""
    return visible_text(text.strip().partition("\n")[0])


def _shortened(text: str, most: int) -> str:
    """Return a text of at most so many characters."""
    return text if len(text) <= most else f"{text[: most - 1]}…"
