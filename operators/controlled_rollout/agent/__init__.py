"""The agent of a cluster: replicas that follow the load, unattended repair, and rollouts that nobody looks at.

One small Deployment of two replicas (docker/agent), of which one at a time is at work for each namespace. Without it
everything else works as before.
"""
