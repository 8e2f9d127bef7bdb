"""Builds in the registry's own service."""
