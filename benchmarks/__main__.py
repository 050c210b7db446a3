"""``python -m benchmarks``: measure, report, compare."""

from __future__ import annotations

import argparse
import contextlib
import datetime
import sys
from collections.abc import Sequence
from pathlib import Path
from time import perf_counter

from tqdm import tqdm

from slaf_ext import bases

from . import cases, compare, environment, figures, measure, memory, networks, report, results, variants

KINDS = {"times": measure.times, "memory": memory.unit_records, "network": networks.times}
PROGRESS = "{desc} {percentage:3.0f}%|{bar}| {elapsed} spent, about {remaining} left"
EXAMPLES = """examples:
  python -m benchmarks                          the quick preset: under 3 minutes on two quiet cores
  python -m benchmarks list                     what there is to measure, and how long it takes
  python -m benchmarks run full                 everything; Ctrl-C keeps what is done
  python -m benchmarks run --resume             goes on with the newest run
  python -m benchmarks run degrees --variant fused relu --degree 3 8
  python -m benchmarks report benchmarks/results/cpu-full.jsonl
  python -m benchmarks compare before.jsonl after.jsonl

How each number is taken, and what it does not say: benchmarks/README.md"""


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description="Measures slaf_ext beside what one would write instead. Without arguments: run quick.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog=EXAMPLES,
    )
    commands = top.add_subparsers(dest="command", metavar="COMMAND", required=True)

    command = commands.add_parser("run", help="measure, print the tables, keep the raw results")
    command.set_defaults(do=run)
    command.add_argument(
        "preset", nargs="?", default="quick", choices=cases.PRESETS, metavar="PRESET",
        help="quick (default), full, or a part of full: " + ", ".join(list(cases.PRESETS)[2:]),
    )  # fmt: skip
    filters = command.add_argument_group(
        "filters", "keep what has one of the values given; see `list` for what there is"
    )
    filters.add_argument("--device", default="cpu", help="cpu (default), cuda, cuda:1, …")
    for name, (kind, choices) in FILTERS.items():
        described = ", ".join(map(str, choices)) if choices else "any number"
        filters.add_argument(f"--{name}", nargs="+", type=kind, choices=choices, metavar="VALUE", help=described)
    command.add_argument("--output", type=Path, metavar="FILE", help="default: a new file in benchmarks/results/local")
    command.add_argument(
        "--resume", type=Path, nargs="?", const=Path(), metavar="FILE",
        help="go on with that run, or with the newest; the preset and the filters are in the file",
    )  # fmt: skip

    command = commands.add_parser("list", help="the presets, variants and bases")
    command.set_defaults(do=list_all)

    command = commands.add_parser("report", help="tables and figures from raw results")
    command.set_defaults(do=make_report)
    command.add_argument("results", nargs="+", type=Path, metavar="RESULTS", help="raw files, as run wrote them")
    command.add_argument("--figures", type=Path, metavar="FOLDER", help="where to draw the figures, as PNG and SVG")
    command.add_argument(
        "--readme", type=Path, metavar="FILE",
        help=f"rewrite the part of FILE between {report.BEGIN} and {report.END}: figures, what sums the results up",
    )  # fmt: skip
    command.add_argument("--details", type=Path, metavar="FILE", help="with --readme: write every table to FILE")

    command = commands.add_parser("compare", help="ratios of two runs, and what became slower")
    command.set_defaults(do=compare_two)
    command.add_argument("old", type=Path)
    command.add_argument("new", type=Path)
    return top


FILTERS = {
    "dtype": (str, tuple(cases.DTYPES)),
    "basis": (str, bases.names()),
    "degree": (int, None),
    "sharing": (str, cases.SHARINGS),
    "layout": (str, cases.LAYOUTS),
    "size": (int, None),
    "pass": (str, cases.PASSES),
    "variant": (str, variants.names()),
}


def main(arguments: Sequence[str]) -> int:
    options = parser().parse_args(arguments or ["run"])
    try:
        return options.do(options)
    except results.ResultsError as error:
        print(error, file=sys.stderr)
        return 1


def run(options: argparse.Namespace) -> int:
    if options.resume is None:
        wanted = {name: values for name in FILTERS if (values := getattr(options, name))}
        request = {"preset": options.preset, "device": options.device, "wanted": wanted}
        name = f"{options.preset}-{datetime.datetime.now():%Y%m%d-%H%M%S}.jsonl"
        path = options.output or results.LOCAL / name
        results.start(path, environment.facts(options.device), request)
        done = set()
    else:
        path = options.resume if options.resume != Path() else results.newest()
        begun = _load(path)
        results.check_same_environment(begun, environment.facts(begun.request["device"]))
        request, done = begun.request, begun.done()
    units = cases.select(cases.PRESETS[request["preset"]](request["device"]), request["wanted"])
    if not units:
        print("The filters leave nothing of the preset.", file=sys.stderr)
        return 1
    completed = measure_all([unit for unit in units if unit.key not in done], path)
    found = [results.load(path)]
    print(report.text(found))
    pictures = figures.draw_all(found, path.with_suffix(""))
    print(f"\nraw results  {_shown(path)}")
    for picture in pictures:
        print(f"figure       {_shown(picture)}")
    if not completed:
        print(f"Interrupted. Go on with: python -m benchmarks run --resume {_shown(path)}")
    return 0 if completed else 130


def measure_all(units: list[cases.Unit], path: Path) -> bool:
    """Measures the units and adds each to the file when it is done; False if interrupted."""
    try:
        with tqdm(total=sum(u.expected_seconds for u in units), bar_format=PROGRESS, dynamic_ncols=True) as progress:
            for unit in units:
                start, before = perf_counter(), progress.n

                def tick(what: str, unit: cases.Unit = unit, start: float = start, before: float = before) -> None:
                    progress.set_description_str(f"{unit.suite}: {what}"[:32].ljust(32), refresh=False)
                    progress.update(before + min(unit.expected_seconds, perf_counter() - start) - progress.n)

                results.append(path, unit, KINDS[unit.kind](unit, tick))
                progress.update(before + unit.expected_seconds - progress.n)
    except KeyboardInterrupt:
        return False
    return True


def list_all(options: argparse.Namespace) -> int:
    print("presets, and about how long they take on two quiet cores, compilers included")
    for name, preset in cases.PRESETS.items():
        units = list(preset("cpu"))
        minutes = sum(u.expected_seconds for u in units) / 60
        print(
            f"  {name:<10}{minutes:>5.1f} min {len(units):>3} units  {(preset.__doc__ or '').strip().splitlines()[0]}"
        )
    print("\nvariants\n  " + "\n  ".join(variants.names()))
    print("\nbases\n  " + "\n  ".join(bases.names()))
    return 0


def make_report(options: argparse.Namespace) -> int:
    found = [_load(path) for path in options.results]
    if options.readme is None:
        print(report.text(found))
    else:
        report.write(options.readme, found, options.figures, options.details)
        print(f"{_shown(options.readme)} rewritten between the markers")
        if options.details is not None:
            print(f"every table  {_shown(options.details)}")
    for picture in figures.draw_all(found, options.figures) if options.figures else ():
        print(f"figure       {_shown(picture)}")
    return 0


def compare_two(options: argparse.Namespace) -> int:
    print(compare.text(_load(options.old), _load(options.new)))
    return 0


def _load(path: Path) -> results.Results:
    """The results in a file; what of it could not be used is said."""
    found = results.load(path)
    for remark in found.remarks:
        print(remark, file=sys.stderr)
    return found


def _shown(path: Path) -> Path:
    """The path from where the user stands, if it lies below."""
    with contextlib.suppress(ValueError):
        return path.resolve().relative_to(Path.cwd())
    return path


if __name__ == "__main__":
    if sys.argv[1:2] in ([], ["run"]):
        environment.restart_steadily()
    sys.exit(main(sys.argv[1:]))
