"""Several adapters trained at once on one copy of the base."""
