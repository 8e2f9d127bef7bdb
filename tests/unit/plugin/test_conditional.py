"""An answer that a page has already is not sent again."""

import pytest

from controlled_rollout.view.models import Overview
from controlled_rollout_ui.api.conditional import conditional_answer

CONTENT = Overview(workspaces=(), poll_seconds=5)


def test_an_answer_is_private_and_has_a_tag_of_its_content() -> None:
    first, again = conditional_answer(CONTENT, None), conditional_answer(CONTENT, '"another"')
    assert (first.status_code, first.body) == (200, CONTENT.model_dump_json().encode())
    assert first.headers["etag"] == again.headers["etag"]
    assert first.headers["cache-control"] == "private, no-cache"
    other = conditional_answer(CONTENT.model_copy(update={"poll_seconds": 6}), first.headers["etag"])
    assert other.status_code == 200


@pytest.mark.parametrize("sent", ["{}", "W/{}", '"x", {}', "*"], ids=["same", "weak", "several", "any"])
def test_who_has_it_gets_304(sent: str) -> None:
    tag = conditional_answer(CONTENT, None).headers["etag"]
    answer = conditional_answer(CONTENT, sent.format(tag))
    assert (answer.status_code, answer.body) == (304, b"")
