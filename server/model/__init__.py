"""The base model: loading, the two decoders behind one interface, the rank-page pool, the tokenizer."""
