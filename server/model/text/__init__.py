"""Text to token ids and back: tokenizer and chat template of the base or of an adapter."""
