import type { VersionOverview } from "./types";

/** Palettes of Airflow's theme: the control has the first, treatments the others in turn. */
const CONTROL = "blue";
const TREATMENTS = ["orange", "purple", "teal", "pink"];

/** Return each version's palette by its name. */
export function palettes(versions: readonly VersionOverview[]): Record<string, string> {
  let treatment = 0;
  return Object.fromEntries(
    versions.map((version) => [
      version.name,
      version.role === "control" ? CONTROL : (TREATMENTS[treatment++ % TREATMENTS.length] ?? CONTROL),
    ]),
  );
}
