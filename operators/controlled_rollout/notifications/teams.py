"""A message as an adaptive card for Teams. Pure: the standard provider's HTTP hook sends it to a Teams workflow."""

import json
from typing import Any, Final

from controlled_rollout.notifications.event import Event
from controlled_rollout.notifications.message import RolloutMessage
from controlled_rollout.text_table import text_table

__all__ = ["teams_message"]

# Teams refuses a message of more than 28 KB.
MOST_BYTES: Final = 25_000
MOST_ACTIONS: Final = 6
COLORS: Final = {
    Event.ON_HOLD: "warning",
    Event.PROMOTED: "good",
    Event.ROLLED_BACK: "attention",
    Event.NOT_ROLLED_BACK: "attention",
    Event.FAILED: "attention",
    Event.DONE: "default",
    Event.STUCK: "warning",
}


def teams_message(message: RolloutMessage) -> dict[str, Any]:
    """Return a message with one adaptive card: the headline, the reason, the versions, the claims, the links.

    Its texts are runs, in which Teams reads no Markdown. Claims are left out from the end if it would be too large.
    """
    claims = list(message.claims)
    while True:
        content = _with_card(message, claims)
        if not claims or len(json.dumps(content)) <= MOST_BYTES:
            return content
        claims = claims[: len(claims) // 2]


def _with_card(message: RolloutMessage, claims: list[str]) -> dict[str, Any]:
    """Return the message with these claims."""
    body = [
        _text(message.headline, weight="bolder", size="medium", color=COLORS[message.event]),
        _text(message.reason),
    ]
    tables = []
    if message.versions:
        rows = text_table([("version", "role", "traffic", "image"), *message.versions], left_columns=2)
        tables.append(rows.splitlines())
    for lines in [*tables, claims]:
        for number, line in enumerate(lines):
            body.append(_text(line, number == 0, fontType="monospace", size="small"))
    card = {
        "$schema": "http://adaptivecards.io/schemas/adaptive-card.json",
        "type": "AdaptiveCard",
        "version": "1.4",
        "msteams": {"width": "Full"},
        "body": body,
        "actions": [
            {"type": "Action.OpenUrl", "title": name, "url": address} for name, address in message.links[:MOST_ACTIONS]
        ],
    }
    attachment = {"contentType": "application/vnd.microsoft.card.adaptive", "contentUrl": None, "content": card}
    return {"type": "message", "attachments": [attachment]}


def _text(text: str, apart: bool = True, **style: str) -> dict[str, Any]:
    """Return a line of text; `apart`: with a space before it."""
    # Teams joins the spaces of a table to one, unless they are no-break spaces.
    shown = text.replace("  ", "\N{NO-BREAK SPACE}" * 2) or " "
    run = {"type": "TextRun", "text": shown, **style}
    return {"type": "RichTextBlock", "spacing": "default" if apart else "none", "inlines": [run]}
