"""The two decoders behind one interface: fused for the Llama family, generic for every other model."""
