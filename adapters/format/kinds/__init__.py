"""The further kinds that change weights: one module each, in rooms by how, and one table of them."""
