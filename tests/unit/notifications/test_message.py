"""What people are told, as text, as Slack's blocks and as a card for Teams."""

import json
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from controlled_rollout.endpoint import Endpoint
from controlled_rollout.notifications.event import Event
from controlled_rollout.notifications.message import RolloutMessage, as_text, message_about, rollout_of_run
from controlled_rollout.notifications.slack import LONGEST_SECTION, slack_blocks, slack_text
from controlled_rollout.notifications.teams import MOST_BYTES, teams_message
from controlled_rollout.record import Decision
from controlled_rollout.target.protocol import Change, Revision

NOW = datetime(2026, 11, 29, 12, tzinfo=UTC)
PAGE = "https://airflow.example/base/plugin/controlled-rollout/ml/digits"


def history(share: float = 10) -> list[Revision]:
    endpoint = Endpoint(name="digits").create_version("old", is_control=True, image="ml/digits@sha256:" + "1" * 64)
    endpoint = endpoint.create_version("new", image="ml/digits@sha256:" + "2" * 64)
    endpoint = endpoint.claim("new", owner="weekly/run-1", at=NOW).shift("new", share)
    return [Revision.after(endpoint, Change(who="weekly/run-1/shift"))]


def decision(step: Any, why: str, **fields: Any) -> Decision:
    return Decision(
        time=NOW, endpoint="digits", version="new", step=step, who="weekly/run-1/task", reason=why, **fields
    )


def message(event: Event = Event.ON_HOLD, **arguments: Any) -> RolloutMessage:
    given = {"history": history(), "reason": "no decision in 6 h", "table": "errors  e 3.1\nlatency e 0.2"}
    return message_about(event, endpoint="digits", version="new", **{**given, **arguments})


def test_a_message_says_what_why_the_versions_the_claims_and_where_to_look() -> None:
    assert as_text(message(links=[("Endpoint", PAGE)])).splitlines() == [
        "version new of endpoint digits is on hold: promote it, or roll it back",
        "why: no decision in 6 h",
        "",
        "version  role       traffic                image",
        "old      Control       90 %  sha256:111111111111",
        "new      Treatment     10 %  sha256:222222222222",
        "",
        "errors  e 3.1",
        "latency e 0.2",
        "",
        f"Endpoint: {PAGE}",
    ]


@pytest.mark.parametrize(
    ("event", "newest_first", "given", "reason"),
    [
        (Event.PROMOTED, [decision("promote", "promote new"), decision("go_on", "no claim alarms", outcome="pass")], "",
         "pass: no claim alarms"),
        (Event.PROMOTED, [decision("approve", "ann answered Approve"), decision("go_on", "waits", outcome="pass")], "",
         "ann answered Approve"),
        (Event.PROMOTED, [decision("promote", "enough seen"), decision("hold", "6 h"), decision("shift", "50 %"),
                          decision("go_on", "no claim alarms", outcome="not_enough_evidence")], "",
         "enough seen (weekly/run-1/task)"),
        (Event.PROMOTED, [decision("promote", "promote new"), decision("go_on", "all shown", outcome="pass"),
                          decision("shift", "50 %"), decision("approve", "ann answered Approve")], "",
         "pass: all shown"),
        (Event.PROMOTED, [decision("promote", "looks fine to me")], "", "looks fine to me (weekly/run-1/task)"),
        (Event.ROLLED_BACK, [decision("roll_back", "nobody looked since 11:00\nmore")], "gate_10 has failed",
         "nobody looked since 11:00 (weekly/run-1/task)"),
        (Event.ROLLED_BACK, [], "fail: errors are higher", "fail: errors are higher"),
        (Event.ON_HOLD, [decision("hold", "an older hold")], "no decision in 6 h", "no decision in 6 h"),
        (Event.ON_HOLD, [decision("hold", "an older hold")], "", "an older hold"),
        (Event.STUCK, [decision("look", "412 requests are missing", outcome="not_enough_evidence")], "",
         "not enough evidence: 412 requests are missing"),
        (Event.FAILED, [], "the API server does not answer", "the API server does not answer"),
        (Event.DONE, [], "", "no reason is known"),
    ],
)  # fmt: skip
def test_the_reason_is_the_record_s_word_or_the_task_s(
    event: Event, newest_first: list[Decision], given: str, reason: str
) -> None:
    assert message(event, newest_first=newest_first, reason=given).reason == reason


def test_what_is_not_known_is_left_out() -> None:
    text = as_text(message_about(Event.FAILED, endpoint="digits", version=""))
    assert text == "endpoint digits: a task of the rollout has failed\nwhy: no reason is known"


def test_only_the_run_that_still_holds_the_endpoint_is_stuck() -> None:
    endpoint = history()[0].endpoint
    assert rollout_of_run(endpoint, "weekly/run-1") == "new"
    assert rollout_of_run(endpoint, "weekly/run-2") is None
    assert rollout_of_run(endpoint.release("new"), "weekly/run-1") is None


def texts_of(value: Any) -> list[str]:
    """Return all texts in a JSON value."""
    if isinstance(value, dict):
        return [text for part in value.values() for text in texts_of(part)]
    return [text for part in value for text in texts_of(part)] if isinstance(value, list) else [str(value)]


@given(reason=st.text(max_size=4_000), table=st.text(max_size=8_000), name=st.text(max_size=100))
def test_whatever_others_have_written_fits_and_neither_mentions_anybody_nor_leads_anywhere(
    reason: str, table: str, name: str
) -> None:
    links = [(name or "Endpoint", PAGE), ("Requests in Azure", f"https://portal.azure.com/#view/{'x' * 2_000}")]
    told = message(reason=reason, table=table, links=links)
    blocks = slack_blocks(told)
    assert len(blocks) <= 50
    for block in blocks:
        assert 0 < len(block["text"]["text"]) <= (150 if block["type"] == "header" else LONGEST_SECTION)
        if block["type"] == "section":
            text = block["text"]["text"]
            for address in ("<https://airflow.example", "<https://portal.azure.com"):
                text = text.replace(address, "")
            assert "<" not in text
    assert "<" not in slack_text(told)
    card = json.dumps(teams_message(told))
    assert len(card) <= MOST_BYTES + 12_000
    assert not [text for text in texts_of(teams_message(told)) if "\x1b" in text]


def test_mentions_are_escaped_in_slack_and_nothing_is_markdown_in_teams() -> None:
    told = message(reason="<!channel> see <https://evil.example|here> & [there](https://evil.example)")
    assert slack_blocks(told)[1]["text"]["text"] == (
        "&lt;!channel&gt; see &lt;https://evil.example|here&gt; &amp; [there](https://evil.example)"
    )
    card = teams_message(told)["attachments"][0]["content"]
    assert {block["type"] for block in card["body"]} == {"RichTextBlock"}


def test_the_columns_of_a_table_keep_their_places_in_teams_which_joins_spaces() -> None:
    body = teams_message(message())["attachments"][0]["content"]["body"]
    lines = [block["inlines"][0]["text"] for block in body if block["inlines"][0].get("fontType") == "monospace"]
    assert not [line for line in lines if "  " in line]
    assert [line.replace("\N{NO-BREAK SPACE}", " ") for line in lines] == [
        line for line in as_text(message()).splitlines()[3:] if line
    ]


def test_a_card_that_would_be_too_large_has_fewer_claims() -> None:
    told = message(table="\n".join("ä" * 160 for _ in range(60)))
    assert len(told.claims) == 41
    card = teams_message(told)
    assert len(json.dumps(card)) <= MOST_BYTES
    assert card["attachments"][0]["contentType"] == "application/vnd.microsoft.card.adaptive"
    assert 5 < len(card["attachments"][0]["content"]["body"]) < 41


def test_the_links_are_buttons_in_teams_and_links_in_slack() -> None:
    told = message(links=[("Endpoint", PAGE), ("Run in Airflow", "https://airflow.example/base/dags/weekly/runs/1")])
    assert slack_blocks(told)[-1]["text"]["text"] == (
        f"<{PAGE}|Endpoint>  ·  <https://airflow.example/base/dags/weekly/runs/1|Run in Airflow>"
    )
    actions = teams_message(told)["attachments"][0]["content"]["actions"]
    assert [(action["title"], action["url"]) for action in actions] == list(told.links)
