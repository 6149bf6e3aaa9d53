"""What is drawn from logits: what may follow, what is changed first, and the draw itself."""
