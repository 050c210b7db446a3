"""Where a measurement was made, and the state of the process in which it is made."""

from __future__ import annotations

import ctypes
import datetime
import os
import platform
import subprocess
import sys
from pathlib import Path

import numpy as np
import torch

import slaf_ext

from . import CORES

ROOT = Path(__file__).parent.parent
IS_LINUX = sys.platform.startswith("linux")

# What a process must be started with.
#
# Tensors are aligned, and glibc's thread cache holds on to the few bytes left over on both sides. So the gap that a
# freed tensor leaves is too small for the next one by these bytes, and outputs wander over up to a dozen places, more
# of them for one variant than for another: relu's time at 2^20 elements was seen to differ by a factor of 3 with the
# places alone.
#
# OpenMP's threads, torch's and those of compiled code, stay on the core that each got.
_STEADY = {"GLIBC_TUNABLES": "glibc.malloc.tcache_count=0", "OMP_PLACES": "cores", "OMP_PROC_BIND": "true"}


def restart_steadily() -> None:
    """Replaces this process by itself with threads bound to cores, and a malloc whose tensors wander less.

    What a user set is left alone.
    """
    missing = {name: value for name, value in _STEADY.items() if name not in os.environ}
    if IS_LINUX and missing:
        os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], {**os.environ, **missing})


def facts(device: str) -> dict:
    """What a reader needs to judge, or repeat, the numbers."""
    return {
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "commit": _commit(),
        "device": device,
        "cpu": _cpu(),
        "cores": CORES,
        "gpu": torch.cuda.get_device_name(device) if device.startswith("cuda") else None,
        "slaf_ext": slaf_ext.__version__,
        "kernels": slaf_ext.ops._C.instruction_set(),
        "torch": torch.__version__,
        "numpy": np.__version__,
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "settings": {name: os.environ.get(name) for name in _STEADY},
    }


def _commit() -> str:
    """The commit, with a mark where files differ from it; "unknown" outside a checkout."""
    command = ["git", "-C", str(ROOT), "describe", "--always", "--abbrev=8", "--dirty"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or "unknown"
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), "unknown")


_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_MMAP_MAX = -1, -3, -4  # malloc.h


def keep_freed_memory() -> bool:
    """Makes malloc keep what is freed, as GPU allocators do. False where malloc is not glibc's.

    By default glibc gives a large block back to the system or keeps it, depending on what was allocated before; given
    back, it costs a page fault every 4 KiB at the next call, which can exceed the arithmetic.
    """
    return _mallopt(_M_MMAP_MAX, 0) and _mallopt(_M_TRIM_THRESHOLD, -1)


def return_freed_memory() -> bool:
    """Makes malloc give every large block back when it is freed, so that resident memory is live memory."""
    return _mallopt(_M_MMAP_MAX, 65536) and _mallopt(_M_MMAP_THRESHOLD, 64 * 1024)


def _mallopt(parameter: int, value: int) -> bool:
    if not IS_LINUX:
        return False
    try:
        return bool(ctypes.CDLL(None).mallopt(parameter, value))
    except AttributeError:
        return False
