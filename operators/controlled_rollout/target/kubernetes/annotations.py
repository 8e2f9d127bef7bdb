"""The annotations of a version's Deployment that say how the number of its replicas came about."""

from typing import Final

__all__ = ["FLOOR", "NOT_SCALED", "SCALED"]

# What a shift's sizing has set, and until when the autoscaler does not go below it.
FLOOR: Final = "controlled-rollout/replicas-floor"
# What the autoscaler has done last, and why.
SCALED: Final = "controlled-rollout/autoscaled"
# Why the autoscaler leaves the version alone; absent while it does not.
NOT_SCALED: Final = "controlled-rollout/not-autoscaled"
