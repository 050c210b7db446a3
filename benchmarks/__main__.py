"""``python -m benchmarks``: measure, report, compare."""

from __future__ import annotations

import argparse
import contextlib
import datetime
import os
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from time import perf_counter

import torch
from tqdm import tqdm

from slaf_ext import bases

from . import cases, environment, measure, memory, networks, results, variants

KINDS = {"times": measure.times, "memory": memory.unit_records, "network": networks.times}
PROGRESS = "{desc} {percentage:3.0f}%|{bar}| {elapsed} spent, about {remaining} left"
EXAMPLES = """examples:
  python -m benchmarks run degrees --variant fused relu --degree 3 8
  python -m benchmarks run --resume
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
    "size": (int, None),
    "pass": (str, cases.PASSES),
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
    made.add_argument("--resume", type=Path, nargs="?", const=Path(), metavar="FILE",
                      help="continue that run, or the newest; the file holds its preset and filters")  # fmt: skip

    commands.add_parser("list", help="the presets, variants and bases").set_defaults(do=list_all)

    made = commands.add_parser("report", help="tables and figures from raw results")
    made.set_defaults(do=report_files)
    made.add_argument("results", nargs="+", type=Path, metavar="RESULTS", help="files that run wrote")
    made.add_argument("--figures", type=Path, metavar="FOLDER", help="where to draw the figures, as PNG")
    made.add_argument("--readme", type=Path, metavar="FILE", help="rewrite FILE between its benchmark markers")
    made.add_argument("--details", type=Path, metavar="FILE", help="with --readme: write every table to FILE")

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


def run(options: argparse.Namespace) -> int | None:
    if options.resume is not None:
        path, units = resume(options)
    else:
        preset = options.preset or "quick"
        wanted = {name: values for name in FILTERS if (values := getattr(options, name))}
        units = cases.select(preset, options.device, wanted)
        if not units:
            raise results.ResultsError(f"{preset} has nothing with {wanted}; see: python -m benchmarks list")
        device = usable_device(units[0].entries[0].case.device)
        if options.profile:
            return measure.run_once(units)
        path = options.output or results.LOCAL / f"{preset}-{datetime.datetime.now():%Y%m%d-%H%M%S}.jsonl"
        if not path.suffix:
            raise results.ResultsError(f"{path} has no suffix, and its figures need a folder of that name; add .jsonl")
        results.start(path, environment.facts(device), {"preset": preset, "device": device, "wanted": wanted})
    completed = measure_all(units, path)
    print(f"raw results  {path}")
    try:
        from . import figures, report
    except ModuleNotFoundError as missing:  # measuring needs neither pandas nor matplotlib
        print(f"no tables    {missing.name} is not installed; elsewhere: python -m benchmarks report {path}")
        return None if completed else 130
    found = [results.load(path)]
    print(report.text(found), "\n")
    for picture in figures.draw_all(found, path.with_suffix("")):
        print(f"figure       {picture}")
    if not completed:
        print(f"Interrupted. Continue with: python -m benchmarks run --resume {path}")
    return None if completed else 130


def resume(options: argparse.Namespace) -> tuple[Path, list[cases.Unit]]:
    """The file to continue, and the units that it lacks."""
    given = [name for name in ("preset", "device", *FILTERS, "output") if getattr(options, name)]
    if given:
        parser().error(f"--resume takes {' and '.join(given)} from its file; leave that out, or start a new run")
    begun = load(options.resume if options.resume != Path() else results.newest())
    device = usable_device(begun.request["device"])
    results.check_same_environment(begun, environment.facts(device))
    units = cases.select(begun.request["preset"], device, begun.request["wanted"])
    return begun.path, [unit for unit in units if (unit.suite, unit.kind, unit.entries) not in begun.done]


def measure_all(units: list[cases.Unit], path: Path) -> bool:
    """Measures the units and appends each to the file when it is done; False if interrupted."""
    total = sum(unit.expected_seconds for unit in units)
    with contextlib.suppress(KeyboardInterrupt), tqdm(total=total, bar_format=PROGRESS, dynamic_ncols=True) as progress:
        for unit in units:
            start, before = perf_counter(), progress.n

            def tick(what: str, unit: cases.Unit = unit, start: float = start, before: float = before) -> None:
                progress.set_description_str(f"{unit.suite}: {what}"[:32].ljust(32), refresh=False)
                progress.update(before + min(unit.expected_seconds, perf_counter() - start) - progress.n)

            results.append(path, unit, KINDS[unit.kind](unit, tick))
            progress.update(before + unit.expected_seconds - progress.n)
        return True
    return False


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
    from . import figures, report

    found = [load(path) for path in options.results]
    if options.readme is None:
        print(report.text(found))
    else:
        report.write(options.readme, found, options.figures, options.details)
        print(f"{options.readme} rewritten between the markers")
    for picture in figures.draw_all(found, options.figures) if options.figures else ():
        print(f"figure       {picture}")


def compare_two(options: argparse.Namespace) -> None:
    from . import compare

    print(compare.text(load(options.old), load(options.new)))


def load(path: Path) -> results.Results:
    """The results in a file; remarks on damaged lines go to stderr."""
    found = results.load(path)
    for remark in found.remarks:
        print(remark, file=sys.stderr)
    return found


if __name__ == "__main__":
    if sys.argv[1:2] in ([], ["run"]) and "--profile" not in sys.argv:
        environment.restart_steadily()
    sys.exit(main(sys.argv[1:]))
