"""Products with matrices in few bits, unpacked in registers."""
