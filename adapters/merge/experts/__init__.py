"""Routed experts where adapters are merged into files: where their matrices are, and a check of them."""
