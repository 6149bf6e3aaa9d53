"""Anthropic's Messages API: turns of blocks in, a turn of blocks out."""
