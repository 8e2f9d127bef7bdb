"""Builds on the machine that runs the task: buildah for container images, uv for the local target."""
