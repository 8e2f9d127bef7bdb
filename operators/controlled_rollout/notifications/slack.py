"""A message as Slack's blocks. Pure: the standard provider's hook sends them."""

from typing import Any, Final

from controlled_rollout.notifications.event import Event
from controlled_rollout.notifications.message import RolloutMessage
from controlled_rollout.text_table import text_table

__all__ = ["slack_blocks", "slack_text"]

# Slack's own limits, in characters.
LONGEST_HEADER: Final = 150
LONGEST_SECTION: Final = 3_000
SYMBOLS: Final = {
    Event.ON_HOLD: ":double_vertical_bar:",
    Event.PROMOTED: ":white_check_mark:",
    Event.ROLLED_BACK: ":leftwards_arrow_with_hook:",
    Event.NOT_ROLLED_BACK: ":rotating_light:",
    Event.FAILED: ":x:",
    Event.DONE: ":information_source:",
    Event.STUCK: ":hourglass:",
}


def slack_text(message: RolloutMessage) -> str:
    """Return what Slack shows where it has no room for blocks, such as in a phone's notification."""
    return escaped(f"{message.headline}. {message.reason}")


def slack_blocks(message: RolloutMessage) -> list[dict[str, Any]]:
    """Return a message as blocks: the headline, the reason, the versions, the claims, the links.

    Nothing in it notifies anybody or leads anywhere but the links: text of others is escaped.
    """
    headline = f"{SYMBOLS[message.event]} {message.headline}"[:LONGEST_HEADER]
    blocks: list[dict[str, Any]] = [
        {"type": "header", "text": {"type": "plain_text", "text": headline, "emoji": True}},
        _section(escaped(message.reason)),
    ]
    if message.versions:
        rows = text_table([("version", "role", "traffic", "image"), *message.versions], left_columns=2)
        blocks += _code_blocks(rows.splitlines())
    blocks += _code_blocks(message.claims)
    links = [f"<{address}|{escaped(name)}>" for name, address in message.links]
    short = "  ·  ".join(links)
    for text in [short] if len(short) <= LONGEST_SECTION else links:
        if text and len(text) <= LONGEST_SECTION:
            blocks.append(_section(text))
    return blocks


def escaped(text: str) -> str:
    """Return a text in which nothing is a mention or a link for Slack."""
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def _section(text: str) -> dict[str, Any]:
    """Return a block of text."""
    return {"type": "section", "text": {"type": "mrkdwn", "text": text[:LONGEST_SECTION]}}


def _code_blocks(lines: "list[str] | tuple[str, ...]") -> list[dict[str, Any]]:
    """Return lines as blocks of equally wide letters, as many as Slack's limit asks for."""
    blocks, part, length = [], list[str](), 0
    for line in [escaped(line.replace("```", "'''")) for line in lines]:
        if part and length + len(line) + 1 > LONGEST_SECTION - 8:
            blocks.append(part)
            part, length = [], 0
        part.append(line)
        length += len(line) + 1
    return [_section("```" + "\n".join(part) + "```") for part in [*blocks, part] if part]
