"""A look at a rollout: evidence read, judged, recorded, and what follows from it."""
