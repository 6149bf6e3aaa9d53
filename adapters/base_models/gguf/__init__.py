"""Base models in GGUF files: their configuration, tokenizer and tensors by Hugging Face's names."""
