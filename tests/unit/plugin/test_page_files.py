"""The page's files, and what Airflow's UI is told of them."""

from pathlib import Path

import httpx
import pytest

from controlled_rollout_ui import page_files
from tests.unit.plugin.test_plugin import in_fresh_airflow


def test_airflow_finds_the_page_and_the_tab_of_a_run_by_relative_addresses() -> None:
    code = """
import json
from airflow import plugins_manager
plugin = [p for p in plugins_manager.get_plugin_info({"name", "react_apps"}) if p["name"] == "controlled_rollout"]
print(json.dumps(plugin[0]["react_apps"]))
"""
    apps = in_fresh_airflow(code)
    assert {(app["name"], app["destination"], app["url_route"]) for app in apps} == {
        ("Rollouts", "nav", "controlled-rollout"),
        ("Rollout", "dag_run", "rollout"),
    }
    for address in (app["bundle_url"] for app in apps):
        # A slash at the beginning would leave Airflow's base path.
        assert address.startswith("controlled-rollout/page/")


def test_another_bundle_has_another_address(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(page_files, "FILES", tmp_path)
    assert page_files.version() == "none"
    (tmp_path / "version").write_text("0123\n")
    assert page_files.version() == "0123"


def client() -> httpx.AsyncClient:
    """Return a client of the server of the files."""
    return httpx.AsyncClient(transport=httpx.ASGITransport(app=page_files.create_app()), base_url="http://page")


async def test_files_are_served_and_nothing_beside_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = tmp_path / "static"
    files.mkdir()
    (files / "main.js").write_text("globalThis.Rollouts = () => null;")
    (tmp_path / "secret.py").write_text("")
    monkeypatch.setattr(page_files, "FILES", files)
    async with client() as http:
        bundle = await http.get("/main.js")
        outside = await http.get("/%2e%2e/secret.py")
    assert bundle.text == "globalThis.Rollouts = () => null;"
    assert bundle.headers["content-type"].startswith("text/javascript")
    assert outside.status_code == 404


async def test_a_package_without_the_bundle_has_a_page_that_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(page_files, "FILES", tmp_path)
    async with client() as http:
        answer = await http.get("/main.js")
    assert answer.status_code == 200
    assert "was not built" in answer.text
    assert "globalThis.Rollouts = globalThis.Rollout =" in answer.text
