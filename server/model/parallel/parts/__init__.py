"""Parts of a model, and of the adapters for it: what is cut where, and read from the files."""
