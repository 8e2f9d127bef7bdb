"""Documents that are attached to an image, found by the referrers tag, as any client of a registry would."""

import json

from controlled_rollout.image.oci.referrers import referrers_tag
from controlled_rollout.image.oci.registry_client import RegistryClient, Repository

__all__ = ["attached"]


async def attached(client: RegistryClient, repository: Repository, digest: str, media_type: str) -> list[bytes]:
    """Return the documents of one media type that are attached to the image with a digest."""
    index = await client.referrers(repository, digest) or await client.manifest(repository, referrers_tag(digest))
    documents = []
    for entry in json.loads(index.content)["manifests"] if index else []:
        manifest = await client.manifest(repository, entry["digest"])
        # The list's own fields differ between registries; the manifest's do not.
        if manifest is not None and json.loads(manifest.content).get("artifactType") == media_type:
            documents.append(await client.blob(repository, manifest.layers[0]))
    return documents
