"""Kinds that train a few entries of a weight."""
