"""Many LoRA adapters, and weighted mixes of them, served in one batch on one base model."""
