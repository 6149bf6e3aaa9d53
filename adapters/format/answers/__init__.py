"""How a model writes what is more than text: calls of tools, and reasoning."""
