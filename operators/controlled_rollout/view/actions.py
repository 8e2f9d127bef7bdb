"""What people may do to an endpoint now, and what that would do, or why it is refused. Pure."""

from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from functools import partial
from typing import Final

from controlled_rollout.endpoint import Endpoint
from controlled_rollout.errors import ControlledRolloutError
from controlled_rollout.steps import edits, rules
from controlled_rollout.target.protocol import EndpointStatus, Revision
from controlled_rollout.view.models import ActionName, ActionPreview, Actions
from controlled_rollout.visible_text import visible_text

__all__ = ["DEFAULT_PERCENTILE", "actions"]

DEFAULT_PERCENTILE: Final = 10.0

Conf = dict[str, str | float | None]


def actions(
    workspace: str,
    history: Sequence[Revision],
    status: EndpointStatus,
    dag_ids: Mapping[ActionName, str],
    *,
    percentile: float,
    at: datetime,
    hold_refusal: str | None = None,
) -> Actions:
    """Return a preview of each action for each version of an endpoint.

    Args:
        workspace: The workspace's connection id.
        history: The endpoint's revisions, oldest first.
        status: Its status.
        dag_ids: The DAGs that do it, by action.
        percentile: The per cent of a shift.
        at: The present.
        hold_refusal: Why the gate of the rollout does not let it be put on hold now; None if it does.
    """
    endpoint = history[-1].endpoint
    previews = [
        preview
        for version in endpoint.versions
        for preview in (
            _preview(
                endpoint, "promote", version, partial(edits.promote, endpoint, version, owner=None),
                f"{version} becomes default and control and gets all the traffic.", _not_ready(status, version),
            ),
            _roll_back(history, version),
            _preview(
                endpoint, "hold", version, partial(edits.hold, endpoint, version, at=at),
                f"The rollout of {version} does not go on by itself; traffic stays as it is.",
                hold_refusal if endpoint.rollout and endpoint.rollout.version == version else None,
            ),
            _preview(
                endpoint, "shift", version,
                partial(edits.shift, endpoint, version, percentile=percentile, owner=None),
                f"{version} gets {percentile:g} % of the traffic.", _not_ready(status, version) if percentile else None,
                {"percentile": percentile},
            ),
        )
    ]  # fmt: skip
    same = {"conn_id": workspace, "endpoint": endpoint.name}
    return Actions(
        workspace=workspace,
        endpoint=endpoint.name,
        revision=endpoint.revision,
        actions=tuple(
            preview.model_copy(
                update={
                    "dag_id": dag_ids[preview.action],
                    "conf": {**same, "version": preview.version, **preview.conf},
                }
            )
            for preview in previews
        ),
    )


def _roll_back(history: Sequence[Revision], version: str) -> ActionPreview:
    """Return the preview of a roll-back: of a treatment to 0 %, of the control to the control before it."""
    endpoint = history[-1].endpoint
    try:
        former = rules.former_control_to_restore(history, version)
    except ControlledRolloutError as error:
        return _preview(endpoint, "roll_back", version, lambda: endpoint, "", str(error))
    if former is not None:
        return _preview(
            endpoint,
            "roll_back",
            version,
            lambda: edits.promote(endpoint, former, owner=None),
            f"{former}, the control before {version}, becomes default and control again and gets all the traffic.",
            conf={"to": former},
        )
    return _preview(
        endpoint,
        "roll_back",
        version,
        lambda: edits.roll_back(endpoint, version, owner=None),
        f"{version} gets no traffic any more; its replicas stay, for inspection.",
    )


def _preview(
    endpoint: Endpoint,
    action: ActionName,
    version: str,
    edit: Callable[[], Endpoint],
    summary: str,
    refusal: str | None = None,
    conf: Conf | None = None,
) -> ActionPreview:
    """Return what an edit would make of an endpoint, or why it is refused."""
    after: Endpoint | None = None
    if refusal is None:
        try:
            after = edit()
        except ControlledRolloutError as error:
            refusal = str(error)
    if after is endpoint and refusal is None:
        after, refusal = None, "nothing would change: it is so already"
    before, holder = endpoint.effective_traffic(), endpoint.rollout
    return ActionPreview(
        action=action,
        version=version,
        allowed=refusal is None,
        refusal=None if refusal is None else visible_text(refusal),
        summary=summary,
        before=before,
        after=after.effective_traffic() if after else None,
        ends_rollout_of=visible_text(holder.owner) if holder and after and after.rollout is None else None,
        dag_id="",
        conf=conf or {},
    )


def _not_ready(status: EndpointStatus, version: str) -> str | None:
    """Return why a version cannot get traffic: it will not become ready; None if it is ready or may become so."""
    known = status.versions.get(version)
    if known is None or not known.failed:
        return None
    return f"version {version!r} does not become ready: {known.cause or 'no cause is known'}"
