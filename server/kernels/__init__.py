"""The arithmetic of a step. Knows tensors, blocks and offsets; not requests, not Hugging Face.

``reference`` is plain PyTorch and runs on any device; ``cpu`` is the same step as one native call.
"""
