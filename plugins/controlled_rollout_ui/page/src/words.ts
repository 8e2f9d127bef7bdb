import type { ActionPreview, EndpointOverview, LookEntry, VersionOverview } from "./types";

export type ActionName = ActionPreview["action"];
type State = EndpointOverview["state"];

/** States, those first that a person has to look at. */
export const STATES: Record<State, { label: string; palette: string; rank: number }> = {
  needs_person: { label: "Needs a person", palette: "red", rank: 0 },
  on_hold: { label: "On hold", palette: "orange", rank: 1 },
  trouble: { label: "Trouble", palette: "red", rank: 2 },
  unknown: { label: "Unknown", palette: "gray", rank: 3 },
  rolling_out: { label: "Rolling out", palette: "blue", rank: 4 },
  steady: { label: "Steady", palette: "green", rank: 5 },
};

export const OUTCOMES: Record<LookEntry["outcome"], string> = {
  pass: "Pass",
  fail: "Fail",
  not_enough_evidence: "Not enough evidence yet",
  cannot_see: "Cannot see the requests",
  split_is_wrong: "The traffic split is wrong",
};

export const ACTIONS: Record<ActionName, string> = {
  promote: "Promote",
  roll_back: "Roll back",
  hold: "Hold",
  shift: "Shift traffic",
};

const HEALTH: Record<VersionOverview["health"], string> = {
  ready: "ready",
  not_ready: "not ready",
  failed: "failed",
  missing: "not known",
};

/** Per cent as people write it. */
export const percent = (value: number | null | undefined): string =>
  value === null || value === undefined ? "–" : `${Number(value.toFixed(value < 1 ? 2 : 1))}\u00a0%`;

export const count = (value: number): string => value.toLocaleString("en");

export const healthOf = (version: VersionOverview): string => {
  const replicas = version.replicas;
  return replicas
    ? `${HEALTH[version.health]}, ${replicas.ready} of ${replicas.wanted} replicas`
    : HEALTH[version.health];
};

/** A time of the API in this browser's time zone. */
export const localTime = (time: string | number): string =>
  new Date(typeof time === "number" ? time * 1000 : time).toLocaleString(undefined, {
    dateStyle: "medium",
    timeStyle: "medium",
  });
