"""What the page is made from: the schema of the API's answers, and the hook of the wheel's build."""

import shutil
import subprocess
from hashlib import sha256
from pathlib import Path
from typing import Any, Final

import pytest

from scripts.page_build_hook import PageBuildHook
from scripts.page_schema import schema

REPOSITORY: Final = Path(__file__).parents[3]


def test_every_field_of_an_answer_is_required_as_the_api_always_sends_it() -> None:
    definitions: Any = schema()["$defs"]
    assert {"Overview", "EndpointDetail", "LogTail", "Actions"} <= set(definitions)
    for model in definitions.values():
        assert model["required"] == list(model["properties"])


class App:
    """Keeps the warnings of a build."""

    def __init__(self) -> None:
        self.warnings: list[str] = []

    def display_warning(self, text: str) -> None:
        self.warnings.append(text)


@pytest.mark.parametrize(
    ("kind", "mode", "warning"),
    [
        ("editable", 0o755, None),
        ("standard", 0o755, "Node.js was not found"),
        ("standard", 0o644, "Permission denied"),
    ],
    ids=["editable", "no node", "no programs"],
)
def test_a_page_that_cannot_be_built_is_a_warning_of_the_build(
    tmp_path: Path, kind: str, mode: int, warning: str | None
) -> None:
    (tmp_path / "scripts").mkdir()
    script = tmp_path / "scripts" / "page"
    script.write_text("#!/bin/sh\necho 'page: Node.js was not found' >&2\nexit 1\n")
    script.chmod(mode)
    app: Any = App()
    hook = PageBuildHook(str(tmp_path), {}, None, None, str(tmp_path), "wheel", app=app)  # type: ignore[arg-type]
    hook.initialize(kind, {})
    assert [warning is not None and warning in line for line in app.warnings] == [True] * (warning is not None)


def test_a_page_that_is_up_to_date_needs_no_node(tmp_path: Path) -> None:
    page, bundle = (tmp_path / "plugins" / "controlled_rollout_ui" / name for name in ("page", "static"))
    made_from = [
        page / "src" / "main.tsx",
        page / "build.mjs",
        page / "package-lock.json",
        tmp_path / "scripts" / "page",
    ]
    for file in made_from:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(file.name)
    script = made_from[-1]
    script.write_bytes((REPOSITORY / "scripts" / "page").read_bytes())
    script.chmod(0o755)
    bundle.mkdir()
    (bundle / "main.js").write_text("built")
    (bundle / "version").write_text(sha256(b"".join(file.read_bytes() for file in made_from)).hexdigest()[:16])

    def build() -> str:
        """Build where there is no Node.js, and return what is said of it."""
        programs = {"PATH": str(tmp_path / "programs")}
        return subprocess.run([script, "build"], env=programs, capture_output=True, text=True, timeout=60).stderr

    programs = tmp_path / "programs"
    programs.mkdir()
    for name in ("bash", "cat", "cut", "dirname", "sha256sum"):
        (programs / name).symlink_to(shutil.which(name) or name)
    assert build() == ""
    (page / "build.mjs").write_text("changed")
    assert "Node.js was not found" in build()
