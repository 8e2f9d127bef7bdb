"""Documents that refer to an image in its registry: how a bill of materials is attached, and found again.

Sources: OCI image specification 1.1, manifest.md ("Guidelines for Artifact Usage"); OCI distribution specification 1.1,
"Pushing Manifests with Subject" and "Referrers Tag Schema", for registries that do not list referrers themselves.
"""

import contextlib
import json
from collections.abc import Mapping
from typing import Any, Final

from controlled_rollout.errors import ImageError
from controlled_rollout.image.oci.manifest import INDEX, MANIFEST, Descriptor, Manifest, encoded
from controlled_rollout.image.oci.registry_client import Registry, Repository

__all__ = ["attach", "attached", "referring", "tag_of", "with_referrer"]

EMPTY: Final = Descriptor.of("application/vnd.oci.empty.v1+json", b"{}")
# Somebody else may change the list while it is read and written: as often as this it is looked at again.
ATTEMPTS: Final = 5


async def attach(
    client: Registry, repository: Repository, subject: Manifest, media_type: str, content: bytes, title: str
) -> str:
    """Attach a document to an image, unless that very document is attached; return its digest `sha256:…`.

    Registries that do not list referrers themselves get that list under the tag that the specification sets. They have
    no way to change it only if nobody else has: of two that attach at the same moment one may have to do it again.

    Args:
        client: Asks the registry.
        repository: Where the image is.
        subject: The image's manifest.
        media_type: What the document is.
        content: The document.
        title: Its file name.

    Raises:
        RegistryUnavailableError: The registry does not answer.
        ImageError: The registry refuses, or others change its list all the time.
    """
    blob = Descriptor.of(media_type, content)
    manifest = referring(subject, blob, title)
    await client.put_blob(repository, EMPTY, b"{}")
    await client.put_blob(repository, blob, content)
    acknowledged = await client.put_manifest(repository, manifest.digest, manifest)
    # Not every registry that lists referrers says so in its answer to the push, as it should.
    if acknowledged or await client.referrers(repository, subject.digest) is not None:
        return manifest.digest
    tag = tag_of(subject.digest)
    for _ in range(ATTEMPTS):
        before = await client.manifest(repository, tag)
        after = with_referrer(before, manifest, media_type)
        if before is not None and before.content == after.content:
            return manifest.digest
        await client.put_manifest(repository, tag, after)
    raise ImageError(
        f"the list of what refers to {repository}@{subject.digest} does not keep what is written: try again"
    )


async def attached(client: Registry, repository: Repository, digest: str, media_type: str) -> list[bytes]:
    """Return the documents of a kind that are attached to an image.

    Args:
        client: Asks the registry.
        repository: Where the image is.
        digest: The image's, `sha256:…`.
        media_type: What the documents are.

    Raises:
        RegistryUnavailableError: The registry does not answer.
        ImageError: The list, or a document, is not what it should be.
    """
    index = await client.referrers(repository, digest) or await client.manifest(repository, tag_of(digest))
    documents = []
    for entry in _entries(index) if index else []:
        manifest = await client.manifest(repository, str(entry.get("digest")))
        # What the list says of it is not the same in all registries.
        if manifest is not None and _artifact_type(manifest) == media_type:
            documents.append(await client.blob(repository, manifest.layers[0]))
    return documents


def referring(subject: Manifest, blob: Descriptor, title: str) -> Manifest:
    """Return the manifest of an artifact with one document that refers to an image."""
    document = {
        "schemaVersion": 2,
        "mediaType": MANIFEST,
        "artifactType": blob.media_type,
        "config": EMPTY.document(),
        "layers": [{**blob.document(), "annotations": {"org.opencontainers.image.title": title}}],
        "subject": Descriptor.of(subject.media_type, subject.content).document(),
    }
    return Manifest(encoded(document), MANIFEST)


def tag_of(digest: str) -> str:
    """Return the tag under which what refers to an image is listed."""
    return digest.replace(":", "-", 1)


def with_referrer(index: Manifest | None, manifest: Manifest, artifact_type: str) -> Manifest:
    """Return the list of what refers to an image with one more entry, unless it is there.

    Args:
        index: The list as it is; None if there is none yet.
        manifest: The artifact's.
        artifact_type: What the artifact is.

    Raises:
        ImageError: The list is none.
    """
    entries = _entries(index) if index else []
    if index is not None and any(entry.get("digest") == manifest.digest for entry in entries):
        return index
    described = Descriptor.of(manifest.media_type, manifest.content).document() | {"artifactType": artifact_type}
    listed = sorted([*entries, described], key=lambda entry: str(entry.get("digest")))
    return Manifest(encoded({"schemaVersion": 2, "mediaType": INDEX, "manifests": listed}), INDEX)


def _artifact_type(manifest: Manifest) -> str | None:
    with contextlib.suppress(ValueError, AttributeError):
        found = json.loads(manifest.content).get("artifactType")
        return found if isinstance(found, str) else None
    return None


def _entries(index: Manifest) -> list[Mapping[str, Any]]:
    try:
        entries = json.loads(index.content)["manifests"]
        if index.media_type == INDEX and all(isinstance(entry, dict) for entry in entries):
            return list(entries)
    except (ValueError, KeyError, TypeError):
        pass
    raise ImageError(f"what stands where referrers are listed is a {index.media_type}: remove that tag, and try again")
