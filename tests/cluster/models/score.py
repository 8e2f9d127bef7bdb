"""Answers every request with the version that answered; `behaviour.json` beside this file says what it does besides.

The environment variable STARTS_PROCESSES lets it start a pool of processes and one that never ends by itself.
A request `{"sleep_s": 1}` takes that long; `{"variables": ["A"]}` asks for environment variables;
`{"breaks_off": true}` for a streamed answer that fails after its first part; `{"age": 41}` for a label.
"""

import json
import multiprocessing
import os
import random
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

processes: list[object] = []
behaviour = json.loads(Path(__file__).with_name("behaviour.json").read_text())
requests = 0


def init() -> None:
    time.sleep(behaviour["init_s"])
    if behaviour["init_error"]:
        raise RuntimeError(behaviour["init_error"])
    if os.environ.get("STARTS_PROCESSES"):
        process = multiprocessing.Process(target=time.sleep, args=(3600,))
        process.start()
        pool = ProcessPoolExecutor(2)
        pool.submit(os.getpid).result()
        processes.extend([process, pool])
    print("loaded", behaviour["version"])  # noqa: T201 - what a model prints is its log


def run(data: str) -> Any:
    global requests
    requests += 1
    if behaviour["dies_after"] and requests > behaviour["dies_after"]:
        os._exit(70)
    asked = json.loads(data or "{}")
    time.sleep(behaviour["delay_ms"] / 1000 + asked.get("sleep_s", 0))
    if random.random() < behaviour["failing_share"]:
        raise RuntimeError("injected: this request fails")
    if asked.get("breaks_off"):
        from flask import Response

        return Response(broken_off())
    if "age" in asked:
        return {"version": behaviour["version"], "label": behaviour["label"] or "abc"[asked["age"] % 3]}
    variables = {name: os.environ.get(name) for name in asked.get("variables", ())}
    return {"version": behaviour["version"], "data": data, "variables": variables}


def broken_off() -> Iterator[bytes]:
    yield b"the first part,"
    # In its own time: the router has passed the first part on.
    time.sleep(0.2)
    raise RuntimeError("injected: this answer fails in the middle")
