"""Triton kernels for CUDA devices, and decode steps replayed as CUDA graphs.

Everything but the adapters' rank pages, the attention of decode rows and the replaying is the PyTorch
reference. Importing a module of this package imports Triton, which comes with torch's CUDA builds only.
"""
