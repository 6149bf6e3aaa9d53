"""Several adapters into one, or into the base: plan -> validate -> apply."""
