"""Builds in a pod of the workspace's cluster."""
