"""Rollouts: from the first share of traffic to all of it, or back to none. A pure engine and the thin skins around it."""
