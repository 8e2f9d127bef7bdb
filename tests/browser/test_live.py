"""How the page keeps itself up to date, at a clock that the tests move."""

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime

import pytest
from playwright.sync_api import Page, expect

from controlled_rollout.view.models import WorkspaceOverview
from tests.browser.answers import HELD, WORKSPACE, Api, detail, endpoint, overview
from tests.browser.browser_lab import NARROW
from tests.browser.open_page import memory
from tests.browser.rollout_lab import Rollouts

# The first test of a process starts Airflow, the rollouts and the browser, beside two other busy processes.
pytestmark = pytest.mark.timeout(900)

OVERVIEW = "plugin/controlled-rollout"
ENDPOINT = f"{OVERVIEW}/{WORKSPACE}/digits"
# What is asked for while a page is open for so long, the first request included.
SECONDS = 60
MOST_REQUESTS = SECONDS // 5 + 1


@contextmanager
def stopped(here: Rollouts, path: str) -> Iterator[tuple[Page, Api]]:
    """Context manager: a page whose clock stands still, and what answers its requests."""
    with here.airflow.page() as page:
        api = Api(page)
        page.clock.install()
        page.goto(here.airflow.server.url + path)
        expect(page.get_by_text("another 412").first).to_be_visible()
        # Until here it has run on by itself. What is due in the second that it jumps is asked for once.
        page.clock.pause_at(datetime.fromtimestamp(page.evaluate("Date.now()") / 1000 + 1, tz=UTC))
        yield page, api


def pass_time(page: Page, seconds: int) -> None:
    """Let time pass, a second each: answers come in between."""
    for _ in range(seconds):
        page.clock.run_for(1_000)


def set_hidden(page: Page, hidden: bool) -> None:
    """Hide a page, or show it again."""
    page.evaluate(
        """hidden => {
            Object.defineProperty(document, "hidden", {value: hidden, configurable: true});
            document.dispatchEvent(new Event("visibilitychange"));
        }""",
        hidden,
    )


def test_an_open_page_asks_at_most_once_in_five_seconds_and_a_hidden_one_never(here: Rollouts) -> None:
    for path in (OVERVIEW, ENDPOINT):
        with stopped(here, path) as (page, api):
            asked = len(api.asked)
            pass_time(page, SECONDS)
            assert 2 <= len(api.asked) - asked <= MOST_REQUESTS

            set_hidden(page, True)
            # A request may be on its way.
            pass_time(page, 5)
            asked = len(api.asked)
            pass_time(page, SECONDS)
            assert len(api.asked) == asked

            with page.expect_request("**/controlled-rollout/api/**"):
                set_hidden(page, False)
                pass_time(page, 1)


def test_a_change_is_shown_within_six_seconds(here: Rollouts) -> None:
    with stopped(here, OVERVIEW) as (page, api):
        api.overview = overview(endpoint(state="on_hold", attention=HELD))
        pass_time(page, 6)
        expect(page.get_by_role("article")).to_contain_text(HELD)


def test_errors_are_shown_beside_the_last_answer_and_make_the_page_ask_more_seldom(here: Rollouts) -> None:
    with stopped(here, OVERVIEW) as (page, api):
        api.overview = (503, "the database of Airflow is away")
        pass_time(page, 120)
        expect(page.get_by_text("the database of Airflow is away")).to_be_visible()
        expect(page.get_by_role("article")).to_contain_text("digits")
        assert len(api.asked) <= 8

        api.overview = overview(endpoint("other"))
        pass_time(page, 60)
        expect(page.get_by_role("article")).to_contain_text("other")
        expect(page.get_by_text("the database of Airflow is away")).to_have_count(0)


def test_what_needs_a_person_comes_first_and_a_workspace_that_is_away_last_seen(here: Rollouts) -> None:
    with stopped(here, OVERVIEW) as (page, api):
        away = WorkspaceOverview(
            workspace="away", target=None, problem="no answer in 2 s", read=None, loading=False, endpoints=()
        )
        api.overview = overview(
            endpoint("calm", state="steady", rollout=None),
            endpoint(),
            endpoint("asks", state="needs_person", attention="A question waits in Required Actions."),
            endpoint("held", state="on_hold", attention=HELD),
            others=(away,),
        )
        pass_time(page, 6)
        expect(page.get_by_role("heading", level=2)).to_have_text(["asks", "held", "digits", "calm"])
        expect(page.get_by_text("4 endpoints: 1 needs a person, 1 on hold, 1 rolling out, 1 steady")).to_be_visible()
        expect(page.get_by_text("Workspace away does not answer: no answer in 2 s")).to_be_visible()

        api.overview = overview()
        pass_time(page, 6)
        expect(page.get_by_text("The first run of a DAG with a rollout makes an endpoint")).to_be_visible()
        expect(page).to_have_title("Rollouts - Airflow")


def test_a_page_left_open_over_thousands_of_changes_keeps_its_memory(here: Rollouts) -> None:
    with stopped(here, ENDPOINT) as (page, api):
        change(page, api, 20)
        before = memory(page)
        change(page, api, 60)
        after = memory(page)
    assert after["Nodes"] <= before["Nodes"] + 50, (before, after)
    assert after["JSEventListeners"] <= before["JSEventListeners"] + 20, (before, after)
    assert after["JSHeapUsedSize"] <= before["JSHeapUsedSize"] + 3_000_000, (before, after)


def change(page: Page, api: Api, times: int) -> None:
    """Show so many different answers."""
    for number in range(times):
        api.detail = detail(endpoint(revision=number, warnings=(f"warning {number}",)))
        page.clock.run_for(5_000)
        expect(page.get_by_text(f"warning {number}", exact=True)).to_be_visible()


def test_keyboard_alone_opens_an_endpoint_reads_the_verdict_and_closes_the_dialog(here: Rollouts) -> None:
    with here.airflow.page(width=NARROW) as page:
        Api(page)
        page.goto(here.airflow.server.url + OVERVIEW)
        expect(page.get_by_role("link", name="digits")).to_be_visible()
        press_until(page, "digits")
        page.keyboard.press("Enter")
        expect(page.get_by_role("heading", name="digits", exact=True)).to_be_visible()

        press_until(page, "What does this mean?")
        page.keyboard.press("Enter")
        expect(page.get_by_text("It goes on when the evidence is large enough.")).to_be_visible()

        page.get_by_role("link", name="All endpoints").focus()
        press_until(page, "Promote…")
        page.keyboard.press("Enter")
        expect(page.get_by_role("dialog")).to_contain_text("Traffic before and after")
        expect(page.get_by_role("dialog").get_by_label("Action")).to_be_focused()
        page.keyboard.press("Escape")
        expect(page.get_by_role("dialog")).to_have_count(0)
        expect(page.get_by_role("button", name="Promote…")).to_be_focused()


def press_until(page: Page, text: str) -> None:
    """Press the Tab key until what has this text has the focus."""
    for _ in range(80):
        page.keyboard.press("Tab")
        if page.evaluate("document.activeElement.textContent.trim()") == text:
            return
    raise AssertionError(f"the Tab key does not reach {text!r}")
