"""A Chromium of Debian, driven by Playwright, that is signed in to an Airflow."""

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final, Literal

from playwright.sync_api import Browser, BrowserContext, Page, expect, sync_playwright

from tests.browser.open_page import RECORDER, OpenPage
from tests.local.airflow_api_server import AirflowApiServer
from tests.needs import skip

__all__ = ["DEADLINE_MS", "NARROW", "WIDE", "Airflow", "Mode", "chromium", "require_browser", "serious_faults"]

# Pages load beside two other busy processes.
DEADLINE_MS: Final = 90_000
WIDE: Final = 1280
NARROW: Final = 390
AXE: Final = Path(__file__).parents[2] / "plugins/controlled_rollout_ui/page/node_modules/axe-core/axe.min.js"

Mode = Literal["light", "dark"]


def require_browser() -> str:
    """Return the program Chromium; skip the test where it or axe is not installed."""
    program = shutil.which("chromium")
    if program is None or not AXE.exists():
        skip("Chromium or axe is not installed: run `make lab` (on Debian, as root)")
    return program


@contextmanager
def chromium() -> Iterator[Browser]:
    """Context manager: a Chromium without a window.

    While it runs, no event loop can be started in this thread.
    """
    program = require_browser()
    expect.set_options(timeout=DEADLINE_MS)
    arguments = ["--no-sandbox", "--disable-dev-shm-usage", "--js-flags=--max-old-space-size=512"]
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=arguments)
        try:
            yield browser
        finally:
            browser.close()


@dataclass
class Airflow:
    """An Airflow with the page, and a browser.

    Attributes:
        server: Its API server.
        browser: The browser.
    """

    server: AirflowApiServer
    browser: Browser
    _tokens: dict[str, str] = field(default_factory=dict)

    @contextmanager
    def page(
        self, path: str = "", *, user: str | None = "admin", width: int = WIDE, mode: Mode = "light"
    ) -> Iterator[Page]:
        """Context manager: an open page of a signed-in user, at a path below Airflow's base address."""
        context = self._context(user, width, mode)
        try:
            page = context.new_page()
            page.set_default_timeout(DEADLINE_MS)
            page.goto(self.server.url + path)
            yield page
        finally:
            context.close()

    @contextmanager
    def page_left_open(self, path: str) -> Iterator[OpenPage]:
        """Context manager: an open page of the administrator that notes what it has shown when."""
        with self.page(user="admin") as page:
            page.add_init_script(RECORDER)
            opened = datetime.now(UTC)
            page.goto(self.server.url + path)
            expect(page.get_by_role("region", name="History").get_by_role("row").nth(1)).to_be_visible()
            yield OpenPage(page, opened)

    def _context(self, user: str | None, width: int, mode: Mode) -> BrowserContext:
        context = self.browser.new_context(
            viewport={"width": width, "height": 800}, color_scheme=mode, locale="en-GB", timezone_id="UTC"
        )
        context.add_init_script(f"localStorage.setItem('theme', {json.dumps(mode)})")
        if user is not None:
            if user not in self._tokens:
                self._tokens[user] = self.server.token(user)
            context.add_cookies([{"name": "_token", "value": self._tokens[user], "url": self.server.url}])
        return context


def serious_faults(page: Page, part: str = "#controlled-rollout") -> list[str]:
    """Return what axe calls serious or critical in a part of a page, a line each."""
    page.add_script_tag(path=AXE)
    results: dict[str, Any] = page.evaluate("part => axe.run({include: [part]}, {resultTypes: ['violations']})", part)
    return [
        f"{fault['id']}: {node['target']} {node['failureSummary']}"
        for fault in results["violations"]
        if fault["impact"] in ("serious", "critical")
        for node in fault["nodes"]
    ]
