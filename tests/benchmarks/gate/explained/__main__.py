"""`python -m tests.benchmarks.gate.explained`: draws docs/statistics-*.svg and prints the figures that the page has."""

import os
from pathlib import Path

# numpy's own threads would only take the processors from others.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

from tests.benchmarks.gate.explained.evidence import evidence, looking_often, outcomes
from tests.benchmarks.gate.explained.traffic import bursts, late, quantiles

DOCS = Path(__file__).parents[4] / "docs"
PICTURES = {
    "evidence": evidence,
    "looking-often": looking_often,
    "outcomes": outcomes,
    "quantiles": quantiles,
    "bursts": bursts,
    "late": late,
}


def main() -> None:
    for name, draw in PICTURES.items():
        svg, figures = draw()
        (DOCS / f"statistics-{name}.svg").write_text(svg)
        print(f"{name}: {figures}", flush=True)


if __name__ == "__main__":
    main()
