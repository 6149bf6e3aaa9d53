"""The decoder step as one native call: C++ sources (``src``), their build, and the Python binding."""

from manylora.server.kernels.cpu.backend import NativeStep

__all__ = ["NativeStep"]
