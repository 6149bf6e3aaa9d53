"""The commands that manage the adapters of a running server, and what they print."""
