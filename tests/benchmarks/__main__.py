"""`make bench`: every figure that the documentation states, measured in one run and written to docs/benchmarks.md."""

import argparse
import os
import platform
import statistics
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import astuple
from datetime import UTC, datetime
from pathlib import Path

from controlled_rollout.evidence.collected.spark_engine import SparkEngine
from tests.benchmarks import (
    abuse,
    agent,
    autoscaled_step,
    capture,
    cluster,
    collected_data,
    container_images,
    environment_cache,
    gates,
    import_time,
    overload,
    page_api,
    router,
    router_parts,
    scoring_runtime,
    shipping,
)
from tests.benchmarks.autoscaling import page as autoscaling_page
from tests.benchmarks.load import Figures
from tests.spark_server import MEMORY, serving_spark, why_no_spark

PAGE = Path(__file__).parents[2] / "docs" / "benchmarks.md"

INTRODUCTION = """\
# Figures

Written by `make bench`; each table was measured in one run, the things compared taking turns with the same client, so
that a noisy moment hits all of them. Compare ratios, not absolute figures: client, router and model share the machine.
"""


def table(header: tuple[str, ...], rows: Sequence[tuple[object, ...]]) -> Iterator[str]:
    yield ""
    yield "| " + " | ".join(header) + " |"
    yield "|" + "---|" * len(header)
    for row in rows:
        yield "| " + " | ".join(str(cell) for cell in row) + " |"


def compared(name: str, figures: Figures) -> tuple[object, ...]:
    return (
        name,
        f"{figures.requests_per_second:,.0f}",
        f"{figures.mean_ms:.2f}",
        f"{figures.p50_ms:.2f}",
        f"{figures.p99_ms:.2f}",
    )


HEADER = ("", "requests/s", "mean ms", "p50 ms", "p99 ms")


def machine() -> Iterator[str]:
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    yield ""
    yield (
        f"Measured {datetime.now(UTC):%Y-%m-%d} on {os.cpu_count()} cores, {memory:.0f} GiB, {platform.machine()}, "
        f"Linux {platform.release().split('-')[0]}, Python {platform.python_version()}."
    )


def router_section(seconds: float) -> Iterator[str]:
    yield "\n## The router\n"
    yield (
        "One version with one replica of a trivial model. *Static Envoy*: the same Envoy binary with the least "
        "configuration that forwards. *Router*: keys checked, split, headers set, body limited, one span per request."
    )
    for connections, figures in router.measure(seconds=seconds).items():
        yield f"\n{connections} connection(s):"
        yield from table(HEADER, [compared(name, of) for name, of in figures.items()])
        replica, static, ours = figures["replica"], figures["static Envoy"], figures["router"]
        yield ""
        yield (
            f"Added by the router: {ours.mean_ms - replica.mean_ms:.2f} ms mean, {ours.p99_ms - replica.p99_ms:.2f} ms "
            f"at p99 (static Envoy: {static.mean_ms - replica.mean_ms:.2f} and {static.p99_ms - replica.p99_ms:.2f})."
        )


def router_parts_section() -> Iterator[str]:
    yield "\n## Where the router's time goes\n"
    yield (
        "The router's own configuration in an Envoy of its own for each line, which take turns; at a real-time "
        "priority where that is allowed, so that other work does not decide. Added: to the replica alone. Processor: "
        "of Envoy, for a request."
    )
    for connections in (1, 8):
        parts = router_parts.measure(connections=connections)
        alone = parts.pop("the replica alone")
        rows = [
            (
                name,
                f"{part.mean_ms - alone.mean_ms:.2f}",
                f"{part.p99_ms - alone.p99_ms:.2f}",
                f"{part.processor_us:.0f}",
            )
            for name, part in parts.items()
        ]
        measured = f"mean {alone.mean_ms:.2f} ms, p99 {alone.p99_ms:.2f} ms"
        yield f"\n{connections} connection(s); the replica alone: {measured}:"
        yield from table(("", "added mean ms", "added p99 ms", "processor µs"), rows)
    load_of_the_machine = os.getloadavg()[0]
    yield f"\n(`python -m tests.benchmarks --only router-parts`; load of the machine {load_of_the_machine:.0f}.)"


def overload_section() -> Iterator[str]:
    yield "\n## Overload\n"
    measured = overload.measure()
    yield (
        f"A model that sleeps {1000 * overload.SCORING_S:.0f} ms, in one replica with one slot: it can answer "
        f"{overload.CAPACITY:.0f} requests a second. They come at random times, the same past the router and through "
        "it, and wait for the slot for at most 500 ms. Durations are of those that were answered 200."
    )
    rows = [
        (
            f"{100 * load:.0f} %",
            *(f"{answers.quantile(part):.1f}" for part in (0.5, 0.99) for answers in both),
            f"{both[1].quantile(0.5) - both[0].quantile(0.5):+.1f}",
            *(f"{100 * answers.refused:.1f}" for answers in both),
        )
        for load, both in measured.by_load.items()
    ]
    header = (
        "of the capacity",
        "p50 ms past",
        "through",
        "p99 ms past",
        "through",
        "added ms",
        "refused % past",
        "through",
    )
    yield from table(header, rows)
    yield ""
    alone, beside = measured.alone, measured.beside
    yield (
        "Two endpoints that are asked for 150 % of what they can answer, and a healthy one at 50 % beside them: its "
        f"p99 is {beside.quantile(0.99):.1f} ms, {alone.quantile(0.99):.1f} ms without them "
        f"({beside.quantile(0.99) / alone.quantile(0.99):.2f} times; the goal is 1.2), and "
        f"{100 * beside.refused:.1f} % of its requests are refused ({100 * alone.refused:.1f} %)."
    )


def abuse_section() -> Iterator[str]:
    yield "\n## Abuse\n"
    yield (
        f"Ten bad clients of a kind at once, again and again for {abuse.SECONDS:.0f} s, beside {abuse.RATE:.0f} "
        "requests a second of good callers on a local endpoint and a good reader that queries the "
        "telemetry store twice a second. "
        "All share the machine. Failed is what was not answered 200, or broken; memory is the most that the router, or "
        "any one process of the store, has held until then."
    )
    rows = [
        (
            kind or "none",
            abuse.KINDS[kind][0] if kind else "",
            f"{of.requests:,}",
            of.failed,
            f"{of.p99_ms:.0f}",
            of.queries,
            of.failed_queries,
            f"{of.slowest_query_s:.1f}",
            f"{of.router_mb:.0f}",
            f"{of.store_mb:.0f}",
        )
        for kind, of in abuse.measure().items()
    ]
    header = (
        "ten of",
        "bound",
        "requests",
        "failed",
        "p99 ms",
        "queries",
        "failed",
        "slowest s",
        "router MB",
        "store MB",
    )
    yield from table(header, rows)
    yield "\n(`python -m tests.benchmarks --only abuse`)"


def runtime_section(seconds: float) -> Iterator[str]:
    yield "\n## The scoring runtime\n"
    yield (
        "The same script, one worker, against the stock `azmlinfsrv` command, both with their defaults: the stock one "
        "logs every request and closes the connection after every answer."
    )
    for connections, figures in scoring_runtime.measure(seconds=seconds).items():
        yield f"\n{connections} connection(s):"
        yield from table(HEADER, [compared(name, of) for name, of in figures.items()])
        stock, runtime = figures["stock"], figures["runtime"]
        yield ""
        yield (
            f"Throughput {runtime.requests_per_second / stock.requests_per_second:.2f} times the stock command's; "
            f"p99 {runtime.p99_ms / stock.p99_ms:.2f} times."
        )


def capture_section(seconds: float) -> Iterator[str]:
    yield "\n## Capture\n"
    yield (
        "The same script, which does nothing, in two replicas of one worker, one of which captures; its closed "
        "segments are deleted, as a collector does that has shipped them. *Processor* is what a request takes the "
        "worker."
    )
    rows = []
    for (body, connections), by_name in capture.measure(seconds=seconds / 3).items():
        off, on = by_name["off"], by_name["on"]
        for name, of in by_name.items():
            rows.append((body, connections, *compared(name, of.figures), f"{of.processor_us:.0f}"))
        rows.append(
            (
                "",
                "",
                "ratio",
                *(
                    f"{after / before:.2f}"
                    for before, after in zip(astuple(off.figures), astuple(on.figures), strict=True)
                ),
                f"{on.processor_us / off.processor_us:.2f}",
            )
        )
    yield from table(("body", "connections", "capture", *HEADER[1:], "processor µs"), rows)
    yield "\nWhat one thread takes for a request that does nothing else, in µs of processor time:\n"
    yield from table(
        ("body", "all", "of it in the kernel", "without the spool"),
        [(body, *(f"{us:.1f}" for us in astuple(alone))) for body, alone in capture.measure_alone().items()],
    )
    yield "\n(`python -m tests.benchmarks --only capture`)"


def shipping_section() -> Iterator[str]:
    yield "\n## Shipping\n"
    yield (
        "A collector, as a process of its own, ships what one replica has captured: requests with rows of ten columns, "
        "and answers with a label and a number for each. Rows are those of both, counted in the storage afterwards. "
        "From the collector's start until nothing waits in the spool; Azurite runs on the same machine."
    )
    rows = [
        (
            kind,
            storage,
            f"{of.requests:,}",
            f"{of.rows:,}",
            f"{of.spool_mb:.1f}",
            f"{of.stored_mb:.1f}",
            f"{of.seconds:.1f}",
            f"{of.processor_s:.1f}",
            f"{of.rows / of.seconds:,.0f}",
            f"{of.rows / of.processor_s:,.0f}",
        )
        for (kind, storage), of in shipping.measure().items()
    ]
    header = (
        "a request has",
        "storage",
        "requests",
        "rows",
        "spool, MB",
        "stored, MB",
        "s",
        "s of processor",
        "rows/s",
        "rows/s of processor",
    )
    yield from table(header, rows)
    yield f"\nThe load of the machine was {os.getloadavg()[0]:.0f} on {os.cpu_count()} cores."
    yield "\n(`python -m tests.benchmarks --only shipping`)"


def shift_section() -> Iterator[str]:
    taken = router.shift_seconds()
    yield "\n## A shift\n"
    yield (
        f"From `shift` called to the first answer of the version that has the traffic now, {len(taken)} shifts: median "
        f"{1000 * statistics.median(taken):.0f} ms, slowest {1000 * max(taken):.0f} ms (goal 500 ms)."
    )


def cluster_section(seconds: float) -> Iterator[str]:
    result = cluster.measure(seconds=seconds)
    yield "\n## On Kubernetes\n"
    yield (
        "The lab of `tests/cluster`: one node on this machine, Envoy Gateway, requests from outside by a node port. "
        "Images are there already. One second of every shift measures the load that the version has to be sized for, "
        "half a second compares Envoy's counters with the split."
    )
    yield ""
    yield (
        f"From `deploy` of a new endpoint's first version to its first answer: {result.first_answer_s:.1f} s. From "
        f"`shift` called to the first answer of the version that has the traffic now, {len(result.shifts_s)} shifts: "
        f"median {statistics.median(result.shifts_s):.1f} s, slowest {max(result.shifts_s):.1f} s (goal 3 s)."
    )
    for connections, figures in result.router.items():
        yield f"\n{connections} connection(s):"
        yield from table(HEADER, [compared(name, of) for name, of in figures.items()])
        replica, routed = figures["replica"], figures["router"]
        yield ""
        yield (
            f"Added by the router: {routed.mean_ms - replica.mean_ms:.2f} ms mean, "
            f"{routed.p99_ms - replica.p99_ms:.2f} ms at p99."
        )
    yield "\nAPI requests of each step of a rollout, those for Envoy's counters among them:"
    rows = [(step, *astuple(requests)) for step, requests in result.requests.items()]
    yield from table(("step", "sign-ins", "requests", "of them watches", "of them to Envoy"), rows)


def gates_section() -> Iterator[str]:
    result = gates.measure()
    yield "\n## Gates\n"
    yield (
        f"Gates that look once a minute at bins of a minute, with {gates.BASELINE.seconds // 60} minutes of baseline "
        f"and {gates.ROLLOUT.seconds // 60} minutes of rollout behind them, all in one process as in a triggerer. What "
        f"Airflow imports, and what answers in the place of the endpoints' supervisor, is part of it. The store holds "
        f"{gates.GATES:,} endpoints' requests, {gates.RATE} a minute each, "
        "and takes more of them all the time."
    )
    rows = [
        (
            f"{cost.gates:,}",
            f"{cost.looks:,}",
            f"{cost.cores:.3f}",
            f"{1000 * cost.cores * gates.SECONDS / max(cost.looks, 1):.0f}",
            f"{cost.memory_mb:.0f}",
            f"{cost.first_s:.1f}",
            f"{cost.queries:.1f}",
            f"{cost.store_cores:.3f}",
        )
        for cost in result.values()
    ]
    header = (
        "gates",
        "looks",
        "cores",
        "ms of processor a look",
        "memory, MB",
        "first looks, s of processor",
        "queries a minute",
        "store's cores",
    )
    yield from table(header, rows)
    yield "\n(`python -m tests.benchmarks --only gates`; goal for 1,000: 0.5 cores and 300 MB.)"


def cache_section() -> Iterator[str]:
    yield "\n## Building an image locally"
    rows = [(what, f"{seconds:.3f}") for what, seconds in environment_cache.measure().items()]
    yield from table(("scikit-learn, numpy and the runtime", "s"), rows)


def images_section() -> Iterator[str]:
    yield "\n## Building an image for a cluster"
    yield ""
    yield (
        "Until the registry on this machine has it: scikit-learn, numpy, joblib and the runtime, a model of "
        f"{container_images.MODEL_BYTES / 1e6:.0f} MB. *Plain*: `buildah bud --layers` of a Dockerfile that installs "
        "the same with pip and copies source and model, and `buildah push`. They take turns; medians but for the first."
    )
    rows: list[tuple[object, ...]] = []
    goals = {"nothing has changed": "1", "another model on a known environment": "5"}
    for what, figures in container_images.measure().items():
        ratio = figures.plain / figures.provider
        rows.append((what, f"{figures.provider:.2f}", f"{figures.plain:.2f}", f"{ratio:.1f}", goals.get(what, "")))
    yield from table(("", "s", "plain, s", "times faster", "goal, s"), rows)


def collected_section() -> Iterator[str]:
    yield "\n## Judging collected data"
    yield ""
    yield (
        "Ten million requests with ten columns, half of them each version's, in two hours of a part a minute: four "
        "means and a clipped one, three labels, two numbers in ten buckets of control's quantiles. In one process. "
        "The goals: 3 s for the first look, 1 s for one with a new minute."
    )
    measured = collected_data.measure()
    yield from table(("look", "s", "s of processor"), collected_rows(measured))
    yield ""
    yield f"Memory grows by {measured.grown_mb:.0f} MB."
    yield "\n### Expectations"
    yield ""
    yield (
        "The same requests, and a suite of ten expectations of Great Expectations instead of means and categories. The "
        "first look starts the process that evaluates, which imports the library. The goals: 20 s and 1 GB for the "
        "first look, 1 s for one with a new minute."
    )
    measured = collected_data.measure(gate=collected_data.EXPECTATIONS)
    yield from table(("look", "s", "s of processor"), collected_rows(measured))
    yield ""
    yield (
        f"The processes that evaluate took {measured.together_mb:.0f} MB at most together, what they share counted "
        f"once, and each {measured.largest_mb:.0f} MB at most."
    )


def spark_section() -> Iterator[str]:
    yield "\n## Judging collected data by Spark"
    yield ""
    if why_not := why_no_spark():
        yield f"Not measured: {why_not}."
        return
    yield (
        "The same requests as those that DuckDB judges above, by a Spark Connect server of this machine with two "
        f"processors and {MEMORY} of memory, started for it; processor and memory are the server's, too."
    )
    with tempfile.TemporaryDirectory(prefix="bench-spark-") as folder, serving_spark(Path(folder), java="") as address:
        measured = collected_data.measure(engine=SparkEngine(address))
    yield from table(("look", "s", "s of processor"), collected_rows(measured))
    yield ""
    yield f"The server took {measured.largest_mb:.0f} MB at most."


def collected_rows(measured: collected_data.Measured) -> list[tuple[str, str, str]]:
    return [(what, f"{seconds:.2f}", f"{processor:.2f}") for what, seconds, processor in measured.looks]


def autoscaling_section() -> Iterator[str]:
    yield "\n## Replicas that follow the load\n"
    step = autoscaled_step.measure()
    yield (
        f"A local version of slots for one request each, which takes {autoscaled_step.SLEEP_S:g} s without the "
        f"processor; {autoscaled_step.CALLERS} callers that send again at once. From their first request: the decision "
        f"for more replicas after {step.decided_s:.1f} s (goal 1 s), {step.wanted} replicas ready after "
        f"{step.ready_s:.1f} s; of {step.requests} requests until then {step.refused} were refused, and "
        f"{step.failed} failed otherwise. The machine's load was {os.getloadavg()[0]:.0f} on {os.cpu_count()} cores."
    )
    outcomes = autoscaling_page.simulate_all()
    header = ("curve", "rule", "decided, s", "enough ready, s", "refused", "of all", "replica-seconds", "changes")
    lines = list(table(header, list(autoscaling_page.rows(outcomes))))
    yield "\nSimulated; [what that is](autoscaling.md#beside-other-autoscalers)."
    yield from lines
    yield from (f"\n**Missed**: {sentence}." for sentence in autoscaling_page.complaints(outcomes))
    yield "\n(`python -m tests.benchmarks --only autoscaling`)"
    autoscaling_page.write(PAGE.parent, lines, outcomes)


def import_section() -> Iterator[str]:
    yield "\n## Importing"
    rows = [(what, f"{milliseconds:.1f}") for what, milliseconds in import_time.measure().items()]
    yield from table(("median of fresh interpreters", "ms"), rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=3.0, help="length of one turn (default %(default)s)")
    parser.add_argument("--dry-run", action="store_true", help="print only, leave docs/benchmarks.md as it is")
    parser.add_argument("--only", metavar="SECTION", help="print one section, such as cluster")
    options = parser.parse_args()
    sections = {
        "machine": machine,
        "router": lambda: router_section(options.seconds),
        "router-parts": router_parts_section,
        "shift": shift_section,
        "overload": overload_section,
        "abuse": abuse_section,
        "cluster": lambda: cluster_section(options.seconds),
        "gates": gates_section,
        "runtime": lambda: runtime_section(options.seconds),
        "capture": lambda: capture_section(options.seconds),
        "shipping": shipping_section,
        "cache": cache_section,
        "images": images_section,
        "collected": collected_section,
        "spark": spark_section,
        "autoscaling": autoscaling_section,
        "agent": agent.section,
        "page-api": page_api.section,
        "import": import_section,
    }
    if options.only:
        print("\n".join(sections[options.only]()))
        return
    lines = [INTRODUCTION.rstrip()]
    for section in sections.values():
        for line in section():
            print(line, flush=True)
            lines.append(line)
    if not options.dry_run:
        PAGE.write_text("\n".join(lines) + "\n")
        print(f"\nwritten to {PAGE.relative_to(Path.cwd())}")


if __name__ == "__main__":
    main()
