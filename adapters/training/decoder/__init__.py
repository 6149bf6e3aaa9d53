"""The fused decoder that trains LoRA on the Llama family: packed, few products, own gradients."""
