"""One training run from its configuration to the published adapter."""
