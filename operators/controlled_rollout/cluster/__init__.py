"""A client for a Kubernetes API server, and what is known of its objects, for all rooms above."""
