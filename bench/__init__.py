"""Measures servers of many adapters, ours and others, over HTTP and side by side."""
