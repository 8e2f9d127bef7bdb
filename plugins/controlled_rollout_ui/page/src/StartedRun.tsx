import { paths } from "./api";
import { Notice, PageLink } from "./Parts";
import { runAddress } from "./routes";
import { usePolled } from "./usePolled";

export type StartedRun = { dagId: string; runId: string; title: string };

type RunState = { state: string };

const ENDS = ["success", "failed"];
const isFinal = (run: RunState) => ENDS.includes(run.state);

/** The run that a person has just started here, until it has ended. */
export const StartedRunNotice = ({ run }: { run: StartedRun }) => {
  const { data, error } = usePolled<RunState>(paths.dagRun(run.dagId, run.runId), { isFinal });
  const state = data?.state ?? "queued";
  const link = <PageLink to={runAddress(run.dagId, run.runId)}>its run</PageLink>;
  if (error)
    return (
      <Notice status="warning" isAnnounced>
        {run.title}: {link} was started, and its state is not known: {error.message}
      </Notice>
    );
  if (state === "failed")
    return (
      <Notice status="error" isAnnounced>
        {run.title}: {link} has failed. Its log says why.
      </Notice>
    );
  if (state === "success")
    return (
      <Notice status="info" isAnnounced>
        {run.title}: {link} has succeeded.
      </Notice>
    );
  return (
    <Notice status="info" isAnnounced>
      {run.title}: {link} is {state}.
    </Notice>
  );
};
