"""Each view of the page on real rollouts, in light and dark, on a desk and on a phone."""

import re

import pytest
from playwright.sync_api import Page, expect

from tests.browser.answers import Api, endpoint
from tests.browser.browser_lab import NARROW, WIDE, Mode, serious_faults
from tests.browser.rollout_lab import ENDPOINTS, ROLLOUT_DAG, WORKSPACE, Rollouts

# The first test of a process starts Airflow, the rollouts and the browser, beside two other busy processes.
pytestmark = pytest.mark.timeout(900)

OVERVIEW = "plugin/controlled-rollout"
ENDPOINT = f"{OVERVIEW}/{WORKSPACE}/{ENDPOINTS[0]}"
RUN_TAB = f"dags/{ROLLOUT_DAG}/runs/by-test-{ENDPOINTS[0]}/plugin/rollout"
MODES: tuple[Mode, ...] = ("light", "dark")


def check(page: Page, part: str = "#controlled-rollout") -> None:
    """Check what holds for every view: axe has nothing serious, and nothing is wider than the window."""
    assert serious_faults(page, part) == []
    widths = page.evaluate("[document.documentElement.scrollWidth, innerWidth]")
    assert widths[0] <= widths[1]


@pytest.mark.parametrize("width", [WIDE, NARROW])
@pytest.mark.parametrize("mode", MODES)
def test_every_view_can_be_used_by_everybody(here: Rollouts, mode: Mode, width: int) -> None:
    with here.airflow.page(OVERVIEW, mode=mode, width=width) as page:
        errors: list[str] = []
        page.on("pageerror", lambda error: errors.append(str(error)))
        expect(page.locator("html")).to_have_class(re.compile(mode))

        for name in ENDPOINTS:
            expect(page.get_by_role("article", name=f"Endpoint {name}")).to_contain_text("10 %")
        check(page)

        page.goto(here.airflow.server.url + ENDPOINT)
        expect(page.get_by_role("region", name="Verdict")).to_be_visible()
        for chart in (
            "Requests in",
            "Share of requests that failed",
            "Share of requests slower",
            "Evidence about",
        ):
            expect(page.get_by_role("img", name=chart).first).to_be_visible()
        for closed in page.locator("details").all():
            if closed.get_attribute("open") is None:
                closed.locator("> summary").click()
        check(page)

        page.get_by_role("region", name="Rollout").get_by_role("button", name="Promote").click()
        expect(page.get_by_role("dialog")).to_contain_text("Traffic before and after")
        check(page, "[role=dialog]")

        page.goto(here.airflow.server.url + RUN_TAB)
        expect(page.get_by_role("region", name="Versions")).to_be_visible()
        expect(page.get_by_role("link", name=f"The page of endpoint {ENDPOINTS[0]}")).to_be_visible()
        check(page)
        assert errors == []


def test_address_of_the_log_opens_the_log_of_the_version(here: Rollouts) -> None:
    with here.airflow.page(f"{ENDPOINT}?version=first") as page:
        expect(page.get_by_role("region", name="Last lines of first")).to_contain_text("init in process")
        page.get_by_role("region", name="Log of first").get_by_role("button", name="Close").click()
        expect(page.get_by_role("region", name="Log of first")).to_have_count(0)
        expect(page).to_have_url(here.airflow.server.url + ENDPOINT)


def test_workspace_that_does_not_answer_leaves_the_others_alive(here: Rollouts) -> None:
    with here.airflow.page(OVERVIEW) as page:
        expect(page.get_by_text("Workspace away does not answer")).to_be_visible()
        expect(page.get_by_role("article")).to_have_count(len(ENDPOINTS))


def test_all_addresses_are_below_airflows_base_path(here: Rollouts) -> None:
    with here.airflow.page() as page:
        asked: list[str] = []
        page.on("request", lambda request: asked.append(request.url))
        page.get_by_role("link", name="Rollouts").click()
        page.get_by_role("link", name=ENDPOINTS[0]).click()
        expect(page.get_by_role("heading", name=ENDPOINTS[0], exact=True)).to_be_visible()
        assert page.url == here.airflow.server.url + ENDPOINT
        assert any("controlled-rollout/api/overview" in address for address in asked)
        assert [address for address in asked if not address.startswith(here.airflow.server.url)] == []


def test_the_id_of_a_connection_may_have_slashes_and_colons(here: Rollouts) -> None:
    with here.airflow.page() as page:
        api = Api(page, endpoint(workspace="eu/west:ml"))
        page.goto(here.airflow.server.url + OVERVIEW)
        page.get_by_role("link", name="digits").click()
        expect(page.get_by_role("heading", name="digits", exact=True)).to_be_visible()
        page.reload()
        expect(page.get_by_role("heading", name="digits", exact=True)).to_be_visible()
    assert {path for path in api.asked if path != "overview"} == {"workspaces/eu/west:ml/endpoints/digits"}


def test_anonymous_is_sent_to_the_sign_in(here: Rollouts) -> None:
    with here.airflow.page(OVERVIEW, user=None) as page:
        expect(page.get_by_label("Username").or_(page.locator("input[name=username]")).first).to_be_visible()
        assert "/login" in page.url
        here_are = f"controlled-rollout/api/workspaces/{WORKSPACE}/endpoints/{ENDPOINTS[0]}"
        for path in ("controlled-rollout/api/overview", here_are, f"{here_are}/actions", "api/v2/dags/promote"):
            assert page.request.get(here.airflow.server.url + path).status == 401
        assert page.request.post(f"{here.airflow.server.url}api/v2/dags/promote/dagRuns", data={}).status == 401


def test_run_without_a_rollout_says_so(here: Rollouts) -> None:
    with here.airflow.page("dags/promote/runs/none/plugin/rollout") as page:
        expect(page.get_by_text("rollout", exact=False).first).to_be_visible()
        expect(page.get_by_role("region", name="Versions")).to_have_count(0)
