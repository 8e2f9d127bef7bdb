"""An answer that a page has already is not sent again."""

from datetime import UTC, datetime

import pytest
from starlette.responses import Response

from controlled_rollout.view.models import Overview, WorkspaceOverview
from controlled_rollout_ui.api.conditional import READ_OF_OVERVIEW, conditional_answer

CONTENT = Overview(workspaces=(), poll_seconds=5)


def tag_of(answer: Response) -> str:
    """Return what is between the quotes of an answer's tag, which is weak."""
    tag = answer.headers["etag"]
    assert tag.startswith('W/"')
    return tag[3:-1]


def test_an_answer_is_private_and_has_a_tag_of_its_content() -> None:
    first, again = conditional_answer(CONTENT, None), conditional_answer(CONTENT, '"another"')
    assert (first.status_code, first.body) == (200, CONTENT.model_dump_json().encode())
    assert first.headers["etag"] == again.headers["etag"]
    assert first.headers["cache-control"] == "private, no-cache"
    other = conditional_answer(CONTENT.model_copy(update={"poll_seconds": 6}), first.headers["etag"])
    assert other.status_code == 200


@pytest.mark.parametrize(
    "sent",
    ['W/"{}"', '"{}"', 'W/"{}-gzip"', '"{}-br"', '"x", W/"{}"', "*"],
    ids=["same", "strong", "compressed by mod_deflate", "compressed by mod_brotli", "several", "any"],
)
def test_who_has_it_gets_304(sent: str) -> None:
    digest = tag_of(conditional_answer(CONTENT, None))
    answer = conditional_answer(CONTENT, sent.format(digest))
    assert (answer.status_code, answer.body) == (304, b"")
    assert tag_of(answer) == digest


@pytest.mark.parametrize("sent", ["{}", 'W/"{}0"', 'W/"0{}"', 'W/"{}', ""])
def test_who_has_another_tag_or_none_gets_the_answer(sent: str) -> None:
    assert conditional_answer(CONTENT, sent.format(tag_of(conditional_answer(CONTENT, None)))).status_code == 200


def test_a_workspace_that_was_read_again_and_is_as_before_is_the_same_answer() -> None:
    def overview(minute: int, problem: str | None) -> Overview:
        read = datetime(2026, 3, 2, 3, minute, tzinfo=UTC)
        shown = WorkspaceOverview(
            workspace="ml", target="local", problem=problem, read=read, loading=False, endpoints=()
        )
        return Overview(workspaces=(shown,), poll_seconds=5)

    tag = conditional_answer(overview(0, None), None, but=READ_OF_OVERVIEW).headers["etag"]
    assert conditional_answer(overview(1, None), tag, but=READ_OF_OVERVIEW).status_code == 304
    away = conditional_answer(overview(1, "no answer in 2 s"), tag, but=READ_OF_OVERVIEW)
    assert (away.status_code, b"03:01" in away.body) == (200, True)
