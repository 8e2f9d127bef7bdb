"""Answers of the page's API for what a real rollout shows only by chance, made of the API's own models."""

import math
from datetime import UTC, datetime, timedelta
from typing import Any, Final
from urllib.parse import unquote, urlsplit

from playwright.sync_api import Page, Route
from pydantic import BaseModel

from controlled_rollout.view.models import (
    ActionPreview,
    Actions,
    ClaimSeries,
    Comparison,
    EndpointDetail,
    EndpointOverview,
    HistoryEntry,
    LogTail,
    LookEntry,
    Mark,
    Overview,
    QuantileThreshold,
    ReplicaCount,
    RolloutOverview,
    RunReference,
    Traffic,
    VerdictExplanation,
    VersionCounts,
    VersionOverview,
    WorkspaceOverview,
)

__all__ = ["HELD", "Api", "detail", "endpoint", "overview"]

NOW: Final = datetime(2026, 3, 2, 3, 0, tzinfo=UTC)
RUN: Final = RunReference(dag_id="retrain_and_deploy", run_id="scheduled__2026-03-02", task_id="rollout.gate_10")
OWNER: Final = "retrain_and_deploy/scheduled__2026-03-02"
WORKSPACE: Final = "controlled_rollout_default"
HELD: Final = "The gate cannot decide: a person has to promote or roll back."
POINTS: Final = 60


def version(name: str, percentile: float, *, is_control: bool = False, **changes: Any) -> VersionOverview:
    """Return a version that is as it should be, but for the changes."""
    served = 100 - percentile if is_control else percentile
    fields: dict[str, Any] = {
        "name": name,
        "role": "control" if is_control else "treatment",
        "is_default": is_control,
        "traffic": Traffic(percentile=0 if is_control else percentile, effective=served, served=served),
        "replicas": ReplicaCount(ready=2, wanted=2),
        "health": "ready",
        "cause": None,
        "image": f"registry.example/digits@sha256:{'4f' * 32}",
        "digest": f"sha256:{'4f' * 32}",
        "created": NOW - timedelta(hours=1),
        "created_by": f"{OWNER}/rollout.roll_out",
        "created_reason": "the weekly retraining",
        "created_run": RUN,
        "requests": 12_345,
        "active": 1,
        "autoscaled": False,
    }
    return VersionOverview.model_validate({**fields, **changes})


def endpoint(name: str = "digits", **changes: Any) -> EndpointOverview:
    """Return an endpoint with a rollout under way, but for the changes."""
    rollout = RolloutOverview(
        version="v2",
        owner=OWNER,
        run=RUN,
        started=NOW - timedelta(minutes=40),
        held=None,
        asked=None,
        step="10 %",
        waiting_for="another 412 treatment requests, about 9 min",
        outcome="not_enough_evidence",
        looked=NOW,
        silence="taken back after 30 min without a look",
    )
    fields: dict[str, Any] = {
        "workspace": WORKSPACE,
        "name": name,
        "url": f"http://127.0.0.1:8088/api/v1/service/{name}/score",
        "auth": "key",
        "revision": 7,
        "served_revision": 7,
        "state": "rolling_out",
        "attention": None,
        "control": "v1",
        "versions": (version("v1", 10, is_control=True), version("v2", 10)),
        "rollout": rollout,
        "waiting_runs": 0,
        "trouble": None,
        "waiting_for": None,
        "warnings": (),
        "read": NOW,
    }
    return EndpointOverview.model_validate({**fields, **changes})


def overview(*endpoints: EndpointOverview, others: tuple[WorkspaceOverview, ...] = ()) -> Overview:
    """Return the answer with these endpoints in one workspace, and other workspaces."""
    mine = WorkspaceOverview(
        workspace=WORKSPACE, target="local", problem=None, read=NOW, loading=False, endpoints=endpoints
    )
    return Overview(workspaces=(mine, *others), poll_seconds=5)


def comparison() -> Comparison:
    """Return a rollout that has shifted to 10 per cent and waits for evidence."""
    begin = (NOW - timedelta(minutes=30)).timestamp()
    times = tuple(begin + 30 * i for i in range(POINTS))
    wave = tuple(0.02 + 0.01 * math.sin(i / 5) for i in range(POINTS))
    claim: dict[str, Any] = {
        "about_data": False,
        "detail": "4 of 312 requests against 31 of 2,801",
        "meaning": "What this claim says.",
    }
    grow = tuple(min(1.08**i, 90.0) for i in range(POINTS))
    return Comparison(
        treatment="v2",
        control="v1",
        started=NOW - timedelta(minutes=30),
        end="under way",
        times=times,
        span_seconds=30,
        quantiles=(QuantileThreshold(quantile=0.95, threshold_ms=43.2, usual=0.05),),
        treatment_counts=VersionCounts(
            requests=tuple(30 + i % 7 for i in range(POINTS)), error_rate=wave, slower=(wave,)
        ),
        control_counts=VersionCounts(
            requests=tuple(280 + i % 9 for i in range(POINTS)), error_rate=wave[::-1], slower=(wave[::-1],)
        ),
        shares=(10.0,) * POINTS,
        look_times=times,
        outcomes=("not_enough_evidence",) * POINTS,
        claims=(
            ClaimSeries(name="errors are higher", kind="alarm", threshold=200, reached=False,
                        e_values=tuple(1 / value for value in grow), needed_requests=None, **claim),
            ClaimSeries(name="errors are not higher", kind="pass", threshold=20, reached=True,
                        e_values=grow, needed_requests=412, **claim),
        ),
        marks=(
            Mark(time=times[4], label="10 %", who=OWNER, reason="the first step", run=RUN),
            Mark(time=times[40], label="50 %", who=OWNER, reason="the gate has passed", run=RUN),
        ),
        verdict=VerdictExplanation(
            outcome="not_enough_evidence",
            sentence="So far nothing speaks against v2, and there is not yet enough to be sure.",
            explanation=("The gate compares both versions.", "It goes on when the evidence is large enough."),
            reason="errors: e-value 12.1 of 20",
            time=NOW,
        ),
        looks=tuple(
            LookEntry(time=NOW - timedelta(minutes=i), outcome="not_enough_evidence", reason="e-value 12.1 of 20",
                      share=10, control_requests=2_801, treatment_requests=312)
            for i in range(5)
        ),
        look_count=60,
    )  # fmt: skip


def detail(shown: EndpointOverview | None = None, **changes: Any) -> EndpointDetail:
    """Return an endpoint's page, but for the changes."""
    shown = shown or endpoint()
    fields: dict[str, Any] = {
        "overview": shown,
        "history": tuple(
            HistoryEntry(revision=7 - i, time=NOW - timedelta(minutes=10 * i), who=OWNER, reason="the gate has passed",
                         what="v2: 0 % → 10 %", run=RUN)
            for i in range(4)
        ),
        "older_revisions": 3,
        "comparison": comparison(),
        "loading": False,
        "record_problem": None,
        "curl": f"curl --header 'Authorization: Bearer <key>' --data '{{}}' {shown.url}",
        "command_line": (f"controlled-rollout status {shown.name}",),
    }  # fmt: skip
    return EndpointDetail.model_validate({**fields, **changes})


def actions(percentile: float = 10) -> Actions:
    """Return previews of all actions: a hold is refused."""
    traffic = {"v1": 90.0, "v2": 10.0}
    after = {"promote": {"v1": 0.0, "v2": 100.0}, "roll_back": {"v1": 100.0, "v2": 0.0}, "hold": None,
             "shift": {"v1": 100 - percentile, "v2": percentile}}  # fmt: skip
    return Actions(
        workspace=WORKSPACE,
        endpoint="digits",
        revision=7,
        actions=tuple(
            ActionPreview.model_validate(
                {
                    "action": name,
                    "version": about,
                    "allowed": then is not None,
                    "refusal": None if then else "the rollout is on hold already",
                    "summary": f"What {name} does to {about}.",
                    "before": traffic,
                    "after": then,
                    "ends_rollout_of": OWNER if name != "shift" else None,
                    "dag_id": name,
                    "conf": {"endpoint": "digits", "version": about},
                }
            )
            for name, then in after.items()
            for about in ("v1", "v2")
        ),
    )


class Api:
    """Answers a page's requests to the API, and counts them.

    Attributes:
        overview: The answer for the overview, or the status and sentence of a refusal.
        detail: The same for each endpoint and for each run.
        asked: The paths that were asked for.
        lost_previews: How many requests for previews of actions are answered 503, from now on.
    """

    def __init__(self, page: Page, shown: EndpointOverview | None = None) -> None:
        self.overview: BaseModel | tuple[int, str] = overview(shown or endpoint())
        self.detail: BaseModel | tuple[int, str] = detail(shown)
        self.asked: list[str] = []
        self.lost_previews = 0
        page.route("**/controlled-rollout/api/**", self._answer)

    def _answer(self, route: Route) -> None:
        path = unquote(urlsplit(route.request.url).path).partition("/controlled-rollout/api/")[2]
        self.asked.append(path)
        answer: BaseModel | tuple[int, str] = self.detail
        if path == "overview":
            answer = self.overview
        elif path.endswith("/actions") and self.lost_previews:
            self.lost_previews -= 1
            answer = (503, "the workspace does not answer")
        elif path.endswith("/actions"):
            answer = actions(float(urlsplit(route.request.url).query.partition("=")[2]))
        elif path.endswith("/log"):
            answer = LogTail(workspace=WORKSPACE, endpoint="digits", version="v2", text="init\nready\n" * 40, cut=True)
        if isinstance(answer, BaseModel):
            route.fulfill(body=answer.model_dump_json(), content_type="application/json")
        else:
            route.fulfill(status=answer[0], json={"detail": answer[1]})
