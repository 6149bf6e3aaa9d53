"""The two decoders behind one interface: fused for families of a table, generic for every other model."""
