"""The page's API in a real Airflow API server under a base path, on a real local endpoint with a recorded rollout."""

import asyncio
import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import quote

import httpx
import pytest

from controlled_rollout import __version__, steps
from controlled_rollout.target.protocol import Change
from tests.local.airflow_api_server import PASSWORDS, AirflowApiServer, airflow_api_server
from tests.local.local_target_lab import Lab, running
from tests.polling import wait_until
from tests.unit import record_lines

API: Final = "controlled-rollout/api"
RUN: Final = "weekly/run-1"
ENDPOINT: Final = f"{API}/workspaces/ml/endpoints/digits"
# Airflow allows all of these characters in the id of a connection.
SAME_WITH_SLASH: Final = "eu/west:ml"
DEADLINE_S: Final = 60.0


@dataclass(frozen=True)
class Surroundings:
    """What the tests of this module share: an API server and a local workspace with the endpoint `digits`."""

    server: AirflowApiServer
    lab: Lab

    def get(self, path: str, user: str | None = "viewer", **headers: str) -> httpx.Response:
        """Get an address as a user."""
        with self.server.client(user) as client:
            return client.get(path, headers=headers)

    def read(self, path: str) -> Any:
        """Return what the API answers once it has finished loading."""
        return wait_until(lambda: self._loaded(path), f"{path} to be loaded", timeout_s=DEADLINE_S, interval_s=0.3)

    def _loaded(self, path: str) -> Any:
        answer = self.get(path)
        if answer.status_code == httpx.codes.SERVICE_UNAVAILABLE:
            return None
        content = answer.raise_for_status().json()
        loading = content.get("loading") or any(one["loading"] for one in content.get("workspaces", ()))
        return None if loading else content


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Surroundings]:
    """An endpoint with a control and a treatment at 10 %, its record, and an API server that knows its workspace."""
    folder = tmp_path_factory.mktemp("page-api")
    with running(tmp_path_factory.mktemp("page-lab")) as lab:
        asyncio.run(begin_rollout(lab))
        extra = {"root": str(lab.workspace.root)}
        connection = {"conn_type": "controlled_rollout", "password": "geheim-1", "extra": extra}
        down = {"conn_type": "controlled_rollout", "extra": {"root": str(folder / "nothing-runs-here")}}
        settings = {
            "AIRFLOW_CONN_ML": json.dumps(connection),
            "AIRFLOW_CONN_DOWN": json.dumps(down),
            f"AIRFLOW_CONN_{SAME_WITH_SLASH.upper()}": json.dumps(connection),
            "AIRFLOW__CONTROLLED_ROLLOUT__UI_WORKSPACES": f"down, ml, {SAME_WITH_SLASH}",
        }
        with airflow_api_server(folder / "airflow", settings) as server:
            yield Surroundings(server, lab)


async def begin_rollout(lab: Lab) -> None:
    """Deploy two versions, give the second 10 %, and record looks at it."""
    for version, note, who in (("v1a", "first", "maria@laptop"), ("v2a", "second", f"{RUN}/deploy")):
        await steps.deploy(
            lab.workspace,
            "digits",
            version,
            image=await lab.image(note),
            owner=who.removesuffix("/deploy"),
            change=Change(who=who, reason="newer"),
            settings={"num_replicas": 1},
            progress=ignore,
        )
    change = Change(who=f"{RUN}/shift", reason="see")
    await steps.shift(lab.workspace, "digits", "v2a", percentile=10, change=change, progress=ignore)
    bins = record_lines.bins(30)
    for number in (10, 20, 30):
        record_lines.append(lab.workspace, bins[:number])


def ignore(_: str) -> None:
    """Take a sentence of a step's progress."""


def test_anonymous_reader_gets_401_and_no_description_of_the_api(here: Surroundings) -> None:
    for path in ("health", "overview", "workspaces/ml/endpoints/digits", "runs/weekly/run-1"):
        assert here.get(f"{API}/{path}", None).status_code == httpx.codes.UNAUTHORIZED
    for path in ("docs", "redoc", "openapi.json"):
        assert here.get(f"{API}/{path}", None).status_code == httpx.codes.NOT_FOUND


@pytest.mark.parametrize("user", ["admin", "viewer"])
def test_users_who_may_see_plugins_may_read(here: Surroundings, user: str) -> None:
    answer = here.get(f"{API}/health", user)
    assert (answer.status_code, answer.json()) == (httpx.codes.OK, {"status": "ok", "version": __version__})


def test_a_workspace_that_is_down_is_a_row_with_its_reason_and_the_others_live(here: Surroundings) -> None:
    down, alive, _ = here.read(f"{API}/overview")["workspaces"]

    assert (down["workspace"], down["endpoints"]) == ("down", [])
    assert "nothing-runs-here" in down["problem"]
    assert (alive["workspace"], alive["problem"], alive["target"]) == ("ml", None, "local")
    [digits] = alive["endpoints"]
    assert (digits["name"], digits["state"], digits["control"]) == ("digits", "rolling_out", "v1a")
    control, treatment = digits["versions"]
    assert control["traffic"] == {"percentile": 0, "effective": 90, "served": 90}
    assert (treatment["traffic"]["served"], treatment["health"]) == (10, "ready")
    assert treatment["replicas"]["ready"] == treatment["replicas"]["wanted"] == 1
    assert treatment["created_run"] == {"dag_id": "weekly", "run_id": "run-1", "task_id": "deploy"}
    assert control["created_by"] == "maria@laptop"
    assert digits["rollout"]["waiting_for"] == "the first look at 10 %"


def test_the_page_of_an_endpoint_has_its_charts_history_and_a_command(here: Surroundings) -> None:
    detail = here.read(ENDPOINT)

    charts = detail["comparison"]
    assert (charts["treatment"], charts["control"], charts["look_count"]) == ("v2a", "v1a", 3)
    assert sum(charts["treatment_counts"]["requests"]) == 300
    assert {claim["kind"] for claim in charts["claims"]} == {"alarm", "pass", "split"}
    assert charts["verdict"]["sentence"].startswith("Nothing speaks against v2a so far")
    assert detail["history"][0]["what"] == "v1a: 100 % → 90 %; v2a: 0 % → 10 %"
    assert "$KEY" in detail["curl"]
    # The run's page in Airflow shows the same endpoint.
    assert here.read(f"{API}/runs/weekly/run-1")["overview"]["name"] == "digits"


def test_the_end_of_a_version_s_log_is_bounded(here: Surroundings) -> None:
    answer = here.get(f"{ENDPOINT}/versions/v2a/log?tail=5").json()
    assert "init" in answer["text"]
    assert len(answer["text"].splitlines()) <= 5
    assert here.get(f"{ENDPOINT}/versions/v2a/log?tail=100000").status_code == httpx.codes.UNPROCESSABLE_ENTITY


def test_an_unchanged_answer_is_not_sent_again(here: Surroundings) -> None:
    here.read(ENDPOINT)
    first = here.get(f"{ENDPOINT}/versions/v2a/log?tail=5")
    again = here.get(f"{ENDPOINT}/versions/v2a/log?tail=5", **{"If-None-Match": first.headers["etag"]})
    assert (again.status_code, again.content) == (httpx.codes.NOT_MODIFIED, b"")


def test_what_was_read_again_and_is_as_before_is_not_sent_again(here: Surroundings) -> None:
    paths = (ENDPOINT, f"{API}/overview")
    for path in paths:
        here.read(path)
    known = {path: here.get(path) for path in paths}

    def is_read_again() -> bool:
        return all(here.get(path).content != known[path].content for path in paths)

    wait_until(is_read_again, "another reading, with another time", timeout_s=DEADLINE_S, interval_s=0.5)
    for path in paths:
        answer = here.get(path, **{"If-None-Match": known[path].headers["etag"]})
        assert (answer.status_code, answer.content) == (httpx.codes.NOT_MODIFIED, b"")


@pytest.mark.parametrize("written", [quote(SAME_WITH_SLASH, safe=""), SAME_WITH_SLASH], ids=["quoted", "decoded"])
def test_the_id_of_a_connection_may_have_slashes_and_colons(here: Surroundings, written: str) -> None:
    path = f"{API}/workspaces/{written}/endpoints/digits"
    assert here.read(path)["overview"]["workspace"] == SAME_WITH_SLASH
    assert here.get(f"{path}/actions").json()["workspace"] == SAME_WITH_SLASH
    assert "init" in here.get(f"{path}/versions/v1a/log").json()["text"]


def test_what_is_not_there_is_said_with_404(here: Surroundings) -> None:
    here.read(f"{API}/overview")
    for path in (
        "workspaces/secret/endpoints/digits",
        "workspaces/ml/endpoints/nothing",
        "workspaces/ml/endpoints/nothing/actions",
        "workspaces/ml/endpoints/digits/versions/v9z/log",
        "runs/weekly/run-99",
    ):
        answer = here.get(f"{API}/{path}")
        assert (answer.status_code, len(answer.json()["detail"]) > 20) == (httpx.codes.NOT_FOUND, True)


def test_no_answer_has_a_key_or_a_connection_s_password(here: Surroundings) -> None:
    keys = asyncio.run(here.lab.target.keys("digits"))
    paths = (f"{API}/overview", ENDPOINT, f"{ENDPOINT}/versions/v2a/log")
    here.read(ENDPOINT)
    texts = [here.get(path).raise_for_status().text for path in paths]
    assert all(texts)
    for secret in (keys.primary, keys.secondary, "geheim-1", *PASSWORDS.values()):
        assert not any(secret in text for text in texts)


def hold_preview(here: Surroundings) -> dict[str, Any]:
    """Return what the page shows of a hold of the treatment."""
    shown = here.get(f"{ENDPOINT}/actions?percentile=25").raise_for_status().json()["actions"]
    [preview] = [one for one in shown if (one["action"], one["version"]) == ("hold", "v2a")]
    return dict(preview)


def runs_of(here: Surroundings, dag_id: str) -> list[dict[str, Any]]:
    """Return the runs of a DAG."""
    return list(here.get(f"api/v2/dags/{dag_id}/dagRuns", "admin").raise_for_status().json()["dag_runs"])


def test_actions_show_what_they_would_do_and_refused_ones_why(here: Surroundings) -> None:
    shown = here.get(f"{ENDPOINT}/actions?percentile=25").raise_for_status().json()["actions"]
    found = {(one["action"], one["version"]): one for one in shown}

    assert found["shift", "v2a"]["after"] == {"v1a": 75, "v2a": 25}
    assert found["shift", "v2a"]["ends_rollout_of"] == RUN
    assert found["promote", "v2a"]["conf"] == {"conn_id": "ml", "endpoint": "digits", "version": "v2a"}
    assert (found["roll_back", "v1a"]["allowed"], found["roll_back", "v1a"]["after"]) == (False, None)
    assert "first control" in found["roll_back", "v1a"]["refusal"]
    assert here.get(f"{ENDPOINT}/actions?percentile=101").status_code == httpx.codes.UNPROCESSABLE_ENTITY


def test_the_signed_in_user_triggers_the_dag_and_airflow_refuses_a_viewer(here: Surroundings) -> None:
    preview = hold_preview(here)
    conf = {**preview["conf"], "reason": "I want to look at it first"}
    # The page chooses the run's id, so that it may try again where no answer came.
    body = {"dag_run_id": "manual__2026-11-29T05:55:23.123Z_0123456789abcdef", "conf": conf, "logical_date": None}
    path = f"api/v2/dags/{preview['dag_id']}/dagRuns"
    with here.server.client("viewer") as viewer:
        assert viewer.post(path, json=body).status_code == httpx.codes.FORBIDDEN
    with here.server.client() as anonymous:
        assert anonymous.post(path, json=body).status_code == httpx.codes.UNAUTHORIZED
    assert runs_of(here, "hold") == []

    with here.server.client("admin") as admin:
        assert admin.post(
            path, json={"conf": preview["conf"], "logical_date": None}
        ).is_client_error  # without a reason
        triggered = admin.post(path, json=body).raise_for_status().json()
        assert admin.post(path, json=body).status_code == httpx.codes.CONFLICT
    assert len(runs_of(here, "hold")) == 1
    assert (triggered["dag_run_id"], triggered["conf"]) == (body["dag_run_id"], conf)
    assert triggered["triggering_user_name"] == "admin"


def test_a_form_of_another_site_triggers_nothing(here: Surroundings) -> None:
    preview = hold_preview(here)
    body = json.dumps({"conf": {**preview["conf"], "reason": "not mine"}, "logical_date": None})
    before = len(runs_of(here, "hold"))
    with here.server.client() as browser:
        # What a browser would send along, were the cookie not limited to its own site.
        browser.cookies.set("_token", here.server.token("admin"))
        assert browser.get(f"{API}/health").status_code == httpx.codes.OK
        for kind in ("text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x"):
            headers = {"content-type": kind, "origin": "https://elsewhere.example"}
            answer = browser.post(f"api/v2/dags/{preview['dag_id']}/dagRuns", content=body, headers=headers)
            assert answer.is_client_error, kind
        # The plugin's own API changes nothing whatever the method.
        for path in ("overview", "workspaces/ml/endpoints/digits", "workspaces/ml/endpoints/digits/actions"):
            for method in ("POST", "PUT", "PATCH", "DELETE"):
                answer = browser.request(method, f"{API}/{path}", content=body)
                assert answer.status_code == httpx.codes.METHOD_NOT_ALLOWED
    assert len(runs_of(here, "hold")) == before
