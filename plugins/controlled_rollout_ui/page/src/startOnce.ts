import { isTransient, paths, RequestError, request, send } from "./api";

const TRIES = 3;
const PAUSE_MS = 2_000;
const CONFLICT = 409;

export type Conf = Record<string, unknown>;

/** Return an id for a run that a person starts; not `randomUUID`, which browsers lack on pages without TLS. */
export function newRunId(): string {
  const random = Array.from(crypto.getRandomValues(new Uint8Array(8)), (byte) => byte.toString(16).padStart(2, "0"));
  return `manual__${new Date().toISOString()}_${random.join("")}`;
}

/**
 * Start a run of a DAG, and try again where no answer came: a try that was received after all is found by its id, and
 * no second run is started.
 */
export async function startOnce(dagId: string, runId: string, conf: Conf): Promise<void> {
  for (let tries = 1; ; tries += 1) {
    try {
      await send("POST", paths.dagRuns(dagId), { dag_run_id: runId, conf, logical_date: null });
      return;
    } catch (error) {
      if (error instanceof RequestError && error.status === CONFLICT) return checkIsSame(dagId, runId, conf);
      if (!isTransient(error)) throw error;
      if (tries === TRIES)
        throw new Error(
          `${error instanceof Error ? error.message : error} Whether the run was started is not known: try again here, and it is not started twice.`,
        );
      await new Promise((resolve) => setTimeout(resolve, PAUSE_MS));
    }
  }
}

/** Throw an error if the run that an earlier try has started is about something else. */
async function checkIsSame(dagId: string, runId: string, conf: Conf): Promise<void> {
  const { data } = await request<{ conf: Conf | null }>(paths.dagRun(dagId, runId));
  const started = data.conf ?? {};
  if (Object.entries(conf).every(([name, value]) => started[name] === value)) return;
  throw new Error(
    `An earlier try in this dialog was received after all: the run ${runId} of the DAG ${dagId} was started with what was entered then. Close this dialog and see what it does.`,
  );
}
