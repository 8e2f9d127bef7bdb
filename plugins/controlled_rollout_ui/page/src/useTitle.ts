import { useEffect, useState } from "react";

/** Name the page in the browser's tab as Airflow names its own, such as `digits - Rollouts - Airflow`. */
export function useTitle(name: string): void {
  const [airflow] = useState(() => document.title.split(" - ").at(-1) ?? "");
  // At each answer: the page that was left resets the title after this one was opened.
  useEffect(() => {
    document.title = `${name} - ${airflow}`;
  });
  useEffect(
    () => () => {
      document.title = airflow;
    },
    [airflow],
  );
}
