"""The window: what callers saw of each version, read from the metric store as counts per time bin."""
