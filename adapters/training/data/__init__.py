"""Training data: reading, recognizing its format, checking it, and telling what is in it."""
