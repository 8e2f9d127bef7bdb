import { useEffect, useState } from "react";

import { paths, RequestError, request } from "./api";
import type { ActionPreview, Actions, EndpointOverview } from "./types";
import type { ActionName } from "./words";

const TYPING_MS = 400;

export type Previews = {
  preview: ActionPreview | undefined;
  /** Why there is no preview, in a sentence. */
  error: string;
  /** Why the DAG of the action cannot be started, in a sentence. */
  dagProblem: string;
  isPaused: boolean;
};

/** Ask what an action would do now, and whether its DAG can be started; again when another action is chosen. */
export function useActionPreviews(
  { workspace, name, revision }: EndpointOverview,
  version: string,
  action: ActionName,
  percentile: string,
): Previews {
  const [actions, setActions] = useState<Actions>();
  const [error, setError] = useState("");
  const share = percentile.trim() === "" ? Number.NaN : Number(percentile);
  const isShare = share >= 0 && share <= 100;

  // biome-ignore lint/correctness/useExhaustiveDependencies: another revision makes the previews untrue.
  useEffect(() => {
    if (!isShare) {
      setActions(undefined);
      setError("A share of the traffic is from 0 to 100 per cent.");
      return;
    }
    const controller = new AbortController();
    const ask = () =>
      request<Actions>(paths.actions(workspace, name, share), { signal: controller.signal }).then(
        ({ data }) => {
          setActions(data);
          setError("");
        },
        (failure: Error) => controller.signal.aborted || setError(failure.message),
      );
    const timer = setTimeout(ask, actions ? TYPING_MS : 0);
    return () => {
      clearTimeout(timer);
      controller.abort();
    };
  }, [workspace, name, share, isShare, revision]);

  const preview = actions?.actions.find((one) => one.action === action && one.version === version);
  const dag = useDag(preview?.dag_id);
  const missing = actions && !preview ? `Version ${version} is not in endpoint ${name} any more.` : "";
  return { preview, error: error || missing, ...dag };
}

/** Ask whether a DAG is there, and whether it is paused. */
function useDag(dagId: string | undefined): { dagProblem: string; isPaused: boolean } {
  const [state, setState] = useState({ dagProblem: "", isPaused: false });
  useEffect(() => {
    if (!dagId) return;
    const controller = new AbortController();
    request<{ is_paused: boolean }>(paths.dag(dagId), { signal: controller.signal }).then(
      ({ data }) => setState({ dagProblem: "", isPaused: data.is_paused }),
      (failure: Error) => {
        if (controller.signal.aborted) return;
        const isMissing = failure instanceof RequestError && failure.status === 404;
        const dagProblem = isMissing
          ? `This Airflow has no DAG ${dagId}: add dags/${dagId}.py of the project to its DAGs.`
          : failure.message;
        setState({ dagProblem, isPaused: false });
      },
    );
    return () => controller.abort();
  }, [dagId]);
  return state;
}
