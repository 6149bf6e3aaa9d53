"""The decoder step as one native call: C++ sources (``src``), their build, and the Python binding."""

from server.kernels.cpu.backend import NativeStep

__all__ = ["NativeStep"]
