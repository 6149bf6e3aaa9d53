"""Scheduling: which rows run in a step, what is drawn from their logits, and who is told."""
