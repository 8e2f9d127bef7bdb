"""The door: everything that changes an endpoint, or asks how it is, goes through a target."""
