"""Connections as clients keep them: how many, how long, how slow, and what ends them."""
