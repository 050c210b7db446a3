"""What SLAF(degree) is when nothing else is said: candidates in plain networks, under Adam at one rate.

``python -m examples.experiments.defaults`` writes defaults.json and defaults.md: the median error, and how many of the
runs broke down or learned nothing, over depths, widths and seeds. A quarter of an hour on two cores.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import os
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import nn

from slaf_ext import SLAF

from .tasks import SMALL, Task, split
from .train import fit

CANDIDATES: dict[str, Callable[[], nn.Module]] = {
    "ReLU": nn.ReLU,
    "GELU": nn.GELU,
    "SLAF(5)": lambda: SLAF(5),
    "from the identity": lambda: SLAF(5, init="identity"),
    "from ReLU": lambda: SLAF(5, init="relu"),
    "on (-1, 1)": lambda: SLAF(5, domain=(-1, 1)),
    "on (-2, 2)": lambda: SLAF(5, domain=(-2, 2)),
    "on (-3, 3)": lambda: SLAF(5, domain=(-3, 3)),
    "clamped": lambda: SLAF(5, outside="clamp"),
    "Legendre": lambda: SLAF(5, basis="legendre"),
    "identity, extrapolated": lambda: SLAF(5, domain=None, init="identity"),
}
TASKS = ("digits", "two-spiral", "friedman1", "sparse 3")
DEPTHS, WIDTHS, EPOCHS, RATE = (2, 4, 8), (32, 128), 12, 1e-2


def load(name: str) -> Task:
    task = SMALL[name]()
    unclipped = replace(task.recipe, clip=math.inf)
    return replace(task, data=(task.data[0].flatten(1), task.data[1]), epochs=EPOCHS, batch=64, recipe=unclipped)


def run(name: str, candidate: str, depth: int, width: int, seed: int) -> float:
    """The test error as a share of that of the best constant answer."""
    torch.set_num_threads(1)
    torch.manual_seed(seed)
    task = load(name)
    (x, y), _, test = split(task.data, seed)
    sizes = [x.shape[1], *[width] * depth]
    hidden = [layer for a, b in itertools.pairwise(sizes) for layer in (nn.Linear(a, b), CANDIDATES[candidate]())]
    model = nn.Sequential(*hidden, nn.Linear(width, task.outputs))
    fit(task, model, torch.optim.Adam(model.parameters(), lr=RATE), None, x, y)
    constant = 1.0 if task.is_regression else 1 - 1 / task.outputs
    return task.score(model, test) / constant


def table(rows: list[dict]) -> str:
    lines = [f"| candidate | {' | '.join(TASKS)} | broken |", f"|---|{'--:|' * (len(TASKS) + 1)}"]
    for candidate in CANDIDATES:
        ours = [row for row in rows if row["candidate"] == candidate]
        errors = [[np.nan_to_num(row["error"], nan=np.inf) for row in ours if row["task"] == task] for task in TASKS]
        cells = [f"{np.median(found):.3f}" for found in errors]
        broken = sum(not row["error"] < 0.7 for row in ours)
        lines.append(f"| {candidate} | {' | '.join(cells)} | {broken} of {len(ours)} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m examples.experiments.defaults", description=__doc__.splitlines()[0]
    )
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "local")
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1)
    arguments = parser.parse_args()
    names = ("task", "candidate", "depth", "width", "seed")
    cases = list(itertools.product(TASKS, CANDIDATES, DEPTHS, WIDTHS, range(arguments.seeds)))
    with ProcessPoolExecutor(arguments.processes) as pool:
        errors = pool.map(run, *zip(*cases, strict=True))
        rows = [dict(zip(names, case, strict=True), error=error) for case, error in zip(cases, errors, strict=True)]
    arguments.out.mkdir(parents=True, exist_ok=True)
    (arguments.out / "defaults.json").write_text(json.dumps(rows, indent=0))
    (arguments.out / "defaults.md").write_text(table(rows))
    print(table(rows))


if __name__ == "__main__":
    main()
