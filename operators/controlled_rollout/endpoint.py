"""The rules of an endpoint: up to six versions behind one name, one default, one control, percentiles that add up.

Pure: a change returns a new `Endpoint`; a refused change raises `EndpointError` and leaves the value as it was. Rules
and names are those of the retired `AksEndpoint` (azureml-core 1.61), with its silent mistakes turned into errors.
"""

import math
from collections.abc import Iterator, Mapping
from datetime import datetime, timedelta
from enum import StrEnum
from types import MappingProxyType
from typing import Annotated, Any, Final, Self

from pydantic import Field, NonNegativeInt, field_serializer, model_validator

from controlled_rollout.defaults import SILENCE
from controlled_rollout.errors import ConflictError, EndpointError
from controlled_rollout.rollout import OnSilence, Rollout, WaitingRun
from controlled_rollout.sticky import Sticky, StickyKey, UserRange, arranged
from controlled_rollout.tokens import TokenIssuer
from controlled_rollout.value import Value
from controlled_rollout.version import Name, Version

__all__ = [
    "ROUTED_BY_HEADER",
    "VERSION_HEADER",
    "WEIGHT_TOTAL",
    "Auth",
    "Endpoint",
    "EndpointError",
    "Version",
]

MAX_VERSIONS: Final = 6
# In a request: the version that should answer it. In an answer: the version that gave it.
VERSION_HEADER: Final = "azureml-model-deployment"
# The router says in it how it chose the version: `weights`, or `header` where the caller named it.
ROUTED_BY_HEADER: Final = "x-controlled-rollout-routed-by"
# The least per cent of the traffic that a shift may give a version, or leave to the others: routers count in parts of a
# million, and what is much less than one request in ten thousand shows nothing.
LEAST_SHARE: Final = 0.01
# Weights are parts of a million: the largest weight that a Gateway API backendRef may have.
WEIGHT_TOTAL: Final = 1_000_000
# Percentiles are floats: three thirds must be allowed to add up to 100.
SUM_TOLERANCE: Final = 1e-9


class Auth(StrEnum):
    """How callers authenticate: by a key, by a signed token, or not at all (which is never the default)."""

    KEY = "key"
    TOKEN = "token"  # noqa: S105 - the name of a method, not a secret
    NONE = "none"


class Endpoint(Value):
    """An endpoint and its versions: the whole state of a rollout, as one immutable document.

    Attributes:
        name: 3 to 32 characters; unique in its workspace.
        revision: The number of the stored revision that this value was read from; 0 if it was never stored. A target
            stores a changed value as `revision + 1`, unless another writer has stored that revision first.
        description, tags, properties: For people; nothing here reads them.
        namespace: On Kubernetes the namespace of its objects, which has to be the workspace's.
        auth: How callers authenticate.
        sticky: The key by whose hash the traffic is split, `header:<name>` or `cookie:<name>`, so that a caller stays
            with a version; None splits at random.
        user_ranges: With `sticky`: which hashes of the key each version has. It follows from the versions' traffic, and
            from what it was before, so that as few callers as possible change their version.
        token_issuer: Who issues their tokens, if `auth` is `token`; None for the endpoint's own signing keys.
        enable_app_insights: Whether the router writes a row of telemetry for each request; without, no gate sees them.
        versions: The versions by name, in the order of their creation; at most six.
        rollout: The rollout that holds the endpoint; None if there is none.
        waiting: The runs that wait until they may hold it.
    """

    name: Name
    revision: NonNegativeInt = 0
    description: str = ""
    tags: dict[str, str] = Field(default={})
    properties: dict[str, str] = Field(default={})
    namespace: Annotated[str, Field(pattern=r"^[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?$")] = "default"
    auth: Auth = Auth.KEY
    sticky: Sticky | None = None
    user_ranges: tuple[UserRange, ...] = ()
    token_issuer: TokenIssuer | None = None
    enable_app_insights: bool = True
    versions: Mapping[str, Version] = Field(default_factory=dict, validate_default=True)
    rollout: Rollout | None = None
    waiting: tuple[WaitingRun, ...] = ()

    @model_validator(mode="after")
    def _check_rules(self) -> Self:
        """Raise with all the rules that the versions break, such as two defaults or more than 100 % in sum."""
        if faults := list(self._broken_rules()):
            raise EndpointError("\n".join(f"endpoint {self.name!r} {fault}" for fault in faults))
        object.__setattr__(self, "versions", MappingProxyType(dict(self.versions)))
        default = self.default
        ranges = arranged(self.user_ranges, self.weight_ppm(), default.name) if self.sticky and default else ()
        object.__setattr__(self, "user_ranges", ranges)
        return self

    def _broken_rules(self) -> Iterator[str]:
        """Yield each rule that the endpoint breaks, and what to do."""
        if self.token_issuer is not None and self.auth is not Auth.TOKEN:
            yield (
                f"names an issuer of tokens, and its auth is {self.auth.value!r}: callers have keys or tokens, never "
                "both; use auth='token', or leave token_issuer out"
            )
        versions = list(self.versions.values())
        for key, version in self.versions.items():
            if key != version.name:
                yield f"lists version {version.name!r} under the name {key!r}"
        if len(versions) > MAX_VERSIONS:
            yield (
                f"would have {len(versions)} versions, at most {MAX_VERSIONS} are possible: delete one of "
                f"{', '.join(self.versions)} first"
            )
        total = math.fsum(version.traffic_percentile for version in versions)
        if total > 100 + SUM_TOLERANCE:
            shares = ", ".join(f"{version.name} {version.traffic_percentile:g} %" for version in versions)
            yield f"would send {total:g} % of its traffic ({shares}): the sum may not exceed 100"
        defaults = [version.name for version in versions if version.is_default]
        if versions and len(defaults) != 1:
            yield f"needs exactly one default version, found {defaults}"
        controls = [version.name for version in versions if version.is_control]
        if len(controls) > 1:
            yield f"may have one control version, found {controls}"

    @classmethod
    def new(cls, name: str, auth: "Auth | TokenIssuer" = Auth.KEY, *, sticky: str | None = None) -> Self:
        """Return an endpoint without versions.

        Args:
            name: Its name.
            auth: How callers authenticate; an outside issuer stands for its tokens.
            sticky: By what callers stay with a version; None splits at random.

        Raises:
            EndpointError: The name or the key is not valid.
        """
        if isinstance(auth, TokenIssuer):
            return cls(name=name, auth=Auth.TOKEN, token_issuer=auth, sticky=sticky)
        return cls(name=name, auth=auth, sticky=sticky)

    @field_serializer("versions")
    def _versions_as_dict(self, versions: Mapping[str, Version]) -> dict[str, Version]:
        """Return the versions as a plain dict, which pydantic can write."""
        return dict(versions)

    @property
    def default(self) -> Version | None:
        """The version that gets the requests that no percentile assigns; None only while there are no versions."""
        return next((version for version in self.versions.values() if version.is_default), None)

    @property
    def control(self) -> Version | None:
        """The version that treatments are judged against, if one is marked."""
        return next((version for version in self.versions.values() if version.is_control), None)

    @property
    def has_signing_keys(self) -> bool:
        """Whether the endpoint issues its tokens itself."""
        return self.auth is Auth.TOKEN and self.token_issuer is None

    def check_callers(self, auth: "Auth | TokenIssuer | None", sticky: str | None) -> None:
        """Raise EndpointError if somebody asks for other callers than those that the endpoint was created for.

        Args:
            auth: How callers are to authenticate; None for as they do.
            sticky: By what they are to stay with a version; None for as they do.
        """
        has = self.token_issuer or self.auth
        if auth is not None and auth != has:
            asked, found = (
                f"tokens of {each.issuer}" if isinstance(each, TokenIssuer) else f"auth='{each}'"
                for each in (auth, has)
            )
            raise EndpointError(
                f"{asked} was asked for, and endpoint {self.name!r} was created with {found}"
                f"{', with other fields' if asked == found else ''}: an endpoint keeps how its callers authenticate; "
                "leave auth out, or create an endpoint of another name"
            )
        if sticky is not None and StickyKey.parse(sticky) != (self.sticky and StickyKey.parse(self.sticky)):
            raise EndpointError(
                f"sticky='{sticky}' was asked for, and endpoint {self.name!r} was created with "
                f"{f'sticky={self.sticky!r}' if self.sticky else 'a split at random'}: an endpoint keeps that; leave "
                "sticky out, or create an endpoint of another name"
            )

    def version(self, name: str) -> Version:
        """Return the version called `name`; raise EndpointError if there is none.

        Raises:
            EndpointError: There is none; the message lists those that exist.
        """
        if name not in self.versions:
            raise EndpointError(
                f"endpoint {self.name!r} has no version {name!r}: it has {', '.join(self.versions) or 'none'}"
            )
        return self.versions[name]

    def effective_traffic(self) -> dict[str, float]:
        """Return the per cent of the requests that each version gets; the default version gets the remainder.

        The values add up to 100; an endpoint without versions gives an empty dictionary.
        """
        assigned = math.fsum(v.traffic_percentile for v in self.versions.values() if not v.is_default)
        return {
            name: max(0.0, 100.0 - assigned) if version.is_default else version.traffic_percentile
            for name, version in self.versions.items()
        }

    def weight_ppm(self) -> dict[str, int]:
        """Return the effective traffic as integer weights that sum to 1,000,000, rounded by largest remainder."""
        exact = {name: percent * WEIGHT_TOTAL / 100 for name, percent in self.effective_traffic().items()}
        weights = {name: math.floor(weight) for name, weight in exact.items()}
        missing = WEIGHT_TOTAL - sum(weights.values()) if weights else 0
        for name in sorted(exact, key=lambda name: weights[name] - exact[name])[:missing]:
            weights[name] += 1
        return weights

    def create_version(
        self,
        name: str,
        *,
        traffic_percentile: float = 0,
        is_default: bool | None = None,
        is_control: bool | None = None,
        **settings: Any,
    ) -> "Endpoint":
        """Return a copy of the endpoint with one more version; the first one becomes the default.

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
        """Return a copy of the endpoint with one version changed; the endpoint itself if nothing changes.

        Args:
            name: The version's name.
            **changes: Fields of `Version` and their new values; an explicit 0 or "" is a value, not "unchanged".

        Raises:
            EndpointError: A rule would be broken, or the endpoint would have no default.
        """
        old = self.version(name)
        if old.is_default and changes.get("is_default") is False:
            raise EndpointError(
                f"version {name!r} is the default of endpoint {self.name!r}: make another version the default instead"
            )
        if changes.get("num_replicas") is not None and "autoscale_enabled" not in changes:
            changes["autoscale_enabled"] = False
        new = Version(**{**old.model_dump(exclude_unset=True), **changes})
        return self if new == old else self._with_version(new)

    def delete_version(self, name: str, *, successor: str | None = None) -> "Endpoint":
        """Return a copy of the endpoint without one version.

        Args:
            name: The version to delete.
            successor: The version that takes over its default and control roles and its traffic. Needed for the
                default, and for a control that still has traffic.

        Raises:
            EndpointError: There is no such version, or a successor is needed and not given.
        """
        old = self.version(name)
        rest = {other: version for other, version in self.versions.items() if other != name}
        if successor is not None:
            if successor == name:
                raise EndpointError(f"version {name!r} cannot be its own successor: name another version")
            new = self.version(successor)
            rest[successor] = new.model_copy(
                update={
                    "is_default": new.is_default or old.is_default,
                    "is_control": new.is_control or old.is_control,
                    "traffic_percentile": min(100.0, new.traffic_percentile + old.traffic_percentile),
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
        # The rollout of a deleted version has ended.
        return self.release(name)._validated_copy(versions=rest)

    def shift(self, name: str, percentile: float) -> "Endpoint":
        """Return a copy with another percentile for one version; the default's percentile is lowered if needed.

        Otherwise a default whose percentile is 100 would have to be updated before every rollout.

        Raises:
            EndpointError: There is no such version, the percentile is not valid, or the others leave too little.
        """
        self.version(name)
        percentile = Version(name=name, traffic_percentile=percentile).traffic_percentile
        endpoint, default = self, self.default
        if default is not None and default.name != name:
            fixed = math.fsum(
                v.traffic_percentile for v in self.versions.values() if v.name not in (name, default.name)
            )
            remaining = max(0.0, 100.0 - fixed - percentile)
            if default.traffic_percentile > remaining:
                endpoint = self.update_version(default.name, traffic_percentile=remaining)
        return endpoint.update_version(name, traffic_percentile=percentile)

    def promote(self, name: str) -> "Endpoint":
        """Return a copy with `name` as default and control and 100 %; the other versions stay, at 0 %.

        All percentiles are 0 then: the default gets all the traffic, and a treatment's percentile is taken from it.

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
        return self if versions == dict(self.versions) else self._validated_copy(versions=versions)

    def roll_back(self, name: str) -> "Endpoint":
        """Return a copy with the treatment `name` at 0 %; the other versions are unchanged.

        Raises:
            EndpointError: There is no such version, or it is the default or the control.
        """
        version = self.version(name)
        if version.is_default or version.is_control:
            role = "default" if version.is_default else "control"
            raise EndpointError(
                f"version {name!r} is the {role} of endpoint {self.name!r} and cannot be set to 0: "
                "promote the version that should take its place"
            )
        return self.update_version(name, traffic_percentile=0.0)

    def claim(
        self,
        version: str,
        *,
        owner: str,
        at: datetime,
        on_silence: OnSilence = OnSilence.KEEP,
        silence: timedelta = SILENCE,
    ) -> "Endpoint":
        """Return a copy that `owner` holds for the rollout of a version; the endpoint itself if it does already.

        Who holds it may change what happens on silence.

        Args:
            version: The version.
            owner: The run or the person.
            at: The present.
            on_silence: What happens when nobody has looked at it for `silence`.
            silence: How long that is.

        Raises:
            ConflictError: Another rollout holds the endpoint.
        """
        if self.rollout is None:
            rollout = Rollout(version=version, owner=owner, started=at, on_silence=on_silence, silence=silence)
            return self._validated_copy(rollout=rollout)
        if (self.rollout.owner, self.rollout.version) == (owner, version):
            if (self.rollout.on_silence, self.rollout.silence) == (on_silence, silence):
                return self
            changed = {**dict(self.rollout), "on_silence": on_silence, "silence": silence}
            return self._validated_copy(rollout=Rollout.model_validate(changed))
        raise ConflictError(
            f"endpoint {self.name!r} is held by {self.rollout.owner} rolling out {self.rollout.version!r} since "
            f"{self.rollout.started:%Y-%m-%d %H:%M:%S %Z}; {owner} asked to roll out {version!r}: wait until that "
            "rollout ends, or promote or roll back its version"
        )

    def wait(self, run: WaitingRun) -> "Endpoint":
        """Return a copy in which a run waits, behind those that were due earlier; the endpoint itself if it does."""
        if run in self.waiting:
            return self
        others = self.without_waiting(run.owner).waiting
        return self._validated_copy(waiting=tuple(sorted((*others, run), key=lambda waiting: waiting.run_date)))

    def without_waiting(self, owner: str) -> "Endpoint":
        """Return a copy in which a run does not wait; the endpoint itself if it does not."""
        rest = tuple(run for run in self.waiting if run.owner != owner)
        return self if rest == self.waiting else self._validated_copy(waiting=rest)

    def check_turn(self, owner: str, *, run_date: datetime, at: datetime) -> None:
        """Raise ConflictError if a run that was due earlier waits for the endpoint.

        Args:
            owner: The run that wants to hold it.
            run_date: When that run was due.
            at: The present: who has given up by then does not wait.

        Raises:
            ConflictError: Another run is next.
        """
        ahead = [r for r in self.waiting if r.owner != owner and r.run_date < run_date and r.until > at]
        if ahead:
            raise ConflictError(
                f"endpoint {self.name!r} is awaited by {ahead[0].owner}, which was due earlier "
                f"({ahead[0].run_date:%Y-%m-%d %H:%M:%S %Z}) and waits until {ahead[0].until:%Y-%m-%d %H:%M:%S %Z}: "
                f"{owner} comes after it"
            )

    def check_holder(self, version: str, owner: str | None) -> None:
        """Raise ConflictError if `owner` does not hold the endpoint for `version`; None as owner checks nothing.

        Raises:
            ConflictError: Another run holds it, or no run, or it is held for another version.
        """
        if owner is None:
            return
        if self.rollout is None or (self.rollout.version, self.rollout.owner) != (version, owner):
            rollout = self.rollout
            holder = f"{rollout.owner} holds it for {rollout.version!r}" if rollout else "no run holds it"
            raise ConflictError(
                f"{owner} no longer holds endpoint {self.name!r} to roll out {version!r} ({holder}): "
                "it was promoted or rolled back meanwhile; the endpoint's history says by whom"
            )

    def release(self, version: str) -> "Endpoint":
        """Return a copy that is not held for the rollout of `version`; the endpoint itself if it is not held for it."""
        if self.rollout is None or self.rollout.version != version:
            return self
        return self._validated_copy(rollout=None)

    def hold(self, version: str, *, owner: str | None, at: datetime) -> "Endpoint":
        """Return a copy whose rollout is on hold; the endpoint itself if it is already, or no run holds the endpoint.

        Raises:
            ConflictError: `owner` is given, and does not hold the endpoint for `version`.
        """
        self.check_holder(version, owner)
        if self.rollout is None or self.rollout.version != version or self.rollout.held is not None:
            return self
        return self._validated_copy(rollout=self.rollout.model_copy(update={"held": at}))

    def resume(self, version: str, *, owner: str | None, at: datetime) -> "Endpoint":
        """Return a copy whose rollout is no longer on hold; the endpoint itself if it is not, or is not the owner's."""
        rollout = self.rollout
        if rollout is None or rollout.held is None or rollout.version != version or owner not in (None, rollout.owner):
            return self
        return self._validated_copy(rollout=rollout.model_copy(update={"held": None, "resumed": at}))

    def without_hold(self) -> "Endpoint":
        """Return a copy without the mark that its rollout is on hold, as a new hold begins from; itself without one."""
        if self.rollout is None or self.rollout.held is None:
            return self
        return self._validated_copy(rollout=self.rollout.model_copy(update={"held": None}))

    def same_as(self, other: "Endpoint") -> bool:
        """Return whether both endpoints have equal content; revision numbers may differ."""
        return self.model_copy(update={"revision": other.revision}) == other

    def _with_version(self, version: Version) -> "Endpoint":
        """Return a copy with a version added or replaced; the roles default and control move to it if it has them."""
        unique_roles = {role for role in ("is_default", "is_control") if getattr(version, role)}
        versions: dict[str, Version] = {}
        for other in self.versions.values():
            lost = {role: False for role in unique_roles if getattr(other, role)}
            versions[other.name] = other.model_copy(update=lost) if lost else other
        return self._validated_copy(versions=versions | {version.name: version})

    def _validated_copy(self, **changes: Any) -> "Endpoint":
        """Return a copy with these fields changed, after all rules are checked."""
        fields = {name: getattr(self, name) for name in type(self).model_fields}
        return Endpoint(**{**fields, **changes})
