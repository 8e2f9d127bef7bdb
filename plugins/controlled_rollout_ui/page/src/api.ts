/** Requests to this server: the plugin's API, and Airflow's own. All addresses are below the page's `<base>`. */

/** A request that was refused or not answered; the message is a sentence for people. */
export class RequestError extends Error {
  constructor(
    readonly status: number,
    message: string,
  ) {
    super(message);
  }
}

export type Answer<T> = { data: T; etag: string | null };

const TIMEOUT_MS = 20_000;
const part = encodeURIComponent;
const endpoint = (workspace: string, name: string) =>
  `controlled-rollout/api/workspaces/${part(workspace)}/endpoints/${part(name)}`;

export const paths = {
  overview: "controlled-rollout/api/overview",
  endpoint,
  actions: (workspace: string, name: string, percentile: number) =>
    `${endpoint(workspace, name)}/actions?percentile=${percentile}`,
  log: (workspace: string, name: string, version: string) =>
    `${endpoint(workspace, name)}/versions/${part(version)}/log?tail=200`,
  runRollout: (dagId: string, runId: string) => `controlled-rollout/api/runs/${part(dagId)}/${part(runId)}`,
  dag: (dagId: string) => `api/v2/dags/${part(dagId)}`,
  dagRuns: (dagId: string) => `api/v2/dags/${part(dagId)}/dagRuns`,
  dagRun: (dagId: string, runId: string) => `api/v2/dags/${part(dagId)}/dagRuns/${part(runId)}`,
};

/** Send a request as the signed-in user; the browser revalidates what it has by the answer's ETag. */
export async function request<T>(path: string, options: RequestInit = {}): Promise<Answer<T>> {
  const timeout = AbortSignal.timeout(TIMEOUT_MS);
  const signal = options.signal ? AbortSignal.any([options.signal, timeout]) : timeout;
  let response: Response;
  try {
    response = await fetch(new URL(path, document.baseURI), { cache: "no-cache", ...options, signal });
  } catch (error) {
    if (options.signal?.aborted) throw error;
    throw new RequestError(0, `Airflow's server does not answer (${error instanceof Error ? error.message : error}).`);
  }
  if (!response.ok) throw new RequestError(response.status, await explain(response));
  return { data: (await response.json()) as T, etag: response.headers.get("etag") };
}

/** Whether a later try may succeed: nobody answered, or the server or a proxy before it cannot now. */
export const isTransient = (error: unknown): boolean =>
  error instanceof RequestError && (error.status === 0 || error.status >= 500);

const RETRY_MS = [1_000, 2_000, 4_000, 8_000, 15_000];

/** Wait, longer after each try; reject when the signal is aborted. */
export function pause(tries: number, signal: AbortSignal): Promise<void> {
  return new Promise((resolve, reject) => {
    const timer = setTimeout(resolve, RETRY_MS[Math.min(tries, RETRY_MS.length - 1)]);
    const stop = () => {
      clearTimeout(timer);
      reject(signal.reason);
    };
    signal.addEventListener("abort", stop, { once: true });
  });
}

/** Send a request again until it is answered or refused; `onFailure` learns of each try that was not. */
export async function requestUntilAnswered<T>(
  path: string,
  signal: AbortSignal,
  onFailure: (error: RequestError) => void,
): Promise<T> {
  for (let tries = 0; ; tries += 1) {
    try {
      return (await request<T>(path, { signal })).data;
    } catch (error) {
      if (signal.aborted || !isTransient(error)) throw error;
      onFailure(error as RequestError);
      await pause(tries, signal);
    }
  }
}

/** Send a change as JSON. */
export function send<T>(method: "POST" | "PATCH", path: string, body: object): Promise<Answer<T>> {
  return request<T>(path, { method, body: JSON.stringify(body), headers: { "content-type": "application/json" } });
}

async function explain(response: Response): Promise<string> {
  if (response.status === 401) return "You are signed out: reload the page to sign in again.";
  const text = await response.text();
  try {
    const { detail } = JSON.parse(text) as { detail?: unknown };
    if (typeof detail === "string") return detail;
    if (detail !== undefined) return JSON.stringify(detail).slice(0, 300);
  } catch {
    // Not of Airflow but of a proxy before it: the status has to do.
  }
  return `Airflow's server answered with status ${response.status}.`;
}
