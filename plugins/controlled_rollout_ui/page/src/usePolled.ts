import { useEffect, useState } from "react";

import { RequestError, request } from "./api";

const FIRST_TRY_AGAIN_MS = 1_000;
const FIRST_TRIES = 2;
const POLL_MS = 5_000;
const MAX_POLL_MS = 60_000;

export type Polled<T> = {
  data: T | undefined;
  /** Why the newest request failed; the data are then of an earlier one. */
  error: RequestError | undefined;
};

type Options<T> = {
  /** Whether the server is still reading: the first two times it is asked again after a second. */
  isLoading?: (data: T) => boolean;
  /** Whether nothing will change any more. */
  isFinal?: (data: T) => boolean;
};

type Poll<T> = {
  path: string;
  signal: AbortSignal;
  options: Options<T>;
  onData: (data: T) => void;
  onError: (error: RequestError) => void;
};

/** Ask every five seconds, not at all while the page is hidden, and ever more seldom while requests fail. */
function poll<T>({ path, signal, options, onData, onError }: Poll<T>): void {
  let timer: ReturnType<typeof setTimeout> | undefined;
  let nextAt = performance.now();
  let asking = false;
  let over = false;
  let failures = 0;
  let firstTries = FIRST_TRIES;
  let etag: string | null = null;

  const stop = () => clearTimeout(timer);
  const schedule = () => {
    stop();
    if (!document.hidden && !asking && !over && !signal.aborted) {
      timer = setTimeout(ask, Math.max(0, nextAt - performance.now()));
    }
  };
  const wait = (data: T): number => {
    if (firstTries > 0 && options.isLoading?.(data)) {
      firstTries -= 1;
      return FIRST_TRY_AGAIN_MS;
    }
    firstTries = 0;
    return POLL_MS;
  };
  const ask = async () => {
    asking = true;
    const begun = performance.now();
    try {
      const answer = await request<T>(path, { signal });
      failures = 0;
      nextAt = begun + wait(answer.data);
      over = options.isFinal?.(answer.data) ?? false;
      if (answer.etag === null || answer.etag !== etag) onData(answer.data);
      etag = answer.etag;
    } catch (error) {
      if (signal.aborted) return;
      failures += 1;
      etag = null;
      nextAt = begun + Math.min(POLL_MS * 2 ** (failures - 1), MAX_POLL_MS);
      onError(error instanceof RequestError ? error : new RequestError(0, String(error)));
    } finally {
      asking = false;
      schedule();
    }
  };
  const onVisibility = () => (document.hidden ? stop() : schedule());
  document.addEventListener("visibilitychange", onVisibility, { signal });
  signal.addEventListener("abort", stop, { once: true });
  schedule();
}

/** Keep the answer of an address up to date; an undefined path asks for nothing. */
export function usePolled<T>(path: string | undefined, options: Options<T> = {}): Polled<T> {
  const [state, setState] = useState<Polled<T> & { path?: string }>({ data: undefined, error: undefined });
  const { isLoading, isFinal } = options;
  useEffect(() => {
    if (path === undefined) return;
    const controller = new AbortController();
    poll<T>({
      path,
      signal: controller.signal,
      options: { isLoading, isFinal },
      onData: (data) => setState({ path, data, error: undefined }),
      onError: (error) => setState((old) => ({ path, data: old.path === path ? old.data : undefined, error })),
    });
    return () => controller.abort();
  }, [path, isLoading, isFinal]);
  return state.path === path ? state : { data: undefined, error: undefined };
}
