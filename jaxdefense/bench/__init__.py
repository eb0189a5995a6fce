"""Benchmarks: jaxdefense is timed beside plain PyTorch, in turn, on one machine."""
