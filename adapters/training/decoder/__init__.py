"""The fused decoder that trains LoRA on the Llama family: packed rows, few products, hand-written gradients."""
