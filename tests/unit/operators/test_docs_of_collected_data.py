"""The blocks of the pages on collected data run as they are."""

import os
import re
import subprocess
import sys
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from controlled_rollout import CollectedDataGateOperator, CollectedDataSensor
from controlled_rollout.endpoint import Endpoint
from controlled_rollout_collector.layouts import ParquetLayout
from controlled_rollout_collector.parts import Replica, make_parts
from tests.unit.collector.spools import entry
from tests.unit.scoring.spool_reader import records

ROOT = Path(__file__).parents[3]
IMAGE = f"registry.example/digits@sha256:{'0' * 64}"
# As the runtime does: the modules take their place before the script is imported.
RUNTIME = """
from controlled_rollout_scoring import collectors
collectors.install()
exec(open("score.py").read())
init()
assert run("{}") == {"label": 1}
"""


def blocks(page: str) -> list[str]:
    """Return the Python blocks of a page of the documentation."""
    return re.findall(r"```python\n(.*?)```", (ROOT / "docs" / page).read_text(encoding="utf-8"), re.DOTALL)


def test_the_page_on_expectations_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    in_a_gate, nightly, waiting = blocks("expectations.md")
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    for block in (in_a_gate, nightly, waiting):
        # One by one, as somebody copies them.
        own: dict[str, Any] = {}
        exec(block, own)  # noqa: S102 - this repository's own documentation
        names |= own

    assert names["gate"].expectations.name == "applicants"
    assert (names["CollectedDataGateOperator"], names["CollectedDataSensor"]) == (
        CollectedDataGateOperator,
        CollectedDataSensor,
    )


def test_the_page_on_what_versions_collect_runs(tmp_path: Path) -> None:
    settings, script, _ = blocks("collected-data.md")
    names: dict[str, Any] = {}
    exec(settings, names)  # noqa: S102 - this repository's own documentation
    version = Endpoint(name="digits").create_version("one", image=IMAGE, **names["settings"]).version("one")
    assert version.collection is not None
    assert version.collection.keep == ("age", "income", "label", "customer")

    (tmp_path / "score.py").write_text(script)
    environment = {
        **os.environ,
        "CAPTURE_SPOOL": str(tmp_path / "spool"),
        "PYTHONPATH": str(ROOT / "docker" / "scoring"),
    }
    subprocess.run([sys.executable, "-c", RUNTIME], cwd=tmp_path, env=environment, check=True, timeout=60)

    inputs, predictions = records(tmp_path / "spool")
    assert (inputs.head["collection"], inputs.head["columns"]) == ("inputs", ["age", "income"])
    assert (predictions.head["collection"], predictions.head["correlation"]) == (
        "predictions",
        inputs.head["correlation"],
    )


def test_the_page_says_how_collected_rows_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of one request, which the collector's own code has shipped."""
    monkeypatch.setenv("CONTROLLED_ROLLOUT_HOME", str(tmp_path))
    now = datetime.now(UTC) - timedelta(minutes=1)
    replica = Replica("digits", "v1a", "r1", subscription="sub", resource_group="group", workspace="ws")
    entries = [
        replace(entry(collection, rows=rows), time_us=int(now.timestamp() * 1e6))
        for collection, rows in (("inputs", ({"age": 30},)), ("predictions", ({"prediction": 7},)))
    ]
    for part in make_parts(entries, replica, ParquetLayout(), "1"):
        path = tmp_path / "storage" / part.name
        path.parent.mkdir(parents=True)
        path.write_bytes(part.content)
    _, _, reading = blocks("collected-data.md")
    exec(reading, {})  # noqa: S102 - this repository's own documentation
    printed = capsys.readouterr().out
    assert printed.startswith("1 [")
    assert "7" in printed
