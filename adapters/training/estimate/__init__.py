"""How much memory a run would need, told before it starts."""
