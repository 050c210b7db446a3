"""The table of the experiments, and what they promised beside what was found."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np

from .train import OURS

# SLAF's error as a share of the best rival's.
SHARES = {"sparse 3": 1 / 20, "sparse 4": 1 / 4, "two-spiral": 0.6}
WITHIN_A_DEVIATION = ("digits", "friedman1")
NAMES = {"slaf": "SLAF, recipe", "default": "SLAF(5, channels)", "hybrid": "hybrid"}


def mean(row: dict) -> float:
    return float(np.mean(row["scores"]))


def deviation(row: dict) -> float:
    return float(np.std(row["scores"], ddof=1)) if np.isfinite(row["scores"]).all() else float("nan")


def by_task(rows: list[dict]) -> dict[str, list[dict]]:
    return {name: [row for row in rows if row["task"] == name] for name in dict.fromkeys(row["task"] for row in rows)}


def find(rows: list[dict], kind: str) -> dict | None:
    """The row of a kind; of rivals the better of its two widths."""
    return min((row for row in rows if row["network"] == kind), key=mean, default=None)


def best_rival(rows: list[dict]) -> dict:
    return min((row for row in rows if row["network"] not in OURS), key=mean)


def table(rows: list[dict]) -> str:
    """Markdown of 80 columns: ours, ReLU and the best rival of each task, then the bars."""
    cells = [("task", "network", "test error ± sd", "parameters", "ms/step")]
    for name, of in by_task(rows).items():
        best = best_rival(of)
        shown = [row for kind in (*OURS, "relu") if (row := find(of, kind))]
        for row in [*shown, *([best] if best not in shown else [])]:
            factor, unit = (1, "") if row["measure"] == "MSE" else (100, " %")
            title = NAMES.get(row["network"], row["network"] + " + BatchNorm" * row["batch_norm"])
            score = f"{factor * mean(row):.3g} ± {factor * deviation(row):.2g}{unit}"
            cells.append((name, title, score, f"{row['parameters']:,}", f"{1000 * row['seconds']:.2f}"))
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = ["| " + " | ".join(map(str.ljust, line, widths)) + " |" for line in cells]
    lines.insert(1, "|" + "|".join("-" * (width + 2) for width in widths) + "|")
    return "\n".join([*lines, "", *bars(rows)]) + "\n"


def bars(rows: list[dict]) -> list[str]:
    """A sentence for every promise, kept or missed."""
    said, worse, better = [], [], []

    def say(kept: bool, sentence: str) -> None:
        said.append(f"- {'kept' if kept else 'missed'}: {sentence}")

    for name, of in by_task(rows).items():
        ours, best = find(of, "slaf"), best_rival(of)
        ratio = mean(ours) / mean(best) if mean(best) else float("inf")
        if name in SHARES:
            size = ours["parameters"] / best["parameters"]
            found = f"{ratio:.3g} of {best['network']}'s error, with {size:.2g} of its parameters"
            say(ratio <= SHARES[name] and size <= 1.5, f"{name}, at most {SHARES[name]:.2g}: {found}.")
        elif name in WITHIN_A_DEVIATION:
            kept = mean(ours) <= mean(best) + deviation(best)
            say(
                kept, f"{name}, no worse than the best rival and a deviation: {ratio:.3g} of {best['network']}'s error."
            )
        hybrid, relu = find(of, "hybrid"), find(of, "relu")
        if not (hybrid and relu):
            continue
        worse += [name] * (not mean(hybrid) <= mean(relu) + deviation(relu))
        better += [name] * (mean(hybrid) < mean(relu) - deviation(relu))
    if not any(row["network"] == "hybrid" for row in rows):
        return said
    say(not worse, f"hybrids no worse than ReLU and a deviation: {'worse on ' + ', '.join(worse) if worse else 'all'}.")
    say(len(better) > 1, f"hybrids better than ReLU by more than a deviation, twice: {', '.join(better) or 'nowhere'}.")
    return said


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m examples.experiments.report", description=__doc__)
    parser.add_argument("raw", type=Path, help="a raw.json")
    print(table(json.loads(parser.parse_args().raw.read_text())["rows"]))
