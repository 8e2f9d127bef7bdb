"""Builds by the registry's own build service."""
