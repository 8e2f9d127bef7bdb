// Made from operators/controlled_rollout/view/models.py by `scripts/page types`: do not edit.

export interface Answers {
  Overview: Overview;
  EndpointDetail: EndpointDetail;
  LogTail: LogTail;
  Actions: Actions;
}
/**
 * Every endpoint of every workspace.
 *
 * Attributes:
 *     workspaces: The workspaces, in the order of the setting `ui_workspaces`.
 *     poll_seconds: How long a page waits before it asks again.
 */
export interface Overview {
  workspaces: WorkspaceOverview[];
  poll_seconds: number;
}
/**
 * One workspace and its endpoints.
 *
 * Attributes:
 *     workspace: Its connection id; the part of the API's addresses that names it.
 *     target: Where its versions run; None if the connection cannot be read.
 *     problem: Why it does not answer, in a sentence; None if it does. Its endpoints are as they were last seen then.
 *     read: When it last answered; None if it has not yet.
 *     loading: Whether it has not been asked before: ask again in a second.
 *     endpoints: Its endpoints, those first that need a person.
 *     more: How many endpoints are left out, because the answer would be too long.
 */
export interface WorkspaceOverview {
  workspace: string;
  target: ("local" | "kubernetes") | null;
  problem: string | null;
  read: string | null;
  loading: boolean;
  endpoints: EndpointOverview[];
  more: number;
}
/**
 * One endpoint: a row of the overview, and the head of its own page.
 *
 * Attributes:
 *     workspace: The workspace's connection id.
 *     name: The endpoint's name.
 *     url: Where callers send their requests.
 *     auth: How they authenticate: `key`, `token` or `none`.
 *     revision: The newest stored revision.
 *     served_revision: The newest revision that the router has confirmed.
 *     state: What comes first for a person; rows are sorted by it: `needs_person`, `on_hold`, `trouble`, …
 *     attention: Why a person should look at it, in a sentence; None if nobody has to.
 *     control: The control's name; None without one.
 *     versions: Its versions, the control first.
 *     rollout: The rollout under way; None if there is none.
 *     waiting_runs: How many other runs wait until they may hold it.
 *     trouble: What keeps the newest revision from being served; None if nothing does.
 *     waiting_for: What the newest revision waits for, in a sentence; None if for nothing that is known.
 *     warnings: What is not as the newest revision asks for, a sentence each.
 *     certificate_ends: When the router's certificate ends; None without TLS, or if that is not known.
 *     problem: Why its state could not be read just now, in a sentence: the rest is of `read`; None if it could.
 *     read: When its state was read.
 */
export interface EndpointOverview {
  workspace: string;
  name: string;
  url: string;
  auth: string;
  revision: number;
  served_revision: number;
  state: "needs_person" | "on_hold" | "trouble" | "rolling_out" | "steady" | "unknown";
  attention: string | null;
  control: string | null;
  versions: VersionOverview[];
  rollout: RolloutOverview | null;
  waiting_runs: number;
  trouble: string | null;
  waiting_for: string | null;
  warnings: string[];
  certificate_ends: string | null;
  problem: string | null;
  read: string | null;
}
/**
 * One version of an endpoint.
 *
 * Attributes:
 *     name: Its name.
 *     role: Control, or treatment.
 *     is_default: Whether it gets the requests that no percentile assigns.
 *     traffic: Its per cent of the requests.
 *     replicas: Its replicas; None if its status is not known.
 *     health: Whether it answers; `missing` while its status is not known.
 *     cause: What keeps it from being ready, in a sentence; None if nothing does.
 *     image: What it runs.
 *     digest: The image's digest, `sha256:…`; None if the image names none.
 *     created: When it was created.
 *     created_by: Who created it: a person, or a task as `dag/run/task`.
 *     created_reason: The reason that was given.
 *     created_run: The run of that task; None for a person.
 *     requests: Requests that the router has sent to it since the router started.
 *     active: Requests that it is answering now.
 *     autoscaled: Whether its number of replicas follows the load.
 */
export interface VersionOverview {
  name: string;
  role: "control" | "treatment";
  is_default: boolean;
  traffic: Traffic;
  replicas: ReplicaCount | null;
  health: "ready" | "not_ready" | "failed" | "missing";
  cause: string | null;
  image: string;
  digest: string | null;
  created: string | null;
  created_by: string;
  created_reason: string;
  created_run: RunReference | null;
  requests: number;
  active: number;
  autoscaled: boolean;
}
/**
 * A version's per cent of the requests.
 *
 * Attributes:
 *     percentile: What is set for it.
 *     effective: What it should get: the default version gets what no other version has.
 *     served: What the router has confirmed to send it; None while the router has confirmed nothing.
 */
export interface Traffic {
  percentile: number;
  effective: number;
  served: number | null;
}
/**
 * How many replicas a version has.
 *
 * Attributes:
 *     ready: How many answer.
 *     wanted: How many it should have now.
 *     restarts: How often they have been restarted.
 *     scaling: Why an autoscaled version should have so many; None if that is not known.
 */
export interface ReplicaCount {
  ready: number;
  wanted: number;
  restarts: number;
  scaling: string | null;
}
/**
 * The DAG run that has done something, for a link to it.
 *
 * Attributes:
 *     dag_id, run_id: The run.
 *     task_id: The task; None if only the run is known.
 */
export interface RunReference {
  dag_id: string;
  run_id: string;
  task_id: string | null;
}
/**
 * The rollout that is under way.
 *
 * Attributes:
 *     version: The treatment.
 *     owner: The run or the person that holds the endpoint.
 *     run: The run, for a link; None for a person.
 *     started: Since when.
 *     held: Since when it is on hold; None if it is not.
 *     asked: Since when a person is asked; None if nobody is.
 *     step: The step that it is at, such as `10 %`.
 *     waiting_for: What it waits for, in a sentence with the numbers.
 *     outcome: What the newest look has concluded; None without a look.
 *     looked: When that was.
 *     silence: After which time without a look it is taken back, in a sentence; None if it is not.
 */
export interface RolloutOverview {
  version: string;
  owner: string;
  run: RunReference | null;
  started: string;
  held: string | null;
  asked: string | null;
  step: string;
  waiting_for: string;
  outcome: ("pass" | "fail" | "not_enough_evidence" | "cannot_see" | "split_is_wrong") | null;
  looked: string | null;
  silence: string | null;
}
/**
 * One endpoint with all that its page shows.
 *
 * Attributes:
 *     overview: The row of the overview.
 *     history: Its newest revisions, the newest first.
 *     older_revisions: How many more are kept.
 *     comparison: The newest rollout that a gate has looked at; None without one, or while it is read.
 *     loading: Whether the record is still being read: ask again in a second.
 *     record_problem: Why the record cannot be read, in a sentence; None if it can.
 *     curl: A command that sends a request, with the key left out.
 *     command_line: Commands for a terminal, such as `controlled-rollout status digits`.
 */
export interface EndpointDetail {
  overview: EndpointOverview;
  history: HistoryEntry[];
  older_revisions: number;
  comparison: Comparison | null;
  loading: boolean;
  record_problem: string | null;
  curl: string;
  command_line: string[];
}
/**
 * One stored revision.
 *
 * Attributes:
 *     revision: Its number.
 *     time: When it was stored.
 *     who: The person, or the task as `dag/run/task`.
 *     reason: The reason.
 *     what: What it changed, in words, such as `v2a: 0 % → 10 %`.
 *     run: The run of that task; None for a person.
 */
export interface HistoryEntry {
  revision: number;
  time: string;
  who: string;
  reason: string;
  what: string;
  run: RunReference | null;
}
/**
 * A treatment against its control over time, from the record.
 *
 * Attributes:
 *     treatment, control: The two versions.
 *     started: When the rollout began.
 *     end: How it ended, such as `promoted`; `under way` if it has not.
 *     times: The begins of the spans of time that the counts are of, in seconds since 1970.
 *     span_seconds: How long each of them is.
 *     quantiles: Control's latency quantiles from before the rollout; empty if latency is not judged.
 *     treatment_counts, control_counts: The counts.
 *     shares: The treatment's per cent of the traffic in each span; None where it is not known.
 *     look_times: The times of the looks that the claims' values are of, in seconds since 1970.
 *     outcomes: What each of those looks concluded.
 *     claims: The claims: alarms first.
 *     marks: The steps.
 *     verdict: The newest look's; None without one.
 *     looks: The newest looks, the newest first.
 *     look_count: How many looks there were: of them at most so many are in `look_times` as a chart can show.
 */
export interface Comparison {
  treatment: string;
  control: string;
  started: string;
  end: string;
  times: number[];
  span_seconds: number;
  quantiles: QuantileThreshold[];
  treatment_counts: VersionCounts;
  control_counts: VersionCounts;
  shares: (number | null)[];
  look_times: number[];
  outcomes: ("pass" | "fail" | "not_enough_evidence" | "cannot_see" | "split_is_wrong")[];
  claims: ClaimSeries[];
  marks: Mark[];
  verdict: VerdictExplanation | null;
  looks: LookEntry[];
  look_count: number;
}
/**
 * One of control's latency quantiles from before the rollout.
 *
 * Attributes:
 *     quantile: Such as 0.95.
 *     threshold_ms: The quantile, in milliseconds.
 *     usual: The share of control's requests that were slower before the rollout, 0 to 1.
 */
export interface QuantileThreshold {
  quantile: number;
  threshold_ms: number;
  usual: number;
}
/**
 * One version's requests over time; each list has a value for each of `Comparison.times`.
 *
 * Attributes:
 *     requests: How many requests.
 *     error_rate: The share that failed, 0 to 1; None without requests.
 *     slower: For each of `Comparison.quantiles`: the share that was slower, 0 to 1; None without requests.
 */
export interface VersionCounts {
  requests: number[];
  error_rate: (number | null)[];
  slower: (number | null)[][];
}
/**
 * The evidence for one claim over the looks; each list has a value for each of `Comparison.look_times`.
 *
 * Attributes:
 *     name: What is claimed, such as `errors are higher`.
 *     kind: `alarm`: reaching the threshold fails; `pass`: needed for a pass; `split`: the split is wrong.
 *     about_data: Whether it is about what versions collect, and not about what callers saw.
 *     threshold: The e-value that establishes it.
 *     reached: Whether it ever has.
 *     e_values: The most evidence so far, at each look; None where the look did not judge it. At most 1e6.
 *     detail: The numbers behind it at the newest look, in words.
 *     needed_requests: About how many more treatment requests a `pass` claim needs; None when that cannot be said.
 *     meaning: What the claim means, for a newcomer.
 */
export interface ClaimSeries {
  name: string;
  kind: "alarm" | "pass" | "split";
  about_data: boolean;
  threshold: number;
  reached: boolean;
  e_values: (number | null)[];
  detail: string;
  needed_requests: number | null;
  meaning: string;
}
/**
 * A step of the rollout, to be marked on the charts.
 *
 * Attributes:
 *     time: Seconds since 1970.
 *     label: In a word or two, such as `10 %`.
 *     who: The person, or the task as `dag/run/task`.
 *     reason: The reason.
 *     run: The run of that task; None for a person.
 */
export interface Mark {
  time: number;
  label: string;
  who: string;
  reason: string;
  run: RunReference | null;
}
/**
 * The verdict of the newest look.
 *
 * Attributes:
 *     outcome: Its outcome.
 *     sentence: What that means, in a sentence that a newcomer understands.
 *     explanation: What it rests on and what happens next: a few sentences, for "what does this mean".
 *     reason: The gate's own reason, with the numbers.
 *     time: When.
 */
export interface VerdictExplanation {
  outcome: "pass" | "fail" | "not_enough_evidence" | "cannot_see" | "split_is_wrong";
  sentence: string;
  explanation: string[];
  reason: string;
  time: string;
}
/**
 * One look of the record.
 *
 * Attributes:
 *     time: When.
 *     outcome: What it concluded.
 *     reason: Why, in a sentence with the numbers.
 *     share: The treatment's per cent of the traffic then; None if it is not known.
 *     control_requests, treatment_requests: How many requests were counted.
 */
export interface LookEntry {
  time: string;
  outcome: "pass" | "fail" | "not_enough_evidence" | "cannot_see" | "split_is_wrong";
  reason: string;
  share: number | null;
  control_requests: number;
  treatment_requests: number;
}
/**
 * The last lines of a version's log.
 *
 * Attributes:
 *     workspace, endpoint, version: Whose.
 *     text: The lines; at most 64 KiB, characters that act on a terminal made visible.
 *     cut: Whether older lines are left out.
 */
export interface LogTail {
  workspace: string;
  endpoint: string;
  version: string;
  text: string;
  cut: boolean;
}
/**
 * What may be done to an endpoint now.
 *
 * Attributes:
 *     workspace, endpoint: Which endpoint.
 *     revision: The revision that the previews are of.
 *     actions: A preview for each action and version.
 */
export interface Actions {
  workspace: string;
  endpoint: string;
  revision: number;
  actions: ActionPreview[];
}
/**
 * What an action would do to an endpoint; the page triggers the DAG as the signed-in user.
 *
 * Attributes:
 *     action: Which.
 *     version: The version that it is about.
 *     allowed: Whether it would be refused by the rules of the endpoint; Airflow checks the user's permission itself.
 *     refusal: Why it is refused, in a sentence; None if it is not.
 *     summary: What it does, in a sentence.
 *     before, after: The effective traffic of each version, in per cent; of a refused action `after` is None.
 *     ends_rollout_of: The run whose rollout it ends; None if it ends none.
 *     dag_id: The DAG that does it.
 *     conf: Its `conf`; the page adds `reason`.
 */
export interface ActionPreview {
  action: "promote" | "roll_back" | "hold" | "shift";
  version: string;
  allowed: boolean;
  refusal: string | null;
  summary: string;
  before: {
    [k: string]: number;
  };
  after: {
    [k: string]: number;
  } | null;
  ends_rollout_of: string | null;
  dag_id: string;
  conf: {
    [k: string]: string | number | null;
  };
}
