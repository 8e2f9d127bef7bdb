/** Where the page is below Airflow's base address; `endpoint_page_url` in Python gives the same addresses. */
export const HOME = "/plugin/controlled-rollout";

export const endpointAddress = (workspace: string, endpoint: string): string =>
  `${HOME}/${encodeURIComponent(workspace)}/${encodeURIComponent(endpoint)}`;

export const runAddress = (dagId: string, runId: string): string =>
  `/dags/${encodeURIComponent(dagId)}/runs/${encodeURIComponent(runId)}`;
