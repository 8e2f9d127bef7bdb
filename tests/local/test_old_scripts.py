"""Entry scripts of the old service run as they are; what cannot run says which package it misses."""

import json
from typing import Any

import pytest

from tests.local.old_scripts import SCRIPTS
from tests.local.scoring_environment import REPOSITORY, environment_python
from tests.local.script_lab import EntryScript, Outcome, run_scripts

READS_A_FILE = """
def init(): print("initialised")

def run(data):
    with open("%s", encoding="utf-8-sig") as file:
        return file.read()
"""
PYTHONS_LOGGING = """
{"version": 1, "root": {"level": "INFO", "handlers": ["own"]}, "formatters": {"own": {"format": "own: %(message)s"}},
 "handlers": {"own": {"class": "logging.StreamHandler", "formatter": "own"}}}
"""
BYTE_ORDER_MARK = "\ufeff"
NO_SWAGGER = "swagger.json is not a description of the service"


def with_file(name: str, content: str, logged: str = "initialised", **settings: Any) -> EntryScript:
    """Return a script of a project with a file that the server may take for its own."""
    return EntryScript(READS_A_FILE % name, None, files={name: content}, logged=logged, **settings)


# Projects with files of the names of the server's: script and, unless the script can read the file, what is answered.
OWN_FILES = {
    "config.json of a model": (with_file("config.json", '{"architectures": ["A"], "log_level": "x"}'), ""),
    "config.json with a list": (
        with_file("config.json", "[1]", "config.json is not a configuration of the server"),
        "",
    ),
    "config.json with comments": (with_file("config.json", "{ // mine\n}", "it is left to the script"), ""),
    "config.json of the server, with a byte order mark": (
        with_file("config.json", BYTE_ORDER_MARK + '{"SERVICE_NAME": "digits"}', url="/swagger.json", method="GET"),
        "digits",
    ),
    "config.json with a setting of the server that is not valid": (
        with_file(
            "config.json", '{"AZUREML_DEBUG_PORT": "x"}', "config.json has settings of the server that", status=0
        ),
        "",
    ),
    "a configuration of the server that is none": (
        with_file(
            "other.json",
            "[]",
            "AZUREML_CONFIG_FILE='other.json' is not",
            status=0,
            variables={"AZUREML_CONFIG_FILE": "other.json"},
        ),
        "",
    ),
    "logging.json with a list": (with_file("logging.json", "[1]"), ""),
    "logging.json of another kind": (with_file("logging.json", '{"level": "INFO"}', "it has no version"), ""),
    "logging.json with comments": (with_file("logging.json", "{ // mine\n}", "left to the script"), ""),
    "logging.json of Python": (with_file("logging.json", BYTE_ORDER_MARK + PYTHONS_LOGGING, "own: initialised"), ""),
    "logging.json with a mistake": (
        with_file(
            "logging.json",
            '{"version": 1, "handlers": {"a": {"class": "x.Y"}}}',
            status=0,
            logged="logging.json is not a valid configuration of Python's logging",
        ),
        "",
    ),
    "swagger.json with comments": (
        with_file("swagger.json", "{ // mine\n}", NO_SWAGGER, url="/swagger.json", method="GET"),
        "ML service",
    ),
    "swagger.json with a list": (
        with_file("swagger.json", "[1]", NO_SWAGGER, url="/swagger.json", method="GET"),
        "ML service",
    ),
    "swagger.json with a byte order mark": (
        with_file("swagger.json", BYTE_ORDER_MARK + '{"mine": 1}', url="/swagger.json", method="GET"),
        "mine",
    ),
}


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Outcome]:
    scripts = SCRIPTS | {name: script for name, (script, _) in OWN_FILES.items()}
    return run_scripts(environment_python(), tmp_path_factory.mktemp("old"), scripts)


@pytest.mark.parametrize("name", SCRIPTS)
def test_what_public_entry_scripts_use_works(name: str, outcomes: dict[str, Outcome]) -> None:
    script, outcome = SCRIPTS[name], outcomes[name]

    assert outcome.status == script.status, outcome.log
    if not script.status:
        assert script.answer in outcome.log.splitlines()[-1]
    elif isinstance(script.answer, bytes):
        assert outcome.body == script.answer
    else:
        assert json.loads(outcome.body) == script.answer
    assert script.logged in outcome.log
    assert "extra keys" not in outcome.log, "the stock server takes its own variables for keys of a file"


@pytest.mark.parametrize("name", OWN_FILES)
def test_a_projects_own_files_are_left_to_it_or_named_in_the_error(name: str, outcomes: dict[str, Outcome]) -> None:
    (script, answered), outcome = OWN_FILES[name], outcomes[name]
    content = next(iter(script.files.values())).removeprefix(BYTE_ORDER_MARK)

    assert outcome.status == script.status, outcome.log
    assert script.logged in outcome.log
    assert "extra keys" not in outcome.log
    if answered:
        assert answered in outcome.body.decode()
    elif script.status:
        assert json.loads(outcome.body) == content


def test_the_docs_say_how_many_of_them_run() -> None:
    running = [script for script in SCRIPTS.values() if script.status]

    page = (REPOSITORY / "docs" / "scoring.md").read_text()
    assert f"{len(running)} of {len(SCRIPTS)}" in page
