"""The builders of environment images: the worker, a pod in the cluster, or the registry's own build service."""
