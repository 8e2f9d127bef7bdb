"""Who builds images: this machine, a pod in the cluster, or the registry."""
