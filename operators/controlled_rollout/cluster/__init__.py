"""The client for a Kubernetes API server, and the objects that the rooms above share."""
