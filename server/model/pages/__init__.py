"""Adapters laid out as rank pages: packing, the pool on the device, and files that hold them packed."""
