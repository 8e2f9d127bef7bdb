"""Print how much of each room the last run of the tests has executed, and fail where that is below the room's floor.

The floors are in pyproject.toml, `[tool.controlled_rollout.coverage]`, in per cent of lines and branches. They hold for
a run of all tests, so they are not compared where the tests on a cluster cannot run. Tests end processes while these
work, so a few lines are executed in one run and not in the next: a room may lack that many below its floor.
"""

import json
import sys
import tomllib
import warnings
from dataclasses import dataclass
from pathlib import Path

from coverage import Coverage

from tests.cluster.lab.preparation import why_not_prepared

REPOSITORY = Path(__file__).parents[1]
REPORT = REPOSITORY / ".work" / "coverage" / "report.json"
PACKAGE = "operators/controlled_rollout/"
# Sources beside the package, each a room of its own.
OTHER_ROOMS = ("docker/collector", "docker/scoring", "dags", "plugins", "scripts")
# Lines and branches that a room may lack below its floor: in a small room one of them is half a per cent.
TOLERATED = 3
# The modules beside the rooms' folders that have no floor of their own.
MODULES = "modules"


@dataclass
class Tally:
    """Lines and branches of a room: how many there are and how many were executed."""

    lines: int = 0
    parts: int = 0
    executed: int = 0

    def add(self, summary: dict[str, int]) -> None:
        """Add the summary of a file in coverage's JSON report."""
        self.lines += summary["num_statements"]
        self.parts += summary["num_statements"] + summary["num_branches"]
        self.executed += summary["covered_lines"] + summary["covered_branches"]

    @property
    def percent(self) -> float:
        """Share of lines and branches that were executed, in per cent."""
        return 100 * self.executed / self.parts if self.parts else 100.0

    def reaches(self, floor: float) -> bool:
        """Whether the share that was executed is `floor` per cent, but for the few that may be lacking."""
        return 100 * (self.executed + TOLERATED) >= floor * self.parts


def main() -> int:
    """Print the table and compare the floors, unless `--only-print` is given; return 1 if one is missed."""
    settings = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))
    floors: dict[str, float] = settings["tool"]["controlled_rollout"]["coverage"]
    tallies = by_room(summaries(), floors)
    why_not = "it was a choice of tests" if "--only-print" in sys.argv[1:] else why_not_prepared()
    complaints = [] if why_not else list(below(tallies, floors))
    print(f"{'room':<24}{'statements':>12}{'executed':>12}{'floor':>12}")
    for room, tally in tallies.items():
        floor = f"{floors[room]:.0f} %" if room in floors else "none"
        print(f"{room:<24}{tally.lines:>12,}{tally.percent:>10.1f} %{floor:>12}")
    if why_not:
        print(f"The floors were not compared, because not all tests have run: {why_not}")
    for line in complaints:
        print(f"coverage: {line}", file=sys.stderr)
    return 1 if complaints else 0


def summaries() -> dict[str, dict[str, int]]:
    """Combine the data of all processes and return the summary of each source file, by its path."""
    coverage = Coverage(config_file=str(REPOSITORY / "pyproject.toml"))
    with warnings.catch_warnings():
        # A process that was killed while it wrote its data leaves half a file.
        warnings.simplefilter("ignore")
        coverage.combine()
        coverage.save()
        coverage.json_report(outfile=str(REPORT))
    files = json.loads(REPORT.read_text(encoding="utf-8"))["files"]
    return {path: file["summary"] for path, file in files.items()}


def by_room(files: dict[str, dict[str, int]], floors: dict[str, float]) -> dict[str, Tally]:
    """Add the files up by room; a file with a floor of its own is counted there as well."""
    tallies: dict[str, Tally] = {}
    for path, summary in sorted(files.items()):
        rooms = {room_of(path)}
        module = path.removeprefix(PACKAGE).removesuffix(".py")
        if module in floors:
            rooms = {module} | (rooms - {MODULES})
        for room in rooms:
            tallies.setdefault(room, Tally()).add(summary)
    return dict(sorted(tallies.items()))


def room_of(path: str) -> str:
    """Return the room of a source file: its folder below the package, `modules`, or one of `OTHER_ROOMS`."""
    if not path.startswith(PACKAGE):
        return next(room for room in OTHER_ROOMS if path.startswith(f"{room}/"))
    folder, _, module = path.removeprefix(PACKAGE).partition("/")
    return folder if module else MODULES


def below(tallies: dict[str, Tally], floors: dict[str, float]) -> list[str]:
    """Return a sentence for each room that is below its floor or has none, and for each floor without a room."""
    sentences = []
    for room, tally in tallies.items():
        if room not in floors:
            sentences.append(f"{room} has no floor: add one to pyproject.toml, [tool.controlled_rollout.coverage]")
        elif not tally.reaches(floors[room]):
            sentences.append(f"{room}: {tally.percent:.1f} % executed, at least {floors[room]:.0f} % are asked for")
    sentences.extend(f"{room} has a floor and no source files: remove it" for room in floors if room not in tallies)
    return sentences


if __name__ == "__main__":
    sys.exit(main())
