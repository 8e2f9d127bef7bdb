"""The content of the wheel (provider, scoring runtime, collector, page) and of the source distribution."""

import subprocess
import tarfile
import zipfile
from pathlib import Path

from uv import find_uv_bin

REPOSITORY = Path(__file__).parents[2]


def test_the_wheel_carries_the_scoring_runtime_and_the_collector_and_announces_the_provider(tmp_path: Path) -> None:
    subprocess.run(
        [find_uv_bin(), "build", "--quiet", "--wheel", "--out-dir", tmp_path, REPOSITORY],
        check=True,
        capture_output=True,
    )
    (wheel,) = tmp_path.glob("airflow_provider_controlled_rollout-*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        entry_points = archive.read(next(n for n in names if n.endswith("entry_points.txt"))).decode()

    runtime = REPOSITORY / "docker" / "scoring" / "controlled_rollout_scoring"
    expected = {
        f"controlled_rollout/image/runtime/controlled_rollout_scoring/{file.relative_to(runtime)}"
        for file in runtime.rglob("*")
        if file.is_file() and file.suffix != ".pyc"
    }
    collector = REPOSITORY / "docker" / "collector" / "controlled_rollout_collector"
    expected |= {
        f"controlled_rollout/target/local/collector/controlled_rollout_collector/{file.name}"
        for file in collector.glob("*.py")
    }
    assert "requirements.txt" in {Path(name).name for name in expected}
    assert expected <= names
    assert {"controlled_rollout/py.typed", "controlled_rollout/task_group.py"} <= names
    assert not [name for name in names if name.endswith(".pyc") or name.startswith(("tests/", "scripts/"))]
    assert (
        "[apache_airflow_provider]\nprovider_info = controlled_rollout.provider_info:get_provider_info" in entry_points
    )
    assert "controlled-rollout = controlled_rollout.cli:main" in entry_points
    assert (
        "[airflow.plugins]\ncontrolled_rollout = controlled_rollout_ui.plugin:ControlledRolloutPlugin" in entry_points
    )
    assert {"controlled_rollout_ui/plugin.py", "controlled_rollout_ui/api/app.py"} <= names
    page = {"main.js", "version"}
    assert {f"controlled_rollout_ui/static/{name}" for name in page} <= names
    assert not [name for name in names if name.startswith("controlled_rollout_ui/page/")]


def test_the_source_distribution_carries_the_built_page_so_that_its_wheel_needs_no_node(tmp_path: Path) -> None:
    subprocess.run(
        [find_uv_bin(), "build", "--quiet", "--sdist", "--out-dir", tmp_path, REPOSITORY],
        check=True,
        capture_output=True,
    )
    (source,) = tmp_path.glob("airflow_provider_controlled_rollout-*.tar.gz")
    with tarfile.open(source) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    page = "plugins/controlled_rollout_ui"
    assert {f"{page}/static/main.js", f"{page}/static/version", f"{page}/page/build.mjs", "scripts/page"} <= names
    assert not [name for name in names if "/node_modules/" in name]
