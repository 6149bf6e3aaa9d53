"""Linear layers on the codes that quantized checkpoints store: GGUF's blocks, GPTQ's and AWQ's groups."""
