"""The layers of a decoder in few launches: what stands between two matrix products is one kernel.

The products are the library's; the adapters' share of each is made by the kernels before and behind it.
"""
