"""Builds in a pod of the cluster."""
