"""The benchmark suite of slaf_ext: ``python -m benchmarks``."""

import os

# Counted before torch is imported, whose OpenMP may bind this thread to one core.
CORES = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
