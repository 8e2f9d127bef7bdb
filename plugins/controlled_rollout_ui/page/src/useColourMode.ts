import { useSyncExternalStore } from "react";

const root = () => document.documentElement;

function subscribe(onChange: () => void): () => void {
  const changes = new MutationObserver(onChange);
  changes.observe(root(), { attributes: true, attributeFilter: ["class", "data-theme"] });
  return () => changes.disconnect();
}

/** Airflow's colour mode, for what is drawn on a canvas: everything else follows the theme by itself. */
export const useColourMode = (): string => useSyncExternalStore(subscribe, () => root().className);
