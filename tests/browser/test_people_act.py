"""What a person does on the page: refused, not permitted, and clicked through to its end on real rollouts."""

import pytest
from playwright.sync_api import Locator, Page, expect

from tests.browser.answers import WORKSPACE, Api
from tests.browser.browser_lab import NARROW
from tests.browser.rollout_lab import ENDPOINTS, Rollouts
from tests.polling import wait_until

# The first test of a process starts Airflow, the rollouts and the browser, beside two other busy processes.
pytestmark = pytest.mark.timeout(900)

PAGE = "plugin/controlled-rollout"
DEADLINE_S = 240.0


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
        expect(dialog).to_contain_text("Not possible now: the rollout is on hold already")
        expect(dialog.get_by_role("button", name="Hold")).to_be_disabled()

        dialog.get_by_label("Action").select_option("shift")
        dialog.get_by_label("Per cent of the traffic").fill("25")
        expect(dialog.get_by_role("row", name="v2")).to_contain_text("25 %")
        dialog.get_by_label("Per cent of the traffic").fill("130")
        expect(dialog).to_contain_text("from 0 to 100 per cent")


def test_viewer_reads_the_page_and_may_not_act(here: Rollouts) -> None:
    with here.airflow.page(f"{PAGE}/{WORKSPACE}/{ENDPOINTS[1]}", user="viewer") as page:
        dialog = open_dialog(page, "Roll back")
        dialog.get_by_role("textbox", name="Reason").fill("to see whether I may")
        dialog.get_by_role("button", name="Roll back").click()
        expect(dialog).to_contain_text("You may not start the DAG roll_back")
    assert 10.0 in here.traffic(ENDPOINTS[1]).values()


def test_promote_is_clicked_through_to_the_end_on_a_phone(here: Rollouts) -> None:
    endpoint = ENDPOINTS[0]
    with here.airflow.page(f"{PAGE}/{WORKSPACE}/{endpoint}", width=NARROW) as page:
        dialog = open_dialog(page, "Promote")
        expect(dialog.get_by_role("button", name="Promote")).to_be_disabled()
        dialog.get_by_role("textbox", name="Reason").fill("I have seen enough")
        dialog.get_by_role("button", name="Promote").click()
        expect(dialog).to_have_count(0)
        expect(page.get_by_text("Promote: version")).to_be_visible()

        wait_until(lambda: 100.0 in here.traffic(endpoint).values(), "the promotion", timeout_s=DEADLINE_S)
        assert here.traffic(endpoint)["first"] == 0
        # The page learns of it within its 5 s; the rest is the server's.
        expect(page.get_by_role("region", name="History")).to_contain_text("I have seen enough", timeout=30_000)
        expect(page.get_by_role("region", name="History").get_by_role("link", name="promote/").first).to_be_visible()


def test_roll_back_is_clicked_through_to_the_end_by_keyboard(here: Rollouts) -> None:
    endpoint = ENDPOINTS[1]
    with here.airflow.page(f"{PAGE}/{WORKSPACE}/{endpoint}") as page:
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
