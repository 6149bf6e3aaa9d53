"""Three example adapters and the recipe that trains them; see docs/examples.md."""
