"""Kinds whose change of a weight has a low rank, or is put together from products that have."""
