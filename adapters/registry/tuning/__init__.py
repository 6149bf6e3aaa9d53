"""Fine-tuning jobs: what is asked for, what has become of it, and who works on it."""
