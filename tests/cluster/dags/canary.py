"""A DAG that rolls out an image beside an endpoint's control, and waits for long at its first step."""

from airflow.sdk import DAG, Param

from controlled_rollout import ControlledRollout

with DAG(
    "canary",
    schedule=None,
    params={name: Param("", type="string") for name in ("endpoint", "image", "silence")},
) as dag:
    ControlledRollout(
        "rollout",
        endpoint="{{ params.endpoint }}",
        image="{{ params.image }}",
        steps=(10,),
        # Its looks do not come to a decision.
        gate={"warm_up": "1 h", "latency_quantiles": []},
        bake="2 h",
        decision_timeout="1 d",
        interval="1 s",
        bin_width="1 s",
        allowed_lag="10 s",
        baseline_length="30 s",
        silence="{{ params.silence }}",
        settings={"cpu_cores": 0.05, "memory_gb": 0.2, "num_replicas": 1, "max_request_wait_time": 5_000},
    )
