"""The benchmark suite of slaf_ext: ``python -m benchmarks``."""
