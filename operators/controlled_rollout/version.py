"""The rules of one version of an endpoint: its name, its settings, their defaults and limits. Pure.

Names and defaults are those of the retired `AksEndpoint` (azureml-core 1.61), with its silent mistakes turned into
errors.
"""

import re
from collections.abc import Iterator, Mapping
from enum import StrEnum
from typing import Annotated, Any, Final, Self

from pydantic import (
    AfterValidator,
    AwareDatetime,
    BeforeValidator,
    Field,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    model_validator,
)

from controlled_rollout.collection_settings import Collection
from controlled_rollout.environment_variables import EnvironmentVariables, SecretReference
from controlled_rollout.errors import EndpointError
from controlled_rollout.value import Value, not_a_bool

__all__ = ["MAX_REPLICAS", "SET_BY_STEPS", "Name", "Version", "VersionType", "check_name", "check_settings"]

NAME_PATTERN: Final = re.compile(r"[a-z]([-a-z0-9]*[a-z0-9])?")
# The same with its length, for a schema.
NAME_SCHEMA: Final = {"pattern": f"^{NAME_PATTERN.pattern}$", "minLength": 3, "maxLength": 32}
# The fields of a version that only the steps of a rollout set: as settings they would bypass the gate.
SET_BY_STEPS: Final = ("name", "image", "traffic_percentile", "is_default", "is_control", "run_date")


def check_name(name: str) -> str:
    """Return a valid name of an endpoint or a version; raise for others (3 to 32 of a-z, 0-9, `-`).

    Raises:
        EndpointError: It may not.
    """
    if not 3 <= len(name) <= 32 or not NAME_PATTERN.fullmatch(name):
        raise EndpointError(
            f"name {name!r} is not valid: use 3 to 32 characters, lower-case letters, digits and hyphens, "
            "beginning with a letter and not ending with a hyphen, such as 'linear-1'"
        )
    return name


def check_settings(settings: Mapping[str, Any]) -> None:
    """Raise EndpointError if the settings of a new version name a field that only the steps of a rollout set.

    Raises:
        EndpointError: They do, or a name is not text.
    """
    forbidden = [str(name) for name in settings if name in SET_BY_STEPS or not isinstance(name, str)]
    if forbidden:
        raise EndpointError(
            f"settings name {', '.join(forbidden)}, which the steps of a rollout set: leave that out. A version begins "
            "at 0 %; shift, promote and roll_back change its traffic and its role"
        )


Name = Annotated[str, Field(strict=True, json_schema_extra={**NAME_SCHEMA}), AfterValidator(check_name)]
Percentile = Annotated[float, BeforeValidator(not_a_bool), Field(strict=True, ge=0, le=100, allow_inf_nan=False)]


# The most replicas of a version, on every target: more is a slip of the keyboard.
MAX_REPLICAS: Final = 1_000
Replicas = Annotated[PositiveInt, Field(le=MAX_REPLICAS)]
# A day at most: replicas that are replaced wait that long for their requests.
Milliseconds = Annotated[PositiveInt, Field(le=86_400_000)]


class VersionType(StrEnum):
    """The role of a version in the comparison."""

    CONTROL = "Control"
    TREATMENT = "Treatment"


class Version(Value):
    """One version of a model behind an endpoint.

    Attributes:
        name: 3 to 32 characters; unique in its endpoint.
        image: What runs: `name@sha256:…`.
        description, tags, properties: For people; nothing here reads them.
        traffic_percentile: Per cent of the endpoint's requests set for this version, 0 to 100. The default version
            also gets what the percentiles leave.
        is_default: Whether it gets the requests that no percentile assigns.
        is_control: Whether the treatments are judged against it.
        cpu_cores, memory_gb: What one replica requests, in cores and gigabytes.
        cpu_cores_limit: How many cores one replica may use at most; None for no limit.
        memory_gb_limit: How much memory one replica may use at most; None for twice `memory_gb`.
        gpu_cores: Whole GPUs for one replica.
        node_selector, tolerations: Which nodes a replica may run on, in Kubernetes' terms; for pools with GPUs.
        num_replicas: A fixed number of replicas; None lets the autoscaler choose.
        autoscale_enabled: True unless `num_replicas` is given.
        autoscale_min_replicas, autoscale_max_replicas: Bounds of the autoscaler.
        autoscale_refresh_seconds: The time between two decisions of the autoscaler.
        autoscale_target_utilization: Per cent of the replicas' slots that should be busy.
        scoring_timeout_ms: A request that takes longer is answered 504.
        replica_max_concurrent_requests: Requests that each of a replica's processes scores at the same time.
        max_request_wait_time: Milliseconds that a request may wait for a replica before it is answered 503.
        worker_count: Scoring processes in one replica; each has its own model.
        environment_variables: What the script finds in its environment, by name: a text, or `{"secret": …, "key": …}`
            for a key of a secret.
        period_seconds, timeout_seconds, success_threshold, failure_threshold: The liveness probe.
        initial_delay_seconds: How long `init()` may take before the version counts as failed.
        collect_model_data: Whether inputs and predictions are kept.
        collection: What is kept of them, and how; None for everything, as Parquet files.
        run_date: When the DAG run that made it was due; None for a version that no DAG run made. A version of an
            earlier run does not replace it.
    """

    name: Name
    image: str = ""
    description: str = ""
    tags: dict[str, str] = Field(default_factory=dict)
    properties: dict[str, str] = Field(default_factory=dict)
    traffic_percentile: Percentile = 0.0
    is_default: bool = False
    is_control: bool = False

    cpu_cores: PositiveFloat = 0.1
    cpu_cores_limit: PositiveFloat | None = None
    memory_gb: PositiveFloat = 0.5
    memory_gb_limit: PositiveFloat | None = None
    gpu_cores: NonNegativeInt = 0
    node_selector: dict[str, str] = Field(default_factory=dict)
    tolerations: tuple[dict[str, Any], ...] = ()

    num_replicas: Replicas | None = None
    autoscale_enabled: bool = True
    autoscale_min_replicas: Replicas = 1
    autoscale_max_replicas: Replicas = 10
    autoscale_refresh_seconds: PositiveInt = 1
    autoscale_target_utilization: Annotated[int, Field(gt=0, le=100)] = 70

    scoring_timeout_ms: Milliseconds = 60_000
    replica_max_concurrent_requests: Annotated[PositiveInt, Field(le=1_000)] = 1
    max_request_wait_time: Milliseconds = 500
    worker_count: Annotated[PositiveInt, Field(le=100)] = 1
    environment_variables: EnvironmentVariables = Field(default_factory=dict)

    period_seconds: PositiveInt = 10
    initial_delay_seconds: PositiveInt = 310
    timeout_seconds: PositiveInt = 2
    success_threshold: PositiveInt = 1
    failure_threshold: PositiveInt = 3

    collect_model_data: bool = False
    collection: Collection | None = None
    run_date: AwareDatetime | None = None

    @model_validator(mode="before")
    @classmethod
    def _fixed_replicas_disable_the_autoscaler(cls, data: Any) -> Any:
        """Turn off the autoscaler for settings that fix the number of replicas."""
        if isinstance(data, Mapping) and data.get("num_replicas") is not None and "autoscale_enabled" not in data:
            return {**data, "autoscale_enabled": False}
        return data

    @model_validator(mode="after")
    def _check_settings(self) -> Self:
        """Raise with all the settings that contradict each other, such as a minimum above the maximum."""
        if faults := [*self._faults_of_replicas(), *self._faults_of_limits(), *self._faults_of_collection()]:
            raise EndpointError("\n".join(f"version {self.name!r} {fault}" for fault in faults))
        return self

    def _faults_of_replicas(self) -> Iterator[str]:
        """Yield what contradicts itself in the number of replicas."""
        if self.num_replicas is not None and self.autoscale_enabled:
            yield f"asks for num_replicas={self.num_replicas} and for the autoscaler: choose one"
        if not self.autoscale_enabled and self.num_replicas is None:
            yield "switches the autoscaler off and gives no num_replicas: give num_replicas"
        fields = {field for field in self.model_fields_set if field.startswith("autoscale_")}
        changed = {field for field in fields - {"autoscale_enabled"} if self._differs_from_default(field)}
        if not self.autoscale_enabled and changed:
            yield f"sets {', '.join(sorted(changed))} without the autoscaler: leave them out"
        if self.autoscale_min_replicas > self.autoscale_max_replicas:
            yield (
                f"asks for at least {self.autoscale_min_replicas} and at most {self.autoscale_max_replicas} replicas: "
                "the minimum may not exceed the maximum"
            )

    def _faults_of_limits(self) -> Iterator[str]:
        """Yield what is limited to less than it requests."""
        for request, limit in (("cpu_cores", "cpu_cores_limit"), ("memory_gb", "memory_gb_limit")):
            requested, maximum = getattr(self, request), getattr(self, limit)
            if maximum is not None and maximum < requested:
                yield (
                    f"asks for {request}={requested} and limits it to {maximum}: a limit may not be below the request"
                )

    def _faults_of_collection(self) -> Iterator[str]:
        """Yield that it says what to keep and keeps nothing, or that its requests would not fit into a spool."""
        if self.collection is not None and not self.collect_model_data:
            yield (
                "has settings of collection and does not collect: set collect_model_data=True, or leave collection out"
            )
        if self.collection is not None and self.worker_count > self.collection.max_workers:
            yield (
                f"has worker_count={self.worker_count}, which share spool_mb={self.collection.spool_mb} MB: a request "
                f"and its answer of max_body_bytes={self.collection.max_body_bytes:,} each would not fit into a "
                "worker's part; give a larger spool_mb or a smaller max_body_bytes"
            )

    def _differs_from_default(self, field: str) -> bool:
        """Return whether a field differs from its default."""
        return bool(getattr(self, field) != type(self).model_fields[field].default)

    @property
    def type(self) -> VersionType:
        """The version's role: control or treatment."""
        return VersionType.CONTROL if self.is_control else VersionType.TREATMENT

    @property
    def collected(self) -> Collection | None:
        """What is kept of the version's inputs and predictions; None if nothing is."""
        return (self.collection or Collection()) if self.collect_model_data else None

    @property
    def secret_references(self) -> tuple[SecretReference, ...]:
        """The keys of secrets that the version needs."""
        values = [*self.environment_variables.values(), self.collection.salt if self.collection else None]
        return tuple(value for value in values if isinstance(value, SecretReference))

    @property
    def longest_answer_ms(self) -> int:
        """The longest that a replica takes to answer, in milliseconds: the wait for a slot, and the scoring."""
        return self.max_request_wait_time + self.scoring_timeout_ms

    @property
    def slots(self) -> int:
        """The requests that one replica scores at the same time, in all its processes."""
        return self.worker_count * self.replica_max_concurrent_requests

    @property
    def replicas_at_start(self) -> int:
        """The number of replicas to start with, before any load is known."""
        return self.num_replicas or self.autoscale_min_replicas
