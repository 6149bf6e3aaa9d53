"""Checkpoints that are quantized already, loaded as they are: GGUF files, GPTQ and AWQ repositories."""
