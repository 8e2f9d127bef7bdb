"""The Open Container Initiative's formats and protocol: manifests, layers, and the client of a registry."""
