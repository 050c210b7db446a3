"""Where a measurement was made, and how the measuring process is set up."""

from __future__ import annotations

import ctypes
import datetime
import os
import platform
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import torch

import slaf_ext

from . import CORES

ROOT = Path(__file__).parent.parent
IS_LINUX = sys.platform.startswith("linux")

# The environment variables that steady a run. With glibc's thread cache the place of a freed tensor is a few bytes too
# small for the next one; outputs then wander over up to a dozen places, and relu's time at 2^20 elements was seen to
# differ by a factor of 3. OpenMP's threads stay on one core each.
_STEADY = {"GLIBC_TUNABLES": "glibc.malloc.tcache_count=0", "OMP_PLACES": "cores", "OMP_PROC_BIND": "true"}


def restart_steadily() -> None:
    """Restarts this process with those of _STEADY that the user did not set."""
    missing = {name: value for name, value in _STEADY.items() if name not in os.environ}
    if IS_LINUX and missing:
        os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], {**os.environ, **missing})


def facts(device: str) -> dict:
    """What a reader needs to judge or repeat the numbers."""
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
    """The commit, marked "-dirty" if files differ from it; "unknown" outside a checkout."""
    command = ["git", "-C", str(ROOT), "describe", "--always", "--abbrev=8", "--dirty"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def _cpu() -> str:
    info = Path("/proc/cpuinfo")
    lines = re.findall(r"^model name\s*: (.*)$", info.read_text(), re.MULTILINE) if info.exists() else []
    return next(iter(lines), platform.processor() or "unknown")


_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_MMAP_MAX = -1, -3, -4  # malloc.h


def keep_freed_memory() -> bool:
    """Makes malloc keep freed memory, as GPU allocators do. False where malloc is not glibc's.

    By default glibc may return a large block to the system, depending on what was allocated before, and the next call
    then pays a page fault for every 4 KiB.
    """
    return _mallopt(_M_MMAP_MAX, 0) and _mallopt(_M_TRIM_THRESHOLD, -1)


def return_freed_memory() -> bool:
    """Makes malloc return every large block when it is freed, so that resident memory is live memory."""
    return _mallopt(_M_MMAP_MAX, 65536) and _mallopt(_M_MMAP_THRESHOLD, 64 * 1024)


def _mallopt(parameter: int, value: int) -> bool:
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if IS_LINUX else None
    return mallopt is not None and bool(mallopt(parameter, value))
