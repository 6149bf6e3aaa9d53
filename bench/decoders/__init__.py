"""Decoders beside each other: the fused one and the generic one, and caches of 16 and 8 bits."""
