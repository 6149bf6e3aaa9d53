"""Fidelity: how far the logits of two models are apart, measured in one way for every check."""
