"""Plain-PyTorch kernels: the definition every fast path is tested against."""
