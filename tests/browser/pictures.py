"""Takes the pictures of `docs/page.md` of real rollouts, in about ten minutes: `python -m tests.browser.pictures`."""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from playwright.sync_api import Page, expect

from tests.browser.browser_lab import NARROW, WIDE
from tests.browser.rollout_lab import ENDPOINTS, PAGE, WORKSPACE, Rollouts, Scene, rollouts
from tests.polling import wait_until

DOCS: Final = Path(__file__).parents[2] / "docs"
DAG: Final = "retrain_weekly"
DEADLINE_S: Final = 900.0
# So that charts have something to show: answers take different times, and few fail.
SCRIPT: Final = """
import random, time

def init():
    print("the model is loaded")

def run(data):
    time.sleep(random.gammavariate(4, 0.002))
    if random.random() < 0.004:
        raise ValueError("a row without a value")
    return {"digit": random.randrange(10)}
"""
SCENE: Final = Scene(
    steps=(10, 50),
    bake="3 min",
    bin_width="5 s",
    quantile=0.9,
    tolerance=0.1,
    rate=20,
    script=SCRIPT,
    steady=("prices",),
    dag_id=DAG,
    away=False,
)
LOOKED_AT_S: Final = 45.0
TRANSITIONS_MS: Final = 500


@contextmanager
def picture(here: Rollouts, name: str, path: str, *, width: int = WIDE, height: int) -> Iterator[Page]:
    """Context manager: an open page, of which a picture is taken at the end."""
    with here.airflow.page(path, width=width) as page:
        page.set_viewport_size({"width": width, "height": height})
        yield page
        # Charts are drawn after their data came.
        page.wait_for_load_state("networkidle")
        page.wait_for_timeout(TRANSITIONS_MS)
        page.screenshot(path=DOCS / f"page-{name}.png")
        print(f"docs/page-{name}.png")  # noqa: T201


def hold(here: Rollouts, endpoint: str) -> None:
    """Put a rollout on hold, on the page."""
    with here.airflow.page(f"{PAGE}/{WORKSPACE}/{endpoint}") as page:
        # Without a look at the present share a hold is refused.
        expect(page.get_by_role("region", name="Verdict")).to_be_visible()
        page.get_by_role("region", name="Rollout").get_by_role("button", name="Hold").click()
        dialog = page.get_by_role("dialog")
        dialog.get_by_role("textbox", name="Reason").fill("Support reports odd answers: look before it goes on")
        dialog.get_by_role("button", name="Hold").click()
        expect(page.get_by_text("is on hold: promote it or roll it back")).to_be_visible(timeout=1000 * DEADLINE_S)


def take(here: Rollouts) -> None:
    """Take all pictures."""
    moving, held = ENDPOINTS
    hold(here, held)
    wait_until(lambda: 50.0 in here.traffic(moving).values(), "the second step", timeout_s=DEADLINE_S, interval_s=1)
    with here.airflow.page(f"{PAGE}/{WORKSPACE}/{moving}") as page:
        page.wait_for_timeout(1000 * LOOKED_AT_S)
    with picture(here, "overview", PAGE, height=640) as page:
        expect(page.get_by_role("article")).to_have_count(3)
    with picture(here, "endpoint", f"{PAGE}/{WORKSPACE}/{moving}", height=1500) as page:
        expect(page.get_by_role("img", name="Evidence about").first).to_be_visible()
    with picture(here, "run", f"dags/{DAG}/runs/by-test-{moving}/plugin/rollout", height=900) as page:
        expect(page.get_by_role("region", name="Versions")).to_be_visible()
    with picture(here, "phone", f"{PAGE}/{WORKSPACE}/{held}", width=NARROW, height=844) as page:
        expect(page.get_by_role("region", name="Verdict")).to_be_visible()
    with picture(here, "action", f"{PAGE}/{WORKSPACE}/{held}", width=NARROW, height=720) as page:
        page.get_by_role("region", name="Rollout").get_by_role("button", name="Promote").click()
        dialog = page.get_by_role("dialog")
        expect(dialog).to_contain_text("Traffic before and after")
        dialog.get_by_role("textbox", name="Reason").fill("The odd answers came from a test client")
        expect(dialog.get_by_role("button", name="Promote")).to_be_enabled()


if __name__ == "__main__":
    with tempfile.TemporaryDirectory(prefix="page-pictures-") as folder, rollouts(Path(folder), SCENE) as scene:
        take(scene)
