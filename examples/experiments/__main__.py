"""SLAF beside its rivals on the paper's tasks and others: ``python -m examples.experiments --help``.

Every network has the same optimiser, schedule, clipping and epochs. Each kind gets its own rate, and a BatchNorm or
none, by the validation split of a seed of its own; rivals run again at the width at which they have SLAF's parameters.
What is reported is the test split at the last epoch, mean and deviation over the seeds.
"""

from __future__ import annotations

import argparse
import functools
import itertools
import json
import math
import os
import platform
import statistics
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, replace
from pathlib import Path

import torch
from tqdm import tqdm

from .report import table
from .tasks import FULL, SMALL, Task, images, split
from .train import OURS, RIVALS, Choice, parameters, train, widened

CHOOSING = 10_000  # the seed of the choices
HERE = Path(__file__).parent


@functools.lru_cache(maxsize=1)
def load(name: str, sizes: str, folder: Path | None, epochs: int | None) -> Task:
    task = images(name, folder) if folder else (FULL if sizes == "full" else SMALL)[name]()
    return replace(task, epochs=epochs or task.epochs)


def run(load_task: functools.partial, kind: str, choice: Choice, seed: int, scale: float, part: int) -> dict:
    """One training, scored on part 1 of the split, for a choice, or part 2, for the result."""
    torch.set_num_threads(1)
    task = load_task()
    model, seconds = train(task, kind, choice, seed, scale)
    score = task.score(model, split(task.data, seed)[part])
    # A run that broke down counts as infinitely bad.
    return {"score": score if math.isfinite(score) else math.inf, "seconds": seconds, "parameters": parameters(model)}


def experiment(load_task: functools.partial, kinds: tuple[str, ...], rates: tuple[float, ...], seeds: int, pool, bar):
    """A row for each kind, and for rivals that are widened one more."""
    task = load_task()

    def submit(*arguments):
        future = pool.submit(run, load_task, *arguments)
        future.add_done_callback(lambda _: bar.update())
        return future

    trials = {}
    for kind in kinds:
        has_norms = kind in RIVALS or kind == "hybrid" or (kind == "slaf" and task.recipe.batch_norm)
        may = task.may_normalize and has_norms
        for choice in itertools.starmap(Choice, itertools.product(rates, (True, False) if may else (False,))):
            trials[kind, choice] = submit(kind, choice, CHOOSING, 1.0, 1)
    rows = []
    for kind in kinds:
        by_choice = {choice: trial.result()["score"] for (of, choice), trial in trials.items() if of == kind}
        choice = min(by_choice, key=by_choice.__getitem__)
        scales = {1.0: "equal widths"}
        if kind in RIVALS and (scale := widened(task, kind, choice.batch_norm)) > 1:
            scales[scale] = "equal parameters"
        for scale, name in scales.items():
            runs = [submit(kind, choice, seed, scale, 2) for seed in range(seeds)]
            rows.append({"task": task.name, "network": kind, "size": name, **asdict(choice), "runs": runs})
    for row in rows:
        done = [future.result() for future in row.pop("runs")]
        row["scores"] = [d["score"] for d in done]
        row["seconds"] = statistics.median(d["seconds"] for d in done)
        row["parameters"] = done[0]["parameters"]
        row["measure"] = "MSE" if task.is_regression else "error %"
        row["epochs"] = task.epochs
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m examples.experiments", description=__doc__.splitlines()[0])
    sizes = parser.add_mutually_exclusive_group()
    sizes.add_argument("--quick", action="store_true", help="half the epochs, three seeds, two rates, two rivals")
    sizes.add_argument("--full", action="store_true", help="the paper's sizes; hours on a CPU for all networks")
    parser.add_argument("--task", nargs="+", choices=[*SMALL], help="these alone")
    parser.add_argument("--network", nargs="+", choices=[*OURS, *RIVALS], help="these alone; slaf and a rival at least")
    parser.add_argument("--seeds", type=int, help="how many; 5, or 3 if quick")
    parser.add_argument("--out", type=Path, default=HERE / "results" / "local", help="the folder for the results")
    for name in ("mnist", "fashion", "cifar10"):
        parser.add_argument(f"--{name}", type=Path, help="a folder with its files, for a task more")
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1, help="each runs one training at a time")
    arguments = parser.parse_args()
    seeds = arguments.seeds or (3 if arguments.quick else 5)
    if seeds < 2:
        parser.error(f"--seeds is {seeds}; a deviation needs at least 2")
    if arguments.full and (unknown := [name for name in arguments.task or () if name not in FULL]):
        parser.error(f"{unknown[0]} has no full size; those that have one are {', '.join(FULL)}")
    kinds = arguments.network or (*OURS, *(("relu", "gelu") if arguments.quick else RIVALS))
    if "slaf" not in kinds or not set(kinds) & {*RIVALS}:
        parser.error(f"--network is {' '.join(kinds)}; a comparison needs slaf and a rival")
    rates = (1e-2, 3e-3) if arguments.quick else (2e-2, 1e-2, 3e-3)
    size = "full" if arguments.full else "small"
    chosen = [(name, None) for name in arguments.task or (FULL if arguments.full else SMALL)]
    chosen += [(name, getattr(arguments, name)) for name in ("mnist", "fashion", "cifar10") if getattr(arguments, name)]
    arguments.out.mkdir(parents=True, exist_ok=True)

    facts = {"torch": torch.__version__, "machine": platform.platform(), "seeds": seeds, "size": size}
    rows: list[dict] = []
    with ProcessPoolExecutor(arguments.processes) as pool, tqdm(unit=" networks") as bar:
        for name, folder in chosen:
            bar.set_description(name)
            epochs = load(name, size, folder, None).epochs // 2 if arguments.quick else None
            rows += experiment(functools.partial(load, name, size, folder, epochs), kinds, rates, seeds, pool, bar)
            (arguments.out / "raw.json").write_text(json.dumps({**facts, "rows": rows}, indent=1))
            (arguments.out / "table.md").write_text(table(rows))
    print(table(rows))


if __name__ == "__main__":
    main()
