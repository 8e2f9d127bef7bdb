"""The rules of an endpoint: up to six versions behind one name, one default, one control, percentiles that add up.

Everything here is a pure value or a pure function. A change returns a new `Endpoint`; a refused change raises
`EndpointError` and leaves the value as it was. The rules, defaults and names are those of the retired
`AksEndpoint` (azureml-core 1.61), with its silent mistakes turned into errors.
"""

import math
from collections.abc import Mapping
from datetime import datetime
from enum import StrEnum
from types import MappingProxyType
from typing import Annotated, Any, Final, Self

from pydantic import (
    AwareDatetime,
    Field,
    NonNegativeInt,
    field_serializer,
    model_validator,
)

from controlled_rollout.errors import ConflictError, EndpointError
from controlled_rollout.version import Name, Value, Version

__all__ = ["VERSION_HEADER", "WEIGHT_TOTAL", "Auth", "Endpoint", "EndpointError", "Rollout", "Version"]

MAX_VERSIONS: Final = 6
# A caller asks for one version by it, and every answer names its own.
VERSION_HEADER: Final = "azureml-model-deployment"
# Weights are parts of a million, the largest that a Gateway API backendRef allows.
WEIGHT_TOTAL: Final = 1_000_000
# Percentiles are floats: three thirds must be allowed to add up to 100.
SUM_TOLERANCE: Final = 1e-9


class Auth(StrEnum):
    """How a caller shows that it may call: a key, a signed token, or nothing (only when asked for by name)."""

    KEY = "key"
    TOKEN = "token"  # noqa: S105 - the name of a method, not a secret
    NONE = "none"


class Rollout(Value):
    """Who is rolling out which version: one rollout at a time may hold an endpoint.

    Attributes:
        version: The treatment that is being rolled out.
        owner: The run that holds the endpoint, such as `retrain_and_deploy/scheduled__2026-01-05`.
        started: When it took hold.
    """

    version: Name
    owner: str
    started: AwareDatetime


class Endpoint(Value):
    """An endpoint and its versions: the whole state of a rollout, as one immutable document.

    Attributes:
        name: 3 to 32 characters; unique in its workspace.
        revision: The number of the stored revision that this value was read from; 0 if it was never stored. A target
            stores a changed value as `revision + 1`, or refuses when somebody else was faster.
        auth: Key, token, or none.
        versions: The versions by name, in the order of their creation; at most six.
        rollout: Who is rolling out, if anybody.
    """

    name: Name
    revision: NonNegativeInt = 0
    description: str = ""
    tags: dict[str, str] = Field(default={})
    properties: dict[str, str] = Field(default={})
    namespace: Annotated[str, Field(pattern=r"^[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?$")] = "default"
    auth: Auth = Auth.KEY
    enable_app_insights: bool = True
    versions: Mapping[str, Version] = Field(default_factory=dict, validate_default=True)
    rollout: Rollout | None = None

    @model_validator(mode="after")
    def _rules_hold(self) -> Self:
        versions = list(self.versions.values())
        for key, version in self.versions.items():
            if key != version.name:
                raise EndpointError(f"endpoint {self.name!r} lists version {version.name!r} under the name {key!r}")
        if len(versions) > MAX_VERSIONS:
            raise EndpointError(
                f"endpoint {self.name!r} would have {len(versions)} versions, at most {MAX_VERSIONS} are possible: "
                f"delete one of {', '.join(self.versions)} first"
            )
        total = math.fsum(version.traffic_percentile for version in versions)
        if total > 100 + SUM_TOLERANCE:
            shares = ", ".join(f"{version.name} {version.traffic_percentile:g} %" for version in versions)
            raise EndpointError(
                f"endpoint {self.name!r} would send {total:g} % of its traffic ({shares}): the sum may not exceed 100"
            )
        defaults = [version.name for version in versions if version.is_default]
        if versions and len(defaults) != 1:
            raise EndpointError(f"endpoint {self.name!r} needs exactly one default version, found {defaults}")
        controls = [version.name for version in versions if version.is_control]
        if len(controls) > 1:
            raise EndpointError(f"endpoint {self.name!r} may have one control version, found {controls}")
        object.__setattr__(self, "versions", MappingProxyType(dict(self.versions)))
        return self

    @field_serializer("versions")
    def _versions_as_dict(self, versions: Mapping[str, Version]) -> dict[str, Version]:
        return dict(versions)

    # What there is

    @property
    def default(self) -> Version | None:
        """The version that takes what no percentile claims; None only while there are no versions."""
        return next((version for version in self.versions.values() if version.is_default), None)

    @property
    def control(self) -> Version | None:
        """The version that treatments are judged against, if one is marked."""
        return next((version for version in self.versions.values() if version.is_control), None)

    def version(self, name: str) -> Version:
        """Return the version called `name`.

        Raises:
            EndpointError: There is none; the message lists those that exist.
        """
        if name not in self.versions:
            raise EndpointError(
                f"endpoint {self.name!r} has no version {name!r}: it has {', '.join(self.versions) or 'none'}"
            )
        return self.versions[name]

    def effective_traffic(self) -> dict[str, float]:
        """Return the per cent of requests that each version really gets: its own, and for the default the rest too.

        The values add up to 100 (an endpoint without versions gives an empty dictionary).
        """
        others = math.fsum(v.traffic_percentile for v in self.versions.values() if not v.is_default)
        return {
            name: max(0.0, 100.0 - others) if version.is_default else version.traffic_percentile
            for name, version in self.versions.items()
        }

    def weight_ppm(self) -> dict[str, int]:
        """Return the effective traffic as whole weights that add up to 1,000,000, rounded by largest remainder."""
        exact = {name: share * WEIGHT_TOTAL / 100 for name, share in self.effective_traffic().items()}
        weights = {name: math.floor(share) for name, share in exact.items()}
        missing = WEIGHT_TOTAL - sum(weights.values()) if weights else 0
        for name in sorted(exact, key=lambda name: weights[name] - exact[name])[:missing]:
            weights[name] += 1
        return weights

    # What can be done

    def create_version(
        self,
        name: str,
        *,
        traffic_percentile: float = 0,
        is_default: bool | None = None,
        is_control: bool | None = None,
        **settings: Any,
    ) -> "Endpoint":
        """Return the endpoint with one more version; the first one becomes the default.

        Args:
            name: The new version's name.
            traffic_percentile: Per cent of the requests, 0 to 100.
            is_default: True takes the default over from the version that has it.
            is_control: True takes the control over; the old control becomes a treatment.
            **settings: Any other field of `Version`.

        Raises:
            EndpointError: A rule would be broken.
        """
        if name in self.versions:
            raise EndpointError(
                f"endpoint {self.name!r} already has a version {name!r}: update it or choose another name"
            )
        first = not self.versions
        if first and is_default is False:
            raise EndpointError(f"version {name!r} is the first of endpoint {self.name!r}: it has to be the default")
        version = Version(
            name=name,
            traffic_percentile=traffic_percentile,
            is_default=first if is_default is None else is_default,
            is_control=bool(is_control),
            **settings,
        )
        return self._with_version(version)

    def update_version(self, name: str, **changes: Any) -> "Endpoint":
        """Return the endpoint with one version changed; changing nothing returns this very value.

        Args:
            name: The version's name.
            **changes: Fields of `Version` and their new values; an explicit 0 or "" is a value, not "unchanged".

        Raises:
            EndpointError: A rule would be broken, or the default would be taken from a version without a successor.
        """
        old = self.version(name)
        if "name" in changes and changes["name"] != name:
            raise EndpointError(f"version {name!r} cannot be renamed: create {changes['name']!r} and delete {name!r}")
        if old.is_default and changes.get("is_default") is False:
            raise EndpointError(
                f"version {name!r} is the default of endpoint {self.name!r}: make another version the default instead"
            )
        if changes.get("num_replicas") is not None and "autoscale_enabled" not in changes:
            changes["autoscale_enabled"] = False
        new = Version(**{**old.model_dump(exclude_unset=True), **changes})
        return self if new == old else self._with_version(new)

    def delete_version(self, name: str, *, successor: str | None = None) -> "Endpoint":
        """Return the endpoint without one version.

        Args:
            name: The version to delete.
            successor: The version that takes over its default and control roles and its traffic. Needed for the
                default, and for a control that still has traffic.

        Raises:
            EndpointError: The version is unknown, or it is the default or a control with traffic and nobody succeeds.
        """
        old = self.version(name)
        rest = {other: version for other, version in self.versions.items() if other != name}
        if successor is not None:
            if successor == name:
                raise EndpointError(f"version {name!r} cannot succeed itself: name another version")
            heir = self.version(successor)
            rest[successor] = heir.model_copy(
                update={
                    "is_default": heir.is_default or old.is_default,
                    "is_control": heir.is_control or old.is_control,
                    "traffic_percentile": min(100.0, heir.traffic_percentile + old.traffic_percentile),
                }
            )
        elif old.is_default:
            raise EndpointError(
                f"version {name!r} is the default of endpoint {self.name!r}: name a successor, or delete the endpoint"
            )
        elif old.is_control and old.traffic_percentile > 0:
            raise EndpointError(
                f"version {name!r} is the control of endpoint {self.name!r} and has {old.traffic_percentile:g} % of "
                "its traffic: name a successor, or set its traffic to 0 first"
            )
        # Nobody can go on rolling out what is not there.
        return self.release(name)._changed(versions=rest)

    def shift(self, name: str, percentile: float) -> "Endpoint":
        """Return the endpoint with `percentile` for one version, taken from the default where nothing else is left.

        A default whose own percentile says 100 would otherwise have to be lowered by hand before every rollout.

        Raises:
            EndpointError: There is no such version, the percentile is none, or the others leave too little.
        """
        self.version(name)
        asked = Version(name=name, traffic_percentile=percentile).traffic_percentile
        default = self.default
        if default is None or default.name == name:
            return self.update_version(name, traffic_percentile=asked)
        others = math.fsum(v.traffic_percentile for v in self.versions.values() if v.name not in (name, default.name))
        left = max(0.0, 100.0 - others - asked)
        lowered = (
            self if default.traffic_percentile <= left else self.update_version(default.name, traffic_percentile=left)
        )
        return lowered.update_version(name, traffic_percentile=asked)

    def promote(self, name: str) -> "Endpoint":
        """Return the endpoint with `name` as default and control with all the traffic; the others stay, at 0.

        No percentile is left set: everything goes to the default, and the next treatment's share comes out of that.
        Going back is one call as well: promote the old control.

        Raises:
            EndpointError: There is no such version.
        """
        self.version(name)
        versions = {
            other: version.model_copy(
                update={"traffic_percentile": 0.0, "is_default": other == name, "is_control": other == name}
            )
            for other, version in self.versions.items()
        }
        return self if versions == dict(self.versions) else self._changed(versions=versions)

    def roll_back(self, name: str) -> "Endpoint":
        """Return the endpoint with the treatment `name` at 0 and everything else as before.

        Raises:
            EndpointError: The version is unknown, or is the default or the control: those have nothing to go back to.
        """
        version = self.version(name)
        if version.is_default or version.is_control:
            role = "default" if version.is_default else "control"
            raise EndpointError(
                f"version {name!r} is the {role} of endpoint {self.name!r} and cannot be rolled back to nothing: "
                "promote the version that should take its place"
            )
        return self.update_version(name, traffic_percentile=0.0)

    def claim(self, version: str, *, owner: str, at: datetime) -> "Endpoint":
        """Return the endpoint held for one rollout; claiming again by the same owner and version changes nothing.

        Raises:
            ConflictError: Another rollout holds the endpoint.
        """
        if self.rollout is None:
            return self._changed(rollout=Rollout(version=version, owner=owner, started=at))
        if (self.rollout.owner, self.rollout.version) == (owner, version):
            return self
        raise ConflictError(
            f"endpoint {self.name!r} is held by {self.rollout.owner} rolling out {self.rollout.version!r} since "
            f"{self.rollout.started:%Y-%m-%d %H:%M:%S %Z}; {owner} asked to roll out {version!r}: wait until that "
            "rollout ends, or promote or roll back its version"
        )

    def check_holder(self, version: str, owner: str | None) -> None:
        """Refuse to go on with a rollout of `version` that `owner` no longer holds; None does not check.

        Raises:
            ConflictError: Another run holds the endpoint, or none, or it is held for another version.
        """
        if owner is None:
            return
        if self.rollout is None or (self.rollout.version, self.rollout.owner) != (version, owner):
            rollout = self.rollout
            holder = f"{rollout.owner} holds it for {rollout.version!r}" if rollout else "no run holds it"
            raise ConflictError(
                f"{owner} no longer holds endpoint {self.name!r} to roll out {version!r} ({holder}): "
                "somebody promoted it or rolled it back; its history says who"
            )

    def release(self, version: str) -> "Endpoint":
        """Return the endpoint no longer held for the rollout of `version`; unchanged if it is not."""
        if self.rollout is None or self.rollout.version != version:
            return self
        return self._changed(rollout=None)

    def same_as(self, other: "Endpoint") -> bool:
        """Whether both say the same, whatever their revision numbers."""
        return self.model_copy(update={"revision": other.revision}) == other

    def _with_version(self, version: Version) -> "Endpoint":
        """Put the version in its place and take from the others what it is now the only one to have."""
        versions: dict[str, Version] = {}
        for other in self.versions.values():
            loses = {"is_default": False} if version.is_default and other.is_default else {}
            loses |= {"is_control": False} if version.is_control and other.is_control else {}
            versions[other.name] = other.model_copy(update=loses) if loses else other
        return self._changed(versions=versions | {version.name: version})

    def _changed(self, **changes: Any) -> "Endpoint":
        fields = {name: getattr(self, name) for name in type(self).model_fields}
        return Endpoint(**{**fields, **changes})
