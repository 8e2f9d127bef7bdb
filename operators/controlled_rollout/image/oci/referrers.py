"""Documents attached to an image in its registry, such as a bill of materials: OCI referrers.

Sources: OCI image specification 1.1, manifest.md ("Guidelines for Artifact Usage"); OCI distribution specification 1.1,
"Pushing Manifests with Subject" and "Referrers Tag Schema", for registries that do not list referrers themselves.
"""

import contextlib
from collections.abc import Mapping
from typing import Any, Final

from controlled_rollout.errors import ImageError
from controlled_rollout.image.oci.manifest import INDEX, MANIFEST, Descriptor, Manifest, canonical_json
from controlled_rollout.image.oci.registry_client import RegistryClient, Repository
from controlled_rollout.image.oci.responses import parse_json

__all__ = ["artifact_manifest", "attach_document", "referrers_tag", "with_referrer"]

EMPTY: Final = Descriptor.of("application/vnd.oci.empty.v1+json", b"{}")
# Another client may change the list between reading and writing it: so many times it is read again.
ATTEMPTS: Final = 5


async def attach_document(
    client: RegistryClient, repository: Repository, subject: Manifest, media_type: str, content: bytes, title: str
) -> str:
    """Attach a document to an image in its registry as an OCI referrer; return the document's digest `sha256:…`.

    A registry that does not list referrers itself gets the list under the tag that the specification defines. It cannot
    be changed conditionally, so it is read again after it was written, and written again if another client changed it.

    Args:
        client: The registry's client.
        repository: Where the image is.
        subject: The image's manifest.
        media_type: The document's media type.
        content: The document.
        title: Its file name.

    Raises:
        RegistryUnavailableError: The registry does not answer.
        ImageError: The registry refuses, or does not keep the list.
    """
    blob = Descriptor.of(media_type, content)
    manifest = artifact_manifest(subject, blob, title)
    await client.put_blob(repository, EMPTY, b"{}")
    await client.put_blob(repository, blob, content)
    lists_referrers = await client.put_manifest(repository, manifest.digest, manifest)
    # Not every registry that lists referrers says so in its answer to the push, as it should.
    if lists_referrers or await client.referrers(repository, subject.digest) is not None:
        return manifest.digest
    tag = referrers_tag(subject.digest)
    for _ in range(ATTEMPTS):
        index = await client.manifest(repository, tag)
        extended = with_referrer(index, manifest, media_type)
        if index is not None and index.content == extended.content:
            return manifest.digest
        await client.put_manifest(repository, tag, extended)
    raise ImageError(
        f"the list of referrers of {repository}@{subject.digest} was changed by other clients {ATTEMPTS} times: "
        "try again"
    )


def artifact_manifest(subject: Manifest, blob: Descriptor, title: str) -> Manifest:
    """Return the manifest of an artifact that refers to an image and consists of one document."""
    document = {
        "schemaVersion": 2,
        "mediaType": MANIFEST,
        "artifactType": blob.media_type,
        "config": EMPTY.document(),
        "layers": [{**blob.document(), "annotations": {"org.opencontainers.image.title": title}}],
        "subject": Descriptor.of(subject.media_type, subject.content).document(),
    }
    return Manifest(canonical_json(document), MANIFEST)


def referrers_tag(digest: str) -> str:
    """Return the fallback tag that lists an image's referrers, for registries without the referrers API."""
    return digest.replace(":", "-", 1)


def with_referrer(index: Manifest | None, manifest: Manifest, artifact_type: str) -> Manifest:
    """Return an index of an image's referrers with `manifest` added, unless it is already listed.

    Args:
        index: The current list; None if there is none yet.
        manifest: The artifact's.
        artifact_type: The artifact's media type.

    Raises:
        ImageError: The current list is no list of referrers.
    """
    entries = _index_entries(index) if index else []
    if index is not None and any(entry.get("digest") == manifest.digest for entry in entries):
        return index
    entry = Descriptor.of(manifest.media_type, manifest.content).document() | {"artifactType": artifact_type}
    manifests = sorted([*entries, entry], key=lambda entry: str(entry.get("digest")))
    return Manifest(canonical_json({"schemaVersion": 2, "mediaType": INDEX, "manifests": manifests}), INDEX)


def _index_entries(index: Manifest) -> list[Mapping[str, Any]]:
    """Return the entries of an index of referrers; raise `ImageError` if the manifest is not an index."""
    with contextlib.suppress(ValueError, KeyError, TypeError):
        entries = parse_json(index.content)["manifests"]
        if index.media_type == INDEX and all(isinstance(entry, dict) for entry in entries):
            return list(entries)
    raise ImageError(f"the list of referrers is a {index.media_type}, not a list: remove its tag, and try again")
