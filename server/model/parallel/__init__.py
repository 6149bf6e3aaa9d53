"""Tensor parallelism: one process a rank, each with a part of every layer, and rank 0 in the lead."""
