"""Puts load on a server of OpenAI's kind and measures it, for ``manylora bench`` and the benchmarks."""
