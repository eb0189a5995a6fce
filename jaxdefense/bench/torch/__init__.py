"""The PyTorch side of the benchmarks: the paper's procedure, written plainly.

Nothing here loads JAX, so the memory measured is that of PyTorch alone. `torch` in these files is
the library, because imports are absolute.
"""
