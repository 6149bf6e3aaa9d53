"""How much memory serving a base takes on an accelerator, from shapes alone, and how it is divided."""
