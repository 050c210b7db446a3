"""``python -m benchmarks``: measure, report, compare."""

from __future__ import annotations

import argparse
import datetime
import os
import re
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from tqdm import tqdm

from slaf_ext import bases

from . import cases, environment, measure, memory, networks, results, variants

KINDS = {"times": measure.times, "memory": memory.unit_records, "network": networks.times}
PROGRESS = "{desc} {percentage:3.0f}%|{bar}| {elapsed} spent, about {remaining} left"
EXAMPLES = """examples:
  python -m benchmarks run degrees --variant fused relu --degree 3 8
  python -m benchmarks run full
  python -m benchmarks report benchmarks/results/cpu-full.jsonl
  python -m benchmarks compare before.jsonl after.jsonl

How each number is measured, and what it does not say: benchmarks/README.md"""


def usable_device(text: str) -> str:
    """A device that can be measured here."""
    if not re.fullmatch(r"cpu|cuda(:\d+)?", text):
        raise argparse.ArgumentTypeError(f"{text!r} is not a device to measure on; give cpu, cuda, cuda:1, …")
    if text != "cpu" and int(text[5:] or 0) >= (count := torch.cuda.device_count()):
        raise argparse.ArgumentTypeError(f"there is no {text} here: torch finds {count} GPUs; give cpu")
    return text


# The filters of run: how a value is read, and which values there are.
FILTERS = {
    "dtype": (str, tuple(cases.DTYPES)),
    "basis": (str, (*bases.names(), cases.JACOBI.name)),
    "degree": (int, None),
    "sharing": (str, cases.SHARINGS),
    "layout": (str, cases.LAYOUTS),
    "numel": (int, None),
    "passes": (str, cases.PASSES),
    "variant": (str, variants.names()),
}


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(
        prog="python -m benchmarks", epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter,
        description="Measures slaf_ext beside what one would write instead. Without arguments: run quick.",
    )  # fmt: skip
    commands = top.add_subparsers(metavar="COMMAND", required=True)

    made = commands.add_parser("run", help="measure, print the tables, keep the raw results")
    made.set_defaults(do=run)
    made.add_argument("preset", nargs="?", choices=cases.PRESETS, metavar="PRESET", help=", ".join(cases.PRESETS))
    made.add_argument("--device", type=usable_device, help="cpu, cuda, cuda:1, …; default: what the preset is for")
    for name, (kind, choices) in FILTERS.items():
        text = f"keep only: {', '.join(choices) if choices else 'any numbers'}"
        made.add_argument(f"--{name}", nargs="+", type=kind, choices=choices, metavar="VALUE", help=text)
    made.add_argument("--profile", action="store_true", help="call each variant once, for a profiler; keep nothing")
    made.add_argument("--output", type=Path, metavar="FILE", help="default: a new file in benchmarks/results/local")

    commands.add_parser("list", help="the presets, variants and bases").set_defaults(do=list_all)

    made = commands.add_parser("report", help="tables and figures from raw results")
    made.set_defaults(do=report_files)
    made.add_argument("results", nargs="+", type=Path, metavar="RESULTS", help="files that run wrote")
    made.add_argument("--publish", action="store_true",
                      help="write the block of README.md, REPORT.md and the figures of this repository")  # fmt: skip

    made = commands.add_parser("compare", help="what became slower or larger between two runs")
    made.set_defaults(do=compare_two)
    made.add_argument("old", type=Path, metavar="OLD", help="raw file of the run before a change")
    made.add_argument("new", type=Path, metavar="NEW", help="raw file of the run after it")
    return top


def main(arguments: Sequence[str]) -> int:
    options = parser().parse_args(arguments or ["run"])
    try:
        status = options.do(options) or 0
        sys.stdout.flush()
    except (results.ResultsError, argparse.ArgumentTypeError) as error:
        print(error, file=sys.stderr)
        return 1
    except BrokenPipeError:  # the reader of a pipe has enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except OSError as error:
        print(f"{error.filename} cannot be used: {error.strerror}.", file=sys.stderr)
        return 1
    return status


def run(options: argparse.Namespace) -> int:
    preset = options.preset or "quick"
    wanted = {name: values for name in FILTERS if (values := getattr(options, name))}
    units = cases.select(preset, options.device, wanted)
    if not units:
        raise results.ResultsError(f"{preset} has nothing with {wanted}; see: python -m benchmarks list")
    device = usable_device(units[0].entries[0].case.device)
    if options.profile:
        measure.run_once(units)
        return 0
    path = options.output or results.LOCAL / f"{preset}-{datetime.datetime.now():%Y%m%d-%H%M%S}.jsonl"
    if not path.suffix:
        raise results.ResultsError(f"{path} has no suffix, and its figures need a folder of that name; add .jsonl")
    results.start(path, environment.facts(device), {"preset": preset, "device": device, "wanted": wanted})
    status = measure_all(units, path)
    print(f"raw results  {path}")
    try:
        from . import figures, report
    except ModuleNotFoundError as missing:  # measuring needs neither pandas nor matplotlib
        print(f"no tables    {missing.name} is not installed; elsewhere: python -m benchmarks report {path}")
        return status
    found = [results.load(path)]
    print(report.text(found), "\n")
    for picture in figures.draw_all(found, path.with_suffix("")):
        print(f"figure       {picture}")
    return status


def measure_all(units: list[cases.Unit], path: Path) -> int:
    """Measures the units and appends each to the file when it is done; the exit status."""
    total = sum(unit.expected_seconds for unit in units)
    with tqdm(total=total, bar_format=PROGRESS, dynamic_ncols=True) as progress:
        for unit in units:
            try:
                records = KINDS[unit.kind](
                    unit, lambda what, suite=unit.suite: progress.set_description_str(f"{suite}: {what}"[:32].ljust(32))
                )
            except KeyboardInterrupt:
                print("Interrupted. To complete it, run the missing presets and give report all the files.")
                return 130
            results.append(path, unit, records)
            progress.update(unit.expected_seconds)
    return 0


def list_all(options: argparse.Namespace) -> None:
    print("presets, and about how long they take on two idle cores (gpu…: on an H100)")
    for name, preset in cases.PRESETS.items():
        units = cases.select(name)
        degrees = sorted({entry.case.degree for unit in units for entry in unit.entries})
        print(f"  {name:<12}{sum(unit.expected_seconds for unit in units) / 60:>5.1f} min  {preset.__doc__}")
        print(f"{'':25}degree {' '.join(map(str, degrees))}")
    for title, names in (("variants", variants.names()), ("bases", bases.names())):
        print(f"\n{title}\n  " + "\n  ".join(names))


def report_files(options: argparse.Namespace) -> None:
    from . import report

    found = [results.load(path) for path in options.results]
    report.publish(found) if options.publish else print(report.text(found))


def compare_two(options: argparse.Namespace) -> None:
    from . import compare

    print(compare.text(results.load(options.old), results.load(options.new)))


if __name__ == "__main__":
    if sys.argv[1:2] in ([], ["run"]) and "--profile" not in sys.argv:
        environment.restart_steadily()
    sys.exit(main(sys.argv[1:]))
