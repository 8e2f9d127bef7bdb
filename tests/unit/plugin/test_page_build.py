"""What the page is made from: the schema of the API's answers, and the hook of the wheel's build."""

from pathlib import Path
from typing import Any

import pytest

from scripts.page_build_hook import PageBuildHook
from scripts.page_schema import schema


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


@pytest.mark.parametrize(("kind", "warned"), [("editable", False), ("standard", True)])
def test_a_page_that_cannot_be_built_is_a_warning_of_the_build(tmp_path: Path, kind: str, warned: bool) -> None:
    (tmp_path / "scripts").mkdir()
    script = tmp_path / "scripts" / "page"
    script.write_text("#!/bin/sh\necho 'page: Node.js was not found' >&2\nexit 1\n")
    script.chmod(0o755)
    app: Any = App()
    hook = PageBuildHook(str(tmp_path), {}, None, None, str(tmp_path), "wheel", app=app)  # type: ignore[arg-type]
    hook.initialize(kind, {})
    assert ["Node.js was not found" in line for line in app.warnings] == [True] * warned
