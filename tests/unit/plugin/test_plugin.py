"""Airflow's loading of the plugin: once, from the editable install too, and at little cost for each process."""

import json
import subprocess
import sys
from typing import Any

from controlled_rollout.provider_info import get_provider_info
from tests import airflow_home


def in_fresh_airflow(code: str) -> Any:
    """Run code in a process of its own; return the JSON value of the last line that it printed."""
    process = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code],
        env={"AIRFLOW_HOME": str(airflow_home.HOME), "PATH": ""},
        check=True,
        capture_output=True,
        text=True,
    )
    return json.loads(process.stdout.splitlines()[-1])


def test_airflow_registers_the_plugin_once_and_no_import_error() -> None:
    code = """
import json
from airflow import plugins_manager
names = [plugin["name"] for plugin in plugins_manager.get_plugin_info({"source"})]
apps = [app["url_prefix"] for app in plugins_manager.get_fastapi_plugins()[0]]
errors = plugins_manager.get_import_errors()
print(json.dumps([names.count("controlled_rollout"), errors, apps.count("/controlled-rollout/api")]))
"""
    assert in_fresh_airflow(code) == [1, {}, 1]
    assert "plugins" not in get_provider_info()


def test_loading_the_plugin_imports_no_web_framework_and_no_client() -> None:
    code = """
import json, sys
import airflow.plugins_manager
before = set(sys.modules)
import controlled_rollout_ui.plugin
print(json.dumps(sorted({name.partition(".")[0] for name in set(sys.modules) - before})))
"""
    loaded = in_fresh_airflow(code)
    assert not set(loaded) & {"fastapi", "starlette", "httpx", "pydantic", "kubernetes", "kubernetes_asyncio", "numpy"}
