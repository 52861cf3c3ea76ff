"""Two toy families that keep the family protocol honest: one with nested rows, one a policy. For tests only."""
