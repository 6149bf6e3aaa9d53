"""``manylora jobs``: fine-tuning jobs of a running server."""
