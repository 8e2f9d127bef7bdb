"""What people see of endpoints, as values that JSON can carry: the answers of the page's API and of the command line.

Times are ISO 8601 in UTC, or seconds since 1970 where they are the points of a chart. Nothing in them is secret.
"""

from typing import Literal

from pydantic import AwareDatetime, BaseModel, ConfigDict

__all__ = [
    "ActionName",
    "ActionPreview",
    "Actions",
    "ClaimSeries",
    "Comparison",
    "EndpointDetail",
    "EndpointOverview",
    "HistoryEntry",
    "LogTail",
    "LookEntry",
    "Mark",
    "Overview",
    "QuantileThreshold",
    "ReplicaCount",
    "RolloutOverview",
    "RunReference",
    "Traffic",
    "VerdictExplanation",
    "VersionCounts",
    "VersionOverview",
    "WorkspaceOverview",
]

ActionName = Literal["promote", "roll_back", "hold", "shift"]
Health = Literal["ready", "not_ready", "failed", "missing"]
State = Literal["needs_person", "on_hold", "trouble", "rolling_out", "steady", "unknown"]
OutcomeName = Literal["pass", "fail", "not_enough_evidence", "cannot_see", "split_is_wrong"]


class ViewModel(BaseModel):
    """An immutable value that is shown; unknown fields raise a validation error."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class RunReference(ViewModel):
    """The DAG run that has done something, for a link to it.

    Attributes:
        dag_id, run_id: The run.
        task_id: The task; None if only the run is known.
    """

    dag_id: str
    run_id: str
    task_id: str | None = None


class Traffic(ViewModel):
    """A version's per cent of the requests.

    Attributes:
        percentile: What is set for it.
        effective: What it should get: the default version gets what no other version has.
        served: What the router has confirmed to send it; None while the router has confirmed nothing.
    """

    percentile: float
    effective: float
    served: float | None = None


class ReplicaCount(ViewModel):
    """How many replicas a version has.

    Attributes:
        ready: How many answer.
        wanted: How many it should have now.
        restarts: How often they have been restarted.
        scaling: Why an autoscaled version should have so many; None if that is not known.
    """

    ready: int
    wanted: int
    restarts: int = 0
    scaling: str | None = None


class VersionOverview(ViewModel):
    """One version of an endpoint.

    Attributes:
        name: Its name.
        role: Control, or treatment.
        is_default: Whether it gets the requests that no percentile assigns.
        traffic: Its per cent of the requests.
        replicas: Its replicas; None if its status is not known.
        health: Whether it answers; `missing` while its status is not known.
        cause: What keeps it from being ready, in a sentence; None if nothing does.
        image: What it runs.
        digest: The image's digest, `sha256:…`; None if the image names none.
        created: When it was created.
        created_by: Who created it: a person, or a task as `dag/run/task`.
        created_reason: The reason that was given.
        created_run: The run of that task; None for a person.
        requests: Requests that the router has sent to it since the router started.
        active: Requests that it is answering now.
        autoscaled: Whether its number of replicas follows the load.
    """

    name: str
    role: Literal["control", "treatment"]
    is_default: bool
    traffic: Traffic
    replicas: ReplicaCount | None
    health: Health
    cause: str | None
    image: str
    digest: str | None
    created: AwareDatetime | None
    created_by: str
    created_reason: str
    created_run: RunReference | None
    requests: int
    active: int
    autoscaled: bool


class RolloutOverview(ViewModel):
    """The rollout that is under way.

    Attributes:
        version: The treatment.
        owner: The run or the person that holds the endpoint.
        run: The run, for a link; None for a person.
        started: Since when.
        held: Since when it is on hold; None if it is not.
        asked: Since when a person is asked; None if nobody is.
        step: The step that it is at, such as `10 %`.
        waiting_for: What it waits for, in a sentence with the numbers.
        outcome: What the newest look has concluded; None without a look.
        looked: When that was.
        silence: After which time without a look it is taken back, in a sentence; None if it is not.
    """

    version: str
    owner: str
    run: RunReference | None
    started: AwareDatetime
    held: AwareDatetime | None
    asked: AwareDatetime | None
    step: str
    waiting_for: str
    outcome: OutcomeName | None
    looked: AwareDatetime | None
    silence: str | None


class EndpointOverview(ViewModel):
    """One endpoint: a row of the overview, and the head of its own page.

    Attributes:
        workspace: The workspace's connection id.
        name: The endpoint's name.
        url: Where callers send their requests.
        auth: How they authenticate: `key`, `token` or `none`.
        revision: The newest stored revision.
        served_revision: The newest revision that the router has confirmed.
        state: What comes first for a person; rows are sorted by it: `needs_person`, `on_hold`, `trouble`, …
        attention: Why a person should look at it, in a sentence; None if nobody has to.
        control: The control's name; None without one.
        versions: Its versions, the control first.
        rollout: The rollout under way; None if there is none.
        waiting_runs: How many other runs wait until they may hold it.
        trouble: What keeps the newest revision from being served; None if nothing does.
        waiting_for: What the newest revision waits for, in a sentence; None if for nothing that is known.
        warnings: What is not as the newest revision asks for, a sentence each.
        certificate_ends: When the router's certificate ends; None without TLS, or if that is not known.
        problem: Why its state could not be read just now, in a sentence: the rest is of `read`; None if it could.
        read: When its state was read.
    """

    workspace: str
    name: str
    url: str
    auth: str
    revision: int
    served_revision: int
    state: State
    attention: str | None
    control: str | None
    versions: tuple[VersionOverview, ...]
    rollout: RolloutOverview | None
    waiting_runs: int
    trouble: str | None
    waiting_for: str | None
    warnings: tuple[str, ...]
    certificate_ends: AwareDatetime | None = None
    problem: str | None = None
    read: AwareDatetime | None = None


class WorkspaceOverview(ViewModel):
    """One workspace and its endpoints.

    Attributes:
        workspace: Its connection id; the part of the API's addresses that names it.
        target: Where its versions run; None if the connection cannot be read.
        problem: Why it does not answer, in a sentence; None if it does. Its endpoints are as they were last seen then.
        read: When it last answered; None if it has not yet.
        loading: Whether it has not been asked before: ask again in a second.
        endpoints: Its endpoints, those first that need a person.
        more: How many endpoints are left out, because the answer would be too long.
    """

    workspace: str
    target: Literal["local", "kubernetes"] | None
    problem: str | None
    read: AwareDatetime | None
    loading: bool
    endpoints: tuple[EndpointOverview, ...]
    more: int = 0


class Overview(ViewModel):
    """Every endpoint of every workspace.

    Attributes:
        workspaces: The workspaces, in the order of the setting `ui_workspaces`.
        poll_seconds: How long a page waits before it asks again.
    """

    workspaces: tuple[WorkspaceOverview, ...]
    poll_seconds: float


class QuantileThreshold(ViewModel):
    """One of control's latency quantiles from before the rollout.

    Attributes:
        quantile: Such as 0.95.
        threshold_ms: The quantile, in milliseconds.
        usual: The share of control's requests that were slower before the rollout, 0 to 1.
    """

    quantile: float
    threshold_ms: float
    usual: float


class VersionCounts(ViewModel):
    """One version's requests over time; each list has a value for each of `Comparison.times`.

    Attributes:
        requests: How many requests.
        error_rate: The share that failed, 0 to 1; None without requests.
        slower: For each of `Comparison.quantiles`: the share that was slower, 0 to 1; None without requests.
    """

    requests: tuple[int, ...]
    error_rate: tuple[float | None, ...]
    slower: tuple[tuple[float | None, ...], ...]


class ClaimSeries(ViewModel):
    """The evidence for one claim over the looks; each list has a value for each of `Comparison.look_times`.

    Attributes:
        name: What is claimed, such as `errors are higher`.
        kind: `alarm`: reaching the threshold fails; `pass`: needed for a pass; `split`: the split is wrong.
        about_data: Whether it is about what versions collect, and not about what callers saw.
        threshold: The e-value that establishes it.
        reached: Whether it ever has.
        e_values: The most evidence so far, at each look; None where the look did not judge it. At most 1e6.
        detail: The numbers behind it at the newest look, in words.
        needed_requests: About how many more treatment requests a `pass` claim needs; None when that cannot be said.
        meaning: What the claim means, for a newcomer.
    """

    name: str
    kind: Literal["alarm", "pass", "split"]
    about_data: bool
    threshold: float
    reached: bool
    e_values: tuple[float | None, ...]
    detail: str
    needed_requests: int | None
    meaning: str


class Mark(ViewModel):
    """A step of the rollout, to be marked on the charts.

    Attributes:
        time: Seconds since 1970.
        label: In a word or two, such as `10 %`.
        who: The person, or the task as `dag/run/task`.
        reason: The reason.
        run: The run of that task; None for a person.
    """

    time: float
    label: str
    who: str
    reason: str
    run: RunReference | None


class LookEntry(ViewModel):
    """One look of the record.

    Attributes:
        time: When.
        outcome: What it concluded.
        reason: Why, in a sentence with the numbers.
        share: The treatment's per cent of the traffic then; None if it is not known.
        control_requests, treatment_requests: How many requests were counted.
    """

    time: AwareDatetime
    outcome: OutcomeName
    reason: str
    share: float | None
    control_requests: int
    treatment_requests: int


class VerdictExplanation(ViewModel):
    """The verdict of the newest look.

    Attributes:
        outcome: Its outcome.
        sentence: What that means, in a sentence that a newcomer understands.
        explanation: What it rests on and what happens next: a few sentences, for "what does this mean".
        reason: The gate's own reason, with the numbers.
        time: When.
    """

    outcome: OutcomeName
    sentence: str
    explanation: tuple[str, ...]
    reason: str
    time: AwareDatetime


class Comparison(ViewModel):
    """A treatment against its control over time, from the record.

    Attributes:
        treatment, control: The two versions.
        started: When the rollout began.
        end: How it ended, such as `promoted`; `under way` if it has not.
        times: The begins of the spans of time that the counts are of, in seconds since 1970.
        span_seconds: How long each of them is.
        quantiles: Control's latency quantiles from before the rollout; empty if latency is not judged.
        treatment_counts, control_counts: The counts.
        shares: The treatment's per cent of the traffic in each span; None where it is not known.
        look_times: The times of the looks that the claims' values are of, in seconds since 1970.
        outcomes: What each of those looks concluded.
        claims: The claims: alarms first.
        marks: The steps.
        verdict: The newest look's; None without one.
        looks: The newest looks, the newest first.
        look_count: How many looks there were: of them at most so many are in `look_times` as a chart can show.
    """

    treatment: str
    control: str
    started: AwareDatetime
    end: str
    times: tuple[float, ...]
    span_seconds: float
    quantiles: tuple[QuantileThreshold, ...]
    treatment_counts: VersionCounts
    control_counts: VersionCounts
    shares: tuple[float | None, ...]
    look_times: tuple[float, ...]
    outcomes: tuple[OutcomeName, ...]
    claims: tuple[ClaimSeries, ...]
    marks: tuple[Mark, ...]
    verdict: VerdictExplanation | None
    looks: tuple[LookEntry, ...]
    look_count: int


class HistoryEntry(ViewModel):
    """One stored revision.

    Attributes:
        revision: Its number.
        time: When it was stored.
        who: The person, or the task as `dag/run/task`.
        reason: The reason.
        what: What it changed, in words, such as `v2a: 0 % → 10 %`.
        run: The run of that task; None for a person.
    """

    revision: int
    time: AwareDatetime
    who: str
    reason: str
    what: str
    run: RunReference | None


class EndpointDetail(ViewModel):
    """One endpoint with all that its page shows.

    Attributes:
        overview: The row of the overview.
        history: Its newest revisions, the newest first.
        older_revisions: How many more are kept.
        comparison: The newest rollout that a gate has looked at; None without one, or while it is read.
        loading: Whether the record is still being read: ask again in a second.
        record_problem: Why the record cannot be read, in a sentence; None if it can.
        curl: A command that sends a request, with the key left out.
        command_line: Commands for a terminal, such as `controlled-rollout status digits`.
    """

    overview: EndpointOverview
    history: tuple[HistoryEntry, ...]
    older_revisions: int
    comparison: Comparison | None
    loading: bool
    record_problem: str | None
    curl: str
    command_line: tuple[str, ...]


class LogTail(ViewModel):
    """The last lines of a version's log.

    Attributes:
        workspace, endpoint, version: Whose.
        text: The lines; at most 64 KiB, characters that act on a terminal made visible.
        cut: Whether older lines are left out.
    """

    workspace: str
    endpoint: str
    version: str
    text: str
    cut: bool


class ActionPreview(ViewModel):
    """What an action would do to an endpoint; the page triggers the DAG as the signed-in user.

    Attributes:
        action: Which.
        version: The version that it is about.
        allowed: Whether it would be refused by the rules of the endpoint; Airflow checks the user's permission itself.
        refusal: Why it is refused, in a sentence; None if it is not.
        summary: What it does, in a sentence.
        before, after: The effective traffic of each version, in per cent; of a refused action `after` is None.
        ends_rollout_of: The run whose rollout it ends; None if it ends none.
        dag_id: The DAG that does it.
        conf: Its `conf`; the page adds `reason`.
    """

    action: ActionName
    version: str
    allowed: bool
    refusal: str | None
    summary: str
    before: dict[str, float]
    after: dict[str, float] | None
    ends_rollout_of: str | None
    dag_id: str
    conf: dict[str, str | float | None]


class Actions(ViewModel):
    """What may be done to an endpoint now.

    Attributes:
        workspace, endpoint: Which endpoint.
        revision: The revision that the previews are of.
        actions: A preview for each action and version.
    """

    workspace: str
    endpoint: str
    revision: int
    actions: tuple[ActionPreview, ...]
