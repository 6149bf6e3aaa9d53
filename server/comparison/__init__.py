"""Comparing models: divergences between their distributions, a verdict on them, and reports for people."""
