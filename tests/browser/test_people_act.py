"""What a person does on the page: refused, not permitted, and clicked through to its end on real rollouts.

The last test of this file ends the rollouts that all tests of the folder share, so it is the last of the folder, too.
"""

from datetime import timedelta
from typing import Any

import pytest
from playwright.sync_api import Locator, Page, Route, expect

from tests.browser.answers import WORKSPACE, Api
from tests.browser.browser_lab import NARROW
from tests.browser.open_page import memory
from tests.browser.rollout_lab import ENDPOINTS, PAGE, Rollouts
from tests.polling import wait_until

# The first test of a process starts Airflow, the rollouts and the browser, beside two other busy processes.
pytestmark = pytest.mark.timeout(900)

DEADLINE_S = 240.0
# From a change to the request whose answer shows it: the request's own time is a question of the machine's load.
SHOWN_WITHIN = timedelta(seconds=6)


def open_dialog(page: Page, action: str) -> Locator:
    """Open the dialog of an action on the treatment."""
    page.get_by_role("region", name="Rollout").get_by_role("button", name=action).click()
    dialog = page.get_by_role("dialog")
    expect(dialog).to_contain_text("Traffic before and after")
    return dialog


def test_refused_action_shows_its_reason_and_cannot_be_started(here: Rollouts) -> None:
    with here.airflow.page() as page:
        Api(page)
        page.goto(f"{here.airflow.server.url}{PAGE}/{WORKSPACE}/digits")
        dialog = open_dialog(page, "Hold")
        expect(dialog.get_by_role("alert")).to_have_text("Not possible now: the rollout is on hold already")
        expect(dialog.get_by_text("Un-pause")).to_have_count(0)
        expect(dialog.get_by_role("button", name="Hold")).to_be_disabled()

        dialog.get_by_label("Action").select_option("shift")
        dialog.get_by_label("Per cent of the traffic").fill("25")
        expect(dialog.get_by_role("row", name="v2")).to_contain_text("25 %")
        dialog.get_by_label("Per cent of the traffic").fill("130")
        expect(dialog).to_contain_text("from 0 to 100 per cent")


def test_a_dialog_asks_again_until_it_is_answered(here: Rollouts) -> None:
    with here.airflow.page() as page:
        api = Api(page)
        page.goto(f"{here.airflow.server.url}{PAGE}/{WORKSPACE}/digits")
        api.lost_previews = 2
        page.get_by_role("region", name="Rollout").get_by_role("button", name="Shift").click()
        dialog = page.get_by_role("dialog")
        expect(dialog).to_contain_text("the workspace does not answer It is asked again.")
        expect(dialog).to_contain_text("Traffic before and after")
        expect(dialog.get_by_text("does not answer")).to_have_count(0)


def test_nothing_else_can_be_chosen_while_an_action_is_being_started(here: Rollouts) -> None:
    with here.airflow.page() as page:
        Api(page)
        page.route("**/api/v2/dags/*/dagRuns", lambda route: None)  # it is not answered
        page.goto(f"{here.airflow.server.url}{PAGE}/{WORKSPACE}/digits")
        dialog = open_dialog(page, "Shift")
        dialog.get_by_role("textbox", name="Reason").fill("compare once more")
        dialog.get_by_role("button", name="Shift traffic").click()
        expect(dialog.get_by_role("button", name="Cancel")).to_be_disabled()
        expect(dialog.get_by_label("Action")).to_be_disabled()
        expect(dialog.get_by_label("Per cent of the traffic")).to_be_disabled()


def test_viewer_sees_what_an_action_would_do_and_may_not_start_it(here: Rollouts) -> None:
    before = runs_of(here, "roll_back")
    with here.airflow.page(user="viewer") as page:
        Api(page)
        page.goto(f"{here.airflow.server.url}{PAGE}/{WORKSPACE}/digits")
        dialog = open_dialog(page, "Roll back")
        expect(dialog.get_by_role("row", name="v1")).to_contain_text("100 %")
        expect(dialog).to_contain_text("What roll_back does to v2.")
        dialog.get_by_role("textbox", name="Reason").fill("to see whether I may")
        dialog.get_by_role("button", name="Roll back").click()
        expect(dialog.get_by_role("alert")).to_contain_text("You may not start the DAG roll_back")
        expect(dialog.get_by_role("button", name="Roll back")).to_be_enabled()
    assert runs_of(here, "roll_back") == before


@pytest.mark.timeout(1_800)
def test_people_hold_promote_shift_and_roll_back_and_a_page_left_open_shows_each_change_at_once(here: Rollouts) -> None:
    """One test of several steps: each goes on from the one before, and only two rollouts are made for all of them."""
    promoted, held = ENDPOINTS
    hold_although_the_answer_is_lost(here, held)
    promote_on_a_phone(here, promoted)
    # A gate whose rollout has ended looks no more.
    here.left_open.wait_for_looks(10)
    with here.airflow.page(f"{PAGE}/{WORKSPACE}/{promoted}") as page:
        shift(page)
        # Its run takes a while: meanwhile the other one.
        roll_back_by_keyboard(here, held)
        wait_until(lambda: here.traffic(promoted)["first"] == 25, "the shift", timeout_s=DEADLINE_S)
        expect(page.get_by_role("region", name="History")).to_contain_text("compare once more", timeout=30_000)
        expect(page.get_by_text("has succeeded")).to_be_visible()
    check_page_left_open(here, held)


def hold_although_the_answer_is_lost(here: Rollouts, endpoint: str) -> None:
    """Put a rollout on hold; the answer of the request is lost, and its run is started once."""
    with here.airflow.page(f"{PAGE}/{WORKSPACE}/{endpoint}") as page:
        lost = list[int]()

        def lose(route: Route) -> None:
            """Let Airflow start the run, and the page not learn of it, at the first request."""
            if route.request.method != "POST" or lost:
                route.continue_()
                return
            lost.append(route.fetch().status)
            route.abort()

        page.route("**/api/v2/dags/hold/dagRuns", lose)
        # Without a look at the present share a hold is refused.
        expect(page.get_by_role("region", name="Verdict")).to_be_visible()
        dialog = open_dialog(page, "Hold")
        dialog.get_by_role("textbox", name="Reason").fill("I want to look at it first")
        dialog.get_by_role("button", name="Hold").click()
        expect(dialog).to_have_count(0)
        expect(page.get_by_text("Hold: version")).to_be_visible()
    assert lost == [200]
    [run] = runs_of(here, "hold")
    assert run["conf"]["reason"] == "I want to look at it first"


def promote_on_a_phone(here: Rollouts, endpoint: str) -> None:
    """Promote a treatment, to the end of its run."""
    with here.airflow.page(f"{PAGE}/{WORKSPACE}/{endpoint}", width=NARROW) as page:
        dialog = open_dialog(page, "Promote")
        expect(dialog.get_by_role("button", name="Promote")).to_be_disabled()
        dialog.get_by_role("textbox", name="Reason").fill("I have seen enough")
        dialog.get_by_role("button", name="Promote").click()
        expect(dialog).to_have_count(0)
        expect(page.get_by_text("Promote: version")).to_be_visible()

        wait_until(lambda: 100.0 in here.traffic(endpoint).values(), "the promotion", timeout_s=DEADLINE_S)
        assert here.traffic(endpoint)["first"] == 0
        expect(page.get_by_role("region", name="History")).to_contain_text("I have seen enough", timeout=30_000)
        expect(page.get_by_role("region", name="History").get_by_role("link", name="promote/").first).to_be_visible()


def shift(page: Page) -> None:
    """Shift traffic back to the former control, and do not wait for its run."""
    page.get_by_role("button", name="Act on first").click()
    dialog = page.get_by_role("dialog")
    dialog.get_by_label("Action").select_option("shift")
    dialog.get_by_label("Per cent of the traffic").fill("25")
    expect(dialog.get_by_role("row", name="first")).to_contain_text("25 %")
    dialog.get_by_role("textbox", name="Reason").fill("compare once more")
    dialog.get_by_role("button", name="Shift traffic").click()
    expect(dialog).to_have_count(0)


def roll_back_by_keyboard(here: Rollouts, endpoint: str) -> None:
    """Roll a rollout back that is on hold."""
    with here.airflow.page(f"{PAGE}/{WORKSPACE}/{endpoint}") as page:
        expect(page.get_by_text("is on hold: promote it or roll it back")).to_be_visible()
        page.get_by_role("region", name="Rollout").get_by_role("button", name="Roll back").focus()
        page.keyboard.press("Enter")
        dialog = page.get_by_role("dialog")
        expect(dialog).to_contain_text("Traffic before and after")
        dialog.get_by_role("textbox", name="Reason").focus()
        page.keyboard.type("callers complain")
        dialog.get_by_role("button", name="Roll back").focus()
        page.keyboard.press("Enter")
        expect(page.get_by_text("its run has succeeded").or_(page.get_by_text("is running"))).to_be_visible()

        wait_until(lambda: here.traffic(endpoint)["first"] == 100, "the roll-back", timeout_s=DEADLINE_S)
        expect(page.get_by_role("region", name="History")).to_contain_text("callers complain", timeout=30_000)
        expect(page.get_by_text("has succeeded")).to_be_visible()


def check_page_left_open(here: Rollouts, endpoint: str) -> None:
    """Check that a page left open over the whole rollout has shown each change at once, and has kept its memory."""
    left_open = here.left_open
    changes = [one for one in here.history(endpoint) if one.created > left_open.opened]
    newest = left_open.page.get_by_role("region", name="History").get_by_role("row").nth(1)
    expect(newest.get_by_role("cell").first).to_have_text(str(changes[-1].number))
    shown = left_open.revisions()
    # The version, its share, the hold and the roll-back.
    assert len(changes) >= 4
    late = {one.number: shown[one.number].asked - one.created for one in changes}
    assert max(late.values()) <= SHOWN_WITHIN, late
    # At most once in 5 s, and twice more while it was opened; a busy machine sends some late and the next in time.
    requests = left_open.requests_at()
    assert len(requests) <= (requests[-1] - requests[0]) / timedelta(seconds=5) + 4, requests

    with here.airflow.page(f"{PAGE}/{WORKSPACE}/{endpoint}") as fresh:
        expect(fresh.get_by_role("region", name="Verdict")).to_be_visible()
        opened, kept = memory(fresh), memory(left_open.page)
    assert kept["Nodes"] <= opened["Nodes"] + 500, (opened, kept)
    assert kept["JSEventListeners"] <= opened["JSEventListeners"] + 100, (opened, kept)
    assert kept["JSHeapUsedSize"] <= opened["JSHeapUsedSize"] + 10_000_000, (opened, kept)


def runs_of(here: Rollouts, dag_id: str) -> list[dict[str, Any]]:
    """Return the runs of a DAG."""
    with here.airflow.server.client("admin") as client:
        return list(client.get(f"api/v2/dags/{dag_id}/dagRuns").raise_for_status().json()["dag_runs"])
