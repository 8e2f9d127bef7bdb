"""The history of an endpoint: what each revision has changed, who has made it and why. Pure."""

from collections.abc import Iterator, Sequence
from typing import Final

from controlled_rollout.endpoint import Endpoint
from controlled_rollout.target.protocol import Revision
from controlled_rollout.version import Version
from controlled_rollout.view.models import HistoryEntry
from controlled_rollout.view.runs import run_of_author
from controlled_rollout.visible_text import short_text, visible_text

__all__ = ["ENTRIES", "change_text", "history_entries"]

ENTRIES: Final = 100
LONGEST_REASON: Final = 1_000


def history_entries(history: Sequence[Revision]) -> tuple[HistoryEntry, ...]:
    """Return the newest revisions of an endpoint, the newest first, `ENTRIES` at most.

    Args:
        history: The endpoint's revisions, oldest first.
    """
    newest = history[-ENTRIES:]
    before: list[Endpoint | None] = [None, *(one.endpoint for one in history[:-1])]
    entries = [
        HistoryEntry(
            revision=revision.number,
            time=revision.created,
            who=visible_text(revision.change.who),
            reason=short_text(revision.change.reason, most=LONGEST_REASON),
            what=change_text(earlier, revision.endpoint),
            run=run_of_author(revision.change.who),
        )
        for earlier, revision in zip(before[-len(newest) :], newest, strict=True)
    ]
    return tuple(reversed(entries))


def change_text(before: Endpoint | None, after: Endpoint) -> str:
    """Return what has changed between two revisions, such as `v2a: 0 % → 10 %`.

    Args:
        before: The endpoint before; None if that is not known, or it is the first revision.
        after: The endpoint after.
    """
    if before is None:
        return "first revision" if after.revision <= 1 else "oldest revision that is kept"
    return "; ".join(_changes(before, after)) or "nothing that is shown here"


def _changes(before: Endpoint, after: Endpoint) -> Iterator[str]:
    """Yield what has changed, a few words each."""
    yield from (f"{name} added" for name in after.versions if name not in before.versions)
    yield from (f"{name} deleted" for name in before.versions if name not in after.versions)
    then, now = before.effective_traffic(), after.effective_traffic()
    yield from (
        f"{name}: {then.get(name, 0.0):g} % → {percent:g} %"
        for name, percent in now.items()
        if then.get(name, 0.0) != percent
    )
    control, former = after.control, before.control
    if control is not None and (former is None or former.name != control.name):
        yield f"{control.name} is control"
    held, holds = before.rollout, after.rollout
    if holds is not None and (held is None or held.version != holds.version):
        yield f"rollout of {holds.version} begins"
    elif held is not None and holds is None:
        yield f"rollout of {held.version} ends"
    elif held is not None and holds is not None and (held.held is None) != (holds.held is None):
        yield "on hold" if holds.held is not None else "no longer on hold"
    settings = [
        name
        for name, version in after.versions.items()
        if name in before.versions and _settings(version) != _settings(before.versions[name])
    ]
    if settings:
        yield f"settings of {', '.join(settings)}"


def _settings(version: Version) -> Version:
    """Return a version without its part of the traffic and its roles."""
    return version.model_copy(update={"traffic_percentile": 0.0, "is_default": False, "is_control": False})
