"""What the file of an endpoint says: its settings, its versions, and how they are rolled out. Pure.

The names are those of `Version`, and of the arguments of `ControlledRollout`. `deploy -f` takes from the file what no
option gives.
"""

from typing import Annotated, Any, Final, Literal

from pydantic import Field, NonNegativeInt
from pydantic.json_schema import SkipJsonSchema

from controlled_rollout.defaults import (
    BAKE,
    CONFLICT_TIMEOUT,
    DECISION_TIMEOUT,
    KEEP_WARM,
    READY_TIMEOUT,
    SILENCE,
    STEPS,
)
from controlled_rollout.duration import Duration
from controlled_rollout.endpoint import MAX_VERSIONS, Auth
from controlled_rollout.errors import ArgumentError
from controlled_rollout.evidence import EvidenceWindow
from controlled_rollout.gate import Gate
from controlled_rollout.rollout import OnSilence
from controlled_rollout.sticky import Sticky
from controlled_rollout.tokens import TokenIssuer
from controlled_rollout.value import Value
from controlled_rollout.version import SET_BY_STEPS, Name, Version

__all__ = ["BuildSettings", "EndpointFile", "RolloutSettings", "VersionSettings"]

# Empty where `--image` names it, or where it is not built yet.
IMAGE: Final = r"^$|^[^@\s]+@sha256:[0-9a-f]{64}$"
IMAGES: Final = [f"registry.example/models/digits@sha256:{'1' * 64}"]


class BuildSettings(Value):
    """What an image is built of: the arguments of `controlled-rollout build`.

    Attributes:
        folder: The project folder with the entry script; a relative path starts at this file's folder.
        name: The image's name, such as `models/digits`; null for the endpoint's name.
        environment: The environment's file, relative to the project folder; null for the one that is in it.
        entry_script: The file with `init()` and `run(...)`, relative to the project folder.
        models: The models by name: a file, a folder, or an address; a relative path starts at this file's folder.
    """

    folder: str
    name: str | None = None
    environment: str | None = None
    entry_script: str = "score.py"
    models: dict[str, str] = Field(default={}, max_length=1_000)


class VersionSettings(Version):
    """A version in the file of an endpoint.

    Attributes:
        image: What runs: `name@sha256:…`; empty with `build`, or with the option `--image`.
        build: What its image is built of before it is deployed, unless `image` names one.
        traffic_percentile: The per cent of the traffic that it is to have. `deploy` creates it at 0 %, and says which
            `shift` leads to this.
        is_default, is_control: What it is to be; `promote` makes a version both, and an endpoint's first version is.
    """

    name: SkipJsonSchema[Name]
    run_date: SkipJsonSchema[None] = None
    image: Annotated[str, Field(pattern=IMAGE, examples=IMAGES)] = ""
    build: BuildSettings | None = None

    @property
    def settings(self) -> dict[str, Any]:
        """The fields that the file names, as the argument `settings` of the step `deploy`."""
        fields = self.model_dump(exclude_unset=True, exclude={*SET_BY_STEPS, "build"})
        if self.num_replicas is not None:
            del fields["autoscale_enabled"]  # which follows from it
        return fields


class RolloutSettings(Value):
    """How the endpoint's versions are rolled out; the names are the arguments of `ControlledRollout`.

    Attributes:
        steps: The version's per cent of the traffic at each step, ascending: of `plan`.
        gate: What it has to show, or the file that says it, from this file's folder: of `plan` and `gate`.
        bake: The least time at each step: of `plan` and `gate`.
        min_requests: The fewest requests at each step: of `plan` and `gate`.
        decision_timeout: How long a gate waits for a decision: of `plan` and `gate`.
        bin_width: The length of a time bin of the evidence: of `plan` and `gate`.
        allowed_lag: How late telemetry may arrive: of `plan` and `gate`.
        baseline_length: How far before the rollout control's latency is taken from: of `plan` and `gate`.
        keep_warm: How long the former control stays: of `plan`.
        on_silence: What happens to the version while it has traffic and nobody has looked for `silence`: of `deploy`.
        silence: How long that is: of `deploy`.
        on_conflict: What `deploy` does while somebody else's rollout holds the endpoint.
        conflict_timeout: How long it waits for that.
        ready_timeout: How long the version may take to become ready: of `deploy`.
    """

    steps: Annotated[tuple[Annotated[float, Field(gt=0, le=100)], ...], Field(min_length=1)] = STEPS
    gate: Gate | str | None = None
    bake: Duration = BAKE
    min_requests: NonNegativeInt = 0
    decision_timeout: Duration = DECISION_TIMEOUT
    bin_width: Duration = EvidenceWindow().bin_width
    allowed_lag: Duration = EvidenceWindow().allowed_lag
    baseline_length: Duration = EvidenceWindow().baseline_length
    keep_warm: Duration = KEEP_WARM
    on_silence: OnSilence = OnSilence.KEEP
    silence: Duration = SILENCE
    on_conflict: Literal["fail", "wait"] = "fail"
    conflict_timeout: Duration = CONFLICT_TIMEOUT
    ready_timeout: Duration = READY_TIMEOUT


class EndpointFile(Value):
    """An endpoint as a file says it.

    Attributes:
        name: The endpoint's name, of 3 to 32 characters.
        description, tags, properties: For people; nothing here reads them.
        namespace: On Kubernetes the namespace of its objects, which has to be the workspace's.
        auth: How callers of a new endpoint authenticate: with keys, with tokens of the endpoint's own, not at all, or
            with tokens of an outside issuer. Without it a new endpoint has keys.
        sticky: By what callers of a new endpoint stay with a version, `header:<name>` or `cookie:<name>`.
        enable_app_insights: Whether the router writes a row of telemetry for each request; without, no gate sees them.
        versions: The versions by name, at most six.
        rollout: How they are rolled out.
    """

    name: Name
    description: str = ""
    tags: dict[str, str] = Field(default={})
    properties: dict[str, str] = Field(default={})
    namespace: Annotated[str, Field(pattern=r"^[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?$")] = "default"
    auth: Auth | TokenIssuer | None = None
    sticky: Sticky | None = None
    enable_app_insights: bool = True
    versions: Annotated[dict[Name, VersionSettings], Field(min_length=1, max_length=MAX_VERSIONS)]
    rollout: RolloutSettings = RolloutSettings()

    @property
    def about(self) -> dict[str, Any]:
        """The fields of the endpoint itself that the file names and that `deploy` sets besides who may call."""
        named = ("description", "tags", "properties", "namespace", "enable_app_insights")
        return {name: getattr(self, name) for name in named if name in self.model_fields_set}

    def subject(self, endpoint: str | None, version: str | None) -> tuple[str, VersionSettings]:
        """Return the endpoint's name and the version that a command means which is given this file.

        Args:
            endpoint: The first name after the command; without another one it is that of the version.
            version: The second name.

        Raises:
            ArgumentError: The file has no such version, or several and none is named.
        """
        if version is None:
            endpoint, version = None, endpoint
        return endpoint or self.name, self.version(version)

    def version(self, name: str | None) -> VersionSettings:
        """Return a version of the file; without a name the only one.

        Raises:
            ArgumentError: There is none of that name, or the file has several.
        """
        listed = ", ".join(self.versions)
        if name is None and len(self.versions) > 1:
            raise ArgumentError(
                f"it has the versions {listed}: name the one to use after the file, such as `-f FILE "
                f"{next(iter(self.versions))}`"
            )
        found = next(iter(self.versions.values())) if name is None else self.versions.get(name)
        if found is None:
            raise ArgumentError(f"it has no version {name!r}: it has {listed}")
        return found
