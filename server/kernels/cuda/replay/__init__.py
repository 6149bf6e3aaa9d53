"""Steps that are captured once as CUDA graphs and replayed from then on, filled up to a few sizes."""
