"""The further kinds of adapters that change weights: one module each, and one table of them."""
