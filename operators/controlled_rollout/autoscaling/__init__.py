"""How many replicas a version should have now, from the load that its routers count. Pure, standard library only."""

from controlled_rollout.autoscaling.decision import Decision, Limits, decide
from controlled_rollout.autoscaling.floor import Floor
from controlled_rollout.autoscaling.history import DOWN_WINDOW_S, History, Reading

__all__ = ["DOWN_WINDOW_S", "Decision", "Floor", "History", "Limits", "Reading", "decide"]
