"""Summarises parts by a classic session of Spark, in a process whose PySpark is Spark itself; speaks pickle."""

import pickle
import sys

from controlled_rollout.evidence.collected.spark_engine import SparkEngine
from tests.spark_server import JAVA_OPTIONS, MEMORY


def main() -> None:
    """Answer one call of `summaries`."""
    from pyspark.sql import SparkSession

    asked = pickle.load(sys.stdin.buffer)  # noqa: S301
    settings = {
        "spark.driver.bindAddress": "127.0.0.1",
        "spark.driver.extraJavaOptions": JAVA_OPTIONS,
        "spark.driver.memory": MEMORY,
        "spark.sql.shuffle.partitions": "2",
        "spark.ui.enabled": "false",
    }
    session = SparkSession.builder.master("local[2]").config(map=settings).getOrCreate()
    found = SparkEngine(session=session).summaries(
        asked["parts"], asked["observations"], since=asked["since"], bin_width=asked["bin_width"]
    )
    pickle.dump(found, sys.stdout.buffer)
    session.stop()


if __name__ == "__main__":
    main()
