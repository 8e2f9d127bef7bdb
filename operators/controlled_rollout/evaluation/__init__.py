"""One look at a rollout: question -> evidence -> verdict -> what to do next; recorded, and replayed."""
