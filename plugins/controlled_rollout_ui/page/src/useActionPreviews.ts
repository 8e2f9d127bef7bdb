import { useEffect, useState } from "react";

import { paths, RequestError, requestUntilAnswered } from "./api";
import type { ActionPreview, Actions, EndpointOverview } from "./types";
import type { ActionName } from "./words";

const TYPING_MS = 400;
// The share that previews are asked for while none can be entered.
const ANY_SHARE = 10;
const ASKED_AGAIN = "It is asked again.";

export type Previews = {
  preview: ActionPreview | undefined;
  /** Whether the preview is of the share that is entered now, and it is known whether its DAG is paused. */
  isCurrent: boolean;
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
  const [answer, setAnswer] = useState<{ share: number; actions: Actions }>();
  const [error, setError] = useState("");
  const share = action !== "shift" ? ANY_SHARE : percentile.trim() === "" ? Number.NaN : Number(percentile);
  const isShare = share >= 0 && share <= 100;

  // biome-ignore lint/correctness/useExhaustiveDependencies: another revision makes the previews untrue.
  useEffect(() => {
    if (!isShare) {
      setAnswer(undefined);
      setError("A share of the traffic is from 0 to 100 per cent.");
      return;
    }
    const controller = new AbortController();
    const { signal } = controller;
    const ask = () =>
      requestUntilAnswered<Actions>(paths.actions(workspace, name, share), signal, (failure) =>
        setError(`${failure.message} ${ASKED_AGAIN}`),
      ).then(
        (actions) => {
          setAnswer({ share, actions });
          setError("");
        },
        (failure: Error) => signal.aborted || setError(failure.message),
      );
    const timer = setTimeout(ask, answer ? TYPING_MS : 0);
    return () => {
      clearTimeout(timer);
      controller.abort();
    };
  }, [workspace, name, share, isShare, revision]);

  const preview = answer?.actions.actions.find((one) => one.action === action && one.version === version);
  const { isKnown, ...dag } = useDag(preview?.dag_id);
  const missing = answer && !preview ? `Version ${version} is not in endpoint ${name} any more.` : "";
  return { preview, isCurrent: isKnown && answer?.share === share && !error, error: error || missing, ...dag };
}

/** Ask whether a DAG is there, and whether it is paused. */
function useDag(dagId: string | undefined): { isKnown: boolean; dagProblem: string; isPaused: boolean } {
  const [state, setState] = useState({ dagId: "", dagProblem: "", isPaused: false });
  useEffect(() => {
    if (!dagId) return;
    const controller = new AbortController();
    const { signal } = controller;
    const onFailure = (failure: Error) =>
      setState({ dagId, dagProblem: `${failure.message} ${ASKED_AGAIN}`, isPaused: false });
    requestUntilAnswered<{ is_paused: boolean }>(paths.dag(dagId), signal, onFailure).then(
      ({ is_paused }) => setState({ dagId, dagProblem: "", isPaused: is_paused }),
      (failure: Error) => {
        if (signal.aborted) return;
        const isMissing = failure instanceof RequestError && failure.status === 404;
        const dagProblem = isMissing
          ? `This Airflow has no DAG ${dagId}: add dags/${dagId}.py of the project to its DAGs.`
          : failure.message;
        setState({ dagId, dagProblem, isPaused: false });
      },
    );
    return () => controller.abort();
  }, [dagId]);
  const isKnown = state.dagId === dagId;
  return { isKnown, dagProblem: isKnown ? state.dagProblem : "", isPaused: isKnown && state.isPaused };
}
