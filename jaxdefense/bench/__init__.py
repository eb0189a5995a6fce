"""Side-by-side benchmarks: our step against a plain PyTorch loop, on one machine, in turn."""
