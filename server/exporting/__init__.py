"""Exports: standalone models written by a process of its own while the server answers."""
