"""How the hot kernels use an H100, read from their machine code: instructions, widths of accesses, loads in flight."""

from __future__ import annotations

import re
import subprocess

import pytest
from machine_code import Kernel, find_cuobjdump, read_kernels

# The kernels that are read: Chebyshev, without edges, where whole items of several elements fit the storage.
STORAGES = {"fp32": ("float", 4), "bf16": ("BFloat16", 2), "fp16": ("Half", 2)}  # name in the code, bytes
ACCESSES = {"runs": "(Access)0", "columns": "(Access)1"}
# What an element costs: the sweep's form in the code, and the tensors that it reads and writes.
SWEEPS = {
    "forward": ("void sweep<Form<(Walk)2, false, false", 1, 1),
    "backward": ("void sweep<Form<(Walk)2, true, false", 2, 1),
    "moments": ("void normalized_sweep<NormalizedForm<(Pass)0, (Walk)2", 1, 0),
    "centred": ("void normalized_sweep<NormalizedForm<(Pass)1, (Walk)2", 2, 0),
    "in x": ("void normalized_sweep<NormalizedForm<(Pass)2, (Walk)2", 2, 1),
}
KIB = 1024
# Instructions an element at most, and KiB of loads in flight on an SM at least.
LIMITS = {
    ("forward", 8): {"runs": (23, 32), "columns": (26, 32)},
    ("backward", 8): {"runs": (38, 32), "columns": (43, 32)},
    ("forward", 16): {"runs": (39, 32), "columns": (39, 8)},
    ("backward", 16): {"runs": (61, 24), "columns": (64, 8)},
    ("moments", 5): {"runs": (35, 24), "columns": (38, 24)},
    ("centred", 5): {"runs": (34, 32), "columns": (32, 32)},
    ("in x", 5): {"runs": (57, 32), "columns": (56, 32)},
}
# Beside these, the table shows what most networks have.
SHOWN = [("forward", 5), ("backward", 5), *LIMITS]


def pattern(storage: str, access: str, sweep: str, degree: int) -> str:
    form = re.escape(f"{SWEEPS[sweep][0]}, {ACCESSES[access]}, ")
    lowest = r"-?\d+" if sweep not in ("forward", "backward") else degree - 1
    return rf"^{form}[248]>, Degrees<{lowest}, {degree}>, {STORAGES[storage][0]}>"


def instructions_an_element(kernel: Kernel, size: int, reads: int) -> float:
    return len(kernel.body) * size * reads / kernel.loaded


def faults(kernel: Kernel, size: int, reads: int, writes: int, most_instructions: float, least_kib: float) -> list[str]:
    """What a main loop misses, in sentences. It reads and writes so many tensors of elements of `size` bytes."""
    if not kernel.body:
        return ["there is no loop that moves elements"]
    found = []
    if kernel.loaded * writes != kernel.stored * reads:
        found.append(f"{kernel.loaded} bytes are loaded and {kernel.stored} stored, so elements cannot be counted")
    if kernel.inner_loops or kernel.counts["call"]:
        found.append("an inner loop or a call hides instructions")
    if (each := instructions_an_element(kernel, size, reads)) > most_instructions:
        found.append(f"{each:.1f} instructions an element are more than {most_instructions}")
    if kernel.in_flight < least_kib * KIB:
        found.append(f"{kernel.in_flight / KIB:.0f} KiB of loads in flight are less than {least_kib}")
    if narrow := sorted({*kernel.loads, *kernel.stores} & {1, 2}):
        found.append(f"loads or stores move {narrow} bytes")
    return found


@pytest.fixture(scope="session")
def cuobjdump():
    return find_cuobjdump() or pytest.skip(
        "there is no cuobjdump here, so no machine code is read; pip install nvidia-cuda-cuobjdump nvidia-cuda-nvdisasm"
    )


@pytest.fixture(scope="session")
def hot(cuobjdump, cuda_objects):
    """The kernels by storage, access, sweep and degree."""
    folder, report = cuda_objects
    wanted = {
        (storage, access, *shown): pattern(storage, access, *shown)
        for storage in STORAGES
        for access in ACCESSES
        for shown in SHOWN
    }
    every = {}
    for file in sorted(folder.glob("*.o")):
        every |= read_kernels(cuobjdump, file, report, "|".join(wanted.values()))
    kernels = {}
    for key, name in wanted.items():
        matching = [kernel for full, kernel in every.items() if re.search(name, full)]
        assert len(matching) == 1, f"{len(matching)} kernels are named {name}; see the names at the top of this file"
        kernels[key] = matching[0]
    return kernels


def test_table(hot, capsys):
    kinds = ("fp", "int", "convert", "shared", "constant", "shuffle", "local", "branch", "other")
    with capsys.disabled():
        print("\nmain loops on sm_90: instructions an element, of these by kind; widths in bytes; KiB in flight an SM")
        print(f"{'':29}{'all':>7}{''.join(f'{kind:>9}' for kind in kinds)}   loads    stores   registers  KiB")
        for (storage, access, sweep, degree), kernel in hot.items():
            elements = kernel.loaded / STORAGES[storage][1] / SWEEPS[sweep][1]
            counts = "".join(f"{kernel.counts[kind] / elements:9.1f}" for kind in kinds)
            loads, stores = (
                "+".join(f"{number} x {width}" for width, number in sorted(widths.items()))
                for widths in (kernel.loads, kernel.stores)
            )
            print(
                f"{storage:5}{access:8}{sweep:9} {degree:2}    {len(kernel.body) / elements:7.1f}{counts}"
                f"   {loads:8} {stores:8} {kernel.registers:9} {kernel.in_flight / KIB:4.0f}"
            )


@pytest.mark.parametrize(("sweep", "degree"), LIMITS)
@pytest.mark.parametrize("access", ACCESSES)
@pytest.mark.parametrize("storage", STORAGES)
def test_limits(storage, access, sweep, degree, hot):
    _, reads, writes = SWEEPS[sweep]
    limits = LIMITS[sweep, degree][access]
    found = faults(hot[storage, access, sweep, degree], STORAGES[storage][1], reads, writes, *limits)
    assert not found, "; ".join(found)


KNOWN = """
__global__ void squares(const float4* __restrict__ x, float4* __restrict__ y, int n) {
#if __CUDA_ARCH__ != 900  // what is compiled for another architecture is not read
  return;
#endif
#pragma unroll 1
  for (int i = threadIdx.x; i < n; i += 512) {
    const float4 a = x[i], b = x[i + 256];
    y[i] = make_float4(a.x * a.x, a.y * a.y, a.z * a.z, a.w * a.w);
    y[i + 256] = make_float4(b.x * b.x, b.y * b.y, b.z * b.z, b.w * b.w);
  }
}
__global__ void narrow(const unsigned short* __restrict__ x, unsigned short* __restrict__ y, int n) {
#pragma unroll 1
  for (int i = threadIdx.x; i < n; i += 256) y[i] = x[i] ^ 1;
}
"""


@pytest.fixture(scope="module")
def known(cuobjdump, nvcc, tmp_path_factory):
    folder = tmp_path_factory.mktemp("known")
    (folder / "known.cu").write_text(KNOWN)
    targets = [f"-gencode=arch=compute_{arch},code=sm_{arch}" for arch in ("90", "80")]
    command = [nvcc, "-O3", *targets, "-Xptxas", "-v", "-c", "known.cu"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=folder, check=True)
    kernels = read_kernels(cuobjdump, folder / "known.o", done.stdout + done.stderr)
    return {name.split("(")[0]: kernel for name, kernel in kernels.items()}


def test_a_known_loop_is_read(known):
    squares = known["squares"]
    assert squares.counts["fp"] == 8
    assert squares.loads == squares.stores == {16: 2}
    assert squares.counts["branch"] == 1
    assert 0 < squares.counts["int"] < 15  # addresses and the end of the loop
    assert len(squares.body) == squares.counts.total() == 8 + 4 + 1 + squares.counts["int"]
    assert (squares.loaded, squares.stored, squares.ahead) == (32, 32, 32)
    assert squares.in_flight == 32 * 2048
    assert faults(squares, 4, 1, 1, 3, 32) == []


def test_what_exceeds_a_limit_is_a_fault(known):
    squares = known["squares"]
    (fault,) = faults(squares, 4, 1, 1, 1, 0)
    assert fault == f"{len(squares.body) / 8:.1f} instructions an element are more than 1"
    assert faults(squares, 4, 2, 1, 9, 0) == ["32 bytes are loaded and 32 stored, so elements cannot be counted"]
    assert faults(known["narrow"], 2, 1, 1, 99, 32) == [
        "4 KiB of loads in flight are less than 32",
        "loads or stores move [2] bytes",
    ]


def listing(*lines: str) -> str:
    return "\n".join(f"        /*{16 * n:04x}*/   {line} ;    /* 0x0000001102047819 */" for n, line in enumerate(lines))


def test_the_main_loop_is_the_innermost_with_its_cold_path():
    sass = listing(
        "MOV R1, c[0x0][0x28]",
        "LDG.E.U16 R3, desc[UR4][R2.64]",  # 0x10, the outer loop
        "@!P3 LDG.E.128 R4, desc[UR4][R2.64]",  # 0x20, the main loop
        "@P1 BRA 0xa0",
        "HADD2.F32 R4, -RZ, R4.H0_H0",  # 0x40
        "STG.E.128 desc[UR4][R2.64], R4",
        "NOP",
        "@!P0 BRA 0x20",
        "@P2 BRA 0x10",
        "EXIT",
        "MUFU.RCP R5, R5",  # 0xa0, the cold path
        "BRA 0x40",
        "BRA 0xc0",
    )
    kernel = Kernel(sass, 81)
    assert kernel.counts == {"load": 1, "store": 1, "convert": 1, "fp": 1, "branch": 3}
    assert (kernel.loads, kernel.inner_loops, kernel.ahead) == ({16: 1}, 0, 16)
    assert kernel.in_flight == 16 * 512  # with 88 registers for each thread, three blocks do not fit


def test_neither_a_cold_path_nor_a_loop_that_only_stores_is_a_main_loop():
    sass = listing(
        "LDG.E R2, desc[UR4][R2.64]",
        "@P0 BRA 0x40",
        "STG.E desc[UR4][R4.64], R2",
        "EXIT",
        "FADD R2, R2, R2",
        "BRA 0x20",
    )
    kernel = Kernel(sass, 32)
    assert kernel.body == []
    assert faults(kernel, 4, 1, 1, 99, 0) == ["there is no loop that moves elements"]
    assert Kernel(listing("NOP", "STG.E desc[UR4][R4.64], R2", "@P0 BRA 0x10"), 32).body == []


def test_a_loop_that_leaves_sums_behind_need_not_store():
    lines = ["LDG.E.128 R4, desc[UR4][R2.64]", "FADD R8, R8, R4", "@P0 BRA 0x10", "EXIT"]
    kernel = Kernel(listing("MOV R1, c[0x0][0x28]", *lines), 32, writes=False)
    assert (kernel.loads, kernel.loaded, kernel.stored) == ({16: 1}, 16, 0)
    assert faults(kernel, 4, 1, 0, 99, 0) == []
    (fault,) = faults(kernel, 4, 1, 1, 99, 0)
    assert fault == "16 bytes are loaded and 0 stored, so elements cannot be counted"
    assert Kernel(listing("MOV R1, c[0x0][0x28]", *lines), 32).body == []


def test_what_hides_instructions_is_a_fault():
    sass = listing(
        "MOV R1, c[0x0][0x28]",
        "LDG.E.128 R4, desc[UR4][R2.64]",
        "FADD R4, R4, R4",  # the inner loop
        "@P0 BRA 0x20",
        "STG.E.128 desc[UR4][R2.64], R4",
        "@P1 BRA 0x10",
        "EXIT",
    )
    inner = "an inner loop or a call hides instructions"
    assert inner in faults(Kernel(sass, 32), 4, 1, 1, 99, 0)
    assert inner in faults(Kernel(sass.replace("@P0 BRA 0x20", "CALL.REL.NOINC 0x60"), 32), 4, 1, 1, 99, 0)
    assert inner not in faults(Kernel(sass.replace("@P0 BRA 0x20", "FADD R5, R5, R5"), 32), 4, 1, 1, 99, 0)


@pytest.mark.parametrize(
    ("order", "ahead"),
    [
        (("load 4", "load 8", "use 4", "use 8"), 32),
        (("load 4", "use 4", "load 8", "use 8"), 16),
        (("use 5", "use 11", "load 4", "load 8"), 32),  # for the next turn
        (("load 4", "use 8", "use 4", "load 8"), 32),
    ],
)
def test_loads_are_in_flight_until_they_are_used(order, ahead):
    line = {"load": "LDG.E.128 R{}, desc[UR4][R2.64]", "use": "STG.E desc[UR4][R2.64], R{}"}
    lines = [line[what].format(register) for what, register in map(str.split, order)]
    kernel = Kernel(listing("MOV R1, c[0x0][0x28]", *lines, "@P0 BRA 0x10", "EXIT"), 32)
    assert (kernel.loaded, kernel.ahead) == (32, ahead)
