"""What others have deleted or edited among an endpoint's objects, and who it was. Pure.

docs/aks.md has the table: which objects are put back as the newest revision asks for, and which are left as they are.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from controlled_rollout.cluster.api import FIELD_MANAGER, Object
from controlled_rollout.cluster.kinds import HTTP_ROUTE, SECURITY_POLICY, Kind
from controlled_rollout.errors import NameTakenError

__all__ = [
    "Drift",
    "container_writers",
    "exact_patch",
    "is_changed",
    "is_other",
    "last_writer",
    "other_writers",
    "replicas_owner",
    "replicas_writer",
    "targets_route",
]

# What an object's content is in: all that we set, beside its labels and its owner.
CONTENT: Final = ("spec", "data")


@dataclass(frozen=True)
class Drift:
    """One object that is not as the endpoint's newest revision asks for.

    Attributes:
        subject: Kind and name, such as `Service digits-one-1a2b3c4d`.
        found: What was found, such as `does not exist`.
        remedy: What a step does about it, such as `it is made again`.
        version: The version that it belongs to; None if it belongs to the endpoint.
        is_left: Whether steps leave it as it is: a step that gives a version more traffic is refused meanwhile.
        is_unattributed: Whether nobody else is known to have written it: it may be as an earlier revision asked for.
    """

    subject: str
    found: str
    remedy: str
    version: str | None = None
    is_left: bool = False
    is_unattributed: bool = False

    def __str__(self) -> str:
        """Return the sentence for people."""
        return f"{self.subject} {self.found}: {self.remedy}"

    @classmethod
    def missing(cls, kind: Kind, name: str, version: str | None = None) -> "Drift":
        """Return that an object does not exist."""
        found = "does not exist"
        if kind is SECURITY_POLICY:
            found += (
                ", so that nobody is asked for a key: callers are let in, or refused if the Gateway closes by default"
            )
        return cls(f"{kind.name} {name}", found, "every step makes it again", version)

    @classmethod
    def edited(cls, found: Object, version: str | None = None) -> "Drift":
        """Return that an object was edited and is put back.

        Args:
            found: The object as it was found.
            version: The version that it belongs to; None if it belongs to the endpoint.
        """
        writers = other_writers(found)
        who = f"was edited by {', '.join(writers)}" if writers else "was edited"
        return cls(
            f"{found['kind']} {found['metadata']['name']}",
            who,
            "every step puts it back",
            version,
            is_unattributed=not writers,
        )

    @classmethod
    def relabelled(cls, found: Object, version: str) -> "Drift":
        """Return that somebody has edited the labels by which an object is found, and that they are put back.

        Args:
            found: The object as it was found.
            version: The version that it belongs to.
        """
        subject = f"{found['kind']} {found['metadata']['name']}"
        return cls(subject, "has other labels than its version's", "every step puts them back", version)

    @classmethod
    def left(cls, found: Object, why: str, version: str) -> "Drift":
        """Return that an object was edited and is left as it is.

        Args:
            found: The object as it was found.
            why: Which fields others own, in the API server's words.
            version: The version that it belongs to.
        """
        remedy = f"it is left as it is, and a step that gives a version more traffic is refused meanwhile: {why}"
        return cls(
            f"{found['kind']} {found['metadata']['name']}",
            f"was edited by {', '.join(other_writers(found)) or 'others'}",
            remedy,
            version,
            is_left=True,
        )

    @classmethod
    def taken(cls, error: NameTakenError) -> "Drift":
        """Return that an object of others has the name of one of the endpoint's, and that it is left as it is."""
        return cls("an object of others", "has a name that the endpoint needs", str(error), is_left=True)


def exact_patch(found: Mapping[str, Any], wanted: Mapping[str, Any]) -> Object:
    """Return the JSON merge patch that turns a mapping into exactly another one, whatever others have added.

    Args:
        found: The mapping as it is.
        wanted: As it is to be.
    """
    patch: Object = dict.fromkeys(key for key in found if key not in wanted)
    for key, value in wanted.items():
        now = found.get(key)
        patch[key] = exact_patch(now, value) if isinstance(value, Mapping) and isinstance(now, Mapping) else value
    return patch


def is_changed(before: Object, after: Object) -> bool:
    """Return whether the API server has changed anything that matters in an object: content, labels or owner."""
    return any(before.get(part) != after.get(part) for part in CONTENT) or any(
        before["metadata"].get(part) != after["metadata"].get(part) for part in ("labels", "ownerReferences")
    )


def targets_route(policy: Object, route: str) -> bool:
    """Return whether a policy is for an HTTPRoute of its namespace, by name; also if for one of its rules only."""
    spec = policy["spec"]
    targets = [*(spec.get("targetRefs") or []), *([spec["targetRef"]] if spec.get("targetRef") else [])]
    return any((target.get("kind"), target.get("name")) == (HTTP_ROUTE.name, route) for target in targets)


def other_writers(resource: Object) -> list[str]:
    """Return who else than controlled-rollout has written to the content of an object, newest first, and when."""
    entries = [
        entry
        for entry in resource["metadata"].get("managedFields") or []
        if not entry.get("subresource")
        and not entry["manager"].startswith(FIELD_MANAGER)
        and any(f"f:{part}" in (entry.get("fieldsV1") or {}) for part in CONTENT)
    ]
    entries.sort(key=lambda entry: str(entry.get("time", "")), reverse=True)
    return [last_writer(entry) for entry in entries]


def container_writers(deployment: Object) -> list[str]:
    """Return who else than controlled-rollout has set fields of a Deployment's containers that we have not set.

    What they run is then not what the revision says, such as with another `command`. Fields that others have set to the
    same value as we have are no difference.
    """
    entries = deployment["metadata"].get("managedFields") or []
    our_fields = [_container_fields(entry) for entry in entries if not is_other(entry)]
    return [
        last_writer(entry) for entry in entries if is_other(entry) and _has_more(_container_fields(entry), our_fields)
    ]


def _container_fields(entry: Object) -> Object:
    """Return the fields of containers that a field manager owns, as the tree in which the API server keeps them."""
    template = ((entry.get("fieldsV1") or {}).get("f:spec") or {}).get("f:template") or {}
    fields = template.get("f:spec") or {}
    return {kind: fields[kind] for kind in ("f:containers", "f:initContainers") if kind in fields}


def _has_more(fields: Object, others: Sequence[Object]) -> bool:
    """Return whether a tree of fields has one that none of other trees has."""
    for name, below in fields.items():
        same = [other[name] for other in others if name in other]
        if name != "." and (not same or _has_more(below, same)):
            return True
    return False


def replicas_owner(deployment: Object) -> Object | None:
    """Return the entry of the field manager that has set a Deployment's number of replicas; None if nobody has."""
    entries = [
        entry
        for entry in deployment["metadata"].get("managedFields") or []
        if "f:replicas" in ((entry.get("fieldsV1") or {}).get("f:spec") or {})
    ]
    return next((entry for entry in entries if not is_other(entry)), entries[-1] if entries else None)


def is_other(entry: Object | None) -> bool:
    """Return whether a field manager is somebody else than controlled-rollout: a person or an autoscaler."""
    return entry is not None and not entry["manager"].startswith(FIELD_MANAGER)


def replicas_writer(deployment: Object) -> str | None:
    """Return who else than controlled-rollout has set a Deployment's number of replicas, and when; None for nobody."""
    owner = replicas_owner(deployment)
    return last_writer(owner) if owner is not None and is_other(owner) else None


def last_writer(entry: Object) -> str:
    """Return a field manager and the time at which it wrote."""
    return f"{entry['manager']!r} at {entry.get('time', 'an unknown time')}"
