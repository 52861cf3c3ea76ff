"""Policies of a rollout on the same simulated traffic, ours beside fixed thresholds: `python -m benchmarks.rollout.operating`."""
