"""Kinds that turn a weight: rotations and reflections of its inputs, its outputs or its singular vectors."""
