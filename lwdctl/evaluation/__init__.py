"""Closed-loop evaluation: episode plans, the rollout engine, scores with intervals."""
