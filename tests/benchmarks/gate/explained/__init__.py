"""The pictures of docs/statistics.md: the package's gate on simulated traffic."""
