"""The model of a run: the base, the adapter on it, and forward passes outside of training."""
