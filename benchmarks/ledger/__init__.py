"""How long it takes to verify a ledger."""
