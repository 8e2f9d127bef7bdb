"""A page that is left open over a whole rollout: when it has shown each change, and what it holds in memory."""

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final

from playwright.sync_api import Page

__all__ = ["RECORDER", "OpenPage", "Shown", "memory"]

# The clocks of a page's times are rounded.
CLOCKS_MS: Final = 2.0
# Notes when each revision of the history was first there, the looks, and when the page's requests began and ended.
RECORDER: Final = """
(() => {
  const revisions = {}, looks = new Set(), requests = [];
  globalThis.recorded = () => ({revisions, looks, requests});
  const note = () => {
    for (const row of document.querySelectorAll("[aria-label=History] tbody tr"))
      revisions[row.cells[0].textContent] ??= Date.now();
    for (const time of document.querySelectorAll("[aria-label=Looks] time")) looks.add(time.dateTime);
  };
  const all = {childList: true, subtree: true, characterData: true, attributes: true, attributeFilter: ["datetime"]};
  new MutationObserver(note).observe(document, all);
  new PerformanceObserver(list => {
    for (const {name, startTime, responseEnd} of list.getEntries())
      if (name.includes("/controlled-rollout/api/"))
        requests.push([performance.timeOrigin + startTime, performance.timeOrigin + responseEnd]);
  }).observe({type: "resource", buffered: true});
})()
"""


@dataclass(frozen=True)
class Shown:
    """When a page has shown something first.

    Attributes:
        at: When it was there.
        asked: When the request began whose answer had it.
    """

    at: datetime
    asked: datetime


@dataclass(frozen=True)
class OpenPage:
    """A page that is open, with the recorder.

    Attributes:
        page: The page.
        opened: When it was opened.
    """

    page: Page
    opened: datetime

    def revisions(self) -> dict[int, Shown]:
        """Return when each revision of the endpoint was shown in the history."""
        recorded: dict[str, Any] = self.page.evaluate("recorded()")
        requests: list[tuple[float, float]] = sorted(recorded["requests"])
        return {
            int(number): Shown(_time(at), _time(max(began for began, ended in requests if ended <= at + CLOCKS_MS)))
            for number, at in recorded["revisions"].items()
        }

    def wait_for_looks(self, number: int) -> None:
        """Wait until so many looks were shown."""
        self.page.wait_for_function("number => recorded().looks.size >= number", arg=number)

    def requests_at(self) -> list[datetime]:
        """Return when requests began."""
        return [_time(began) for began, _ in self.page.evaluate("recorded().requests")]


def memory(page: Page) -> dict[str, float]:
    """Return what a page holds once nothing is left to collect: bytes of scripts, elements and listeners."""
    session = page.context.new_cdp_session(page)
    session.send("Performance.enable")
    session.send("HeapProfiler.collectGarbage")
    metrics = session.send("Performance.getMetrics")["metrics"]
    session.detach()
    wanted = ("JSHeapUsedSize", "Nodes", "JSEventListeners")
    return {one["name"]: one["value"] for one in metrics if one["name"] in wanted}


def _time(milliseconds: float) -> datetime:
    """Return a time of a browser's clock."""
    return datetime.fromtimestamp(milliseconds / 1000, tz=UTC)
