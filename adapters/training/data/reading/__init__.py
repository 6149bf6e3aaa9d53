"""Files of rows, of every kind, to objects with their line numbers."""
