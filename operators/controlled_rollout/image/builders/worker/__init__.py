"""Builds on the machine that runs the task."""
