"""``python -m benchmarks``: measure, report, compare."""

from __future__ import annotations

import argparse
import contextlib
import datetime
import os
import re
import sys
import textwrap
from collections.abc import Iterable, Sequence
from pathlib import Path
from time import perf_counter

import torch
from tqdm import tqdm

from slaf_ext import bases

from . import cases, compare, environment, figures, measure, memory, networks, report, results, tables, variants

KINDS = {"times": measure.times, "memory": memory.unit_records, "network": networks.times}
PROGRESS = "{desc} {percentage:3.0f}%|{bar}| {elapsed} spent, about {remaining} left"
EXAMPLES = """examples:
  python -m benchmarks                          the quick preset: under 3 minutes on two quiet cores
  python -m benchmarks list                     what there is to measure, and how long it takes
  python -m benchmarks run full                 everything; Ctrl-C keeps what is done
  python -m benchmarks run --resume             goes on with the newest run
  python -m benchmarks run degrees --variant fused relu --degree 3 8
  python -m benchmarks run gpu                  a GPU's kernels and calls: under 100 s
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
        "preset", nargs="?", choices=cases.PRESETS, metavar="PRESET",
        help="quick (default), full, a part of full: " + ", ".join(list(cases.PRESETS)[2:-len(cases.ON_GPU)])
        + "; or, on a GPU: " + ", ".join(cases.ON_GPU),
    )  # fmt: skip
    filters = command.add_argument_group(
        "filters", "keep what has one of the values given; see `list` for what there is"
    )
    filters.add_argument("--device", type=usable_device, help="cpu, cuda, cuda:1, …; default: what the preset is for")
    for name, (kind, choices) in FILTERS.items():
        described = ", ".join(map(str, choices)) if choices else "any number" + ", 2^20 too" * (name == "size")
        filters.add_argument(f"--{name}", nargs="+", type=kind, choices=choices, metavar="VALUE", help=described)
    command.add_argument("--profile", action="store_true", help="call each variant once, for a profiler; keep nothing")
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

    command = commands.add_parser(
        "compare", help="ratios of two runs, and what became slower",
        description="The new run's times and peak memory over the old one's. fused is judged by its ratio to relu in "
        "the same run, where both have relu, since a machine is not as fast in every run.",
    )  # fmt: skip
    command.set_defaults(do=compare_two)
    command.add_argument("old", type=Path, metavar="OLD", help="raw file of the run before a change")
    command.add_argument("new", type=Path, metavar="NEW", help="raw file of the run after it")
    return top


def elements(text: str) -> int:
    """A number of elements, also as a power of 2.

    Raises:
        argparse.ArgumentTypeError: it is none.
    """
    match = re.fullmatch(r"(2\^)?(\d{1,18})", text)
    if match is None or (match[1] and int(match[2]) > 62):
        raise argparse.ArgumentTypeError(f"{text!r} is no number of elements; give it as 4096 or 2^12")
    return 2 ** int(match[2]) if match[1] else int(match[2])


# How the values of each of cases.FILTERS are read, and which there are.
FILTERS = {
    "dtype": (str, tuple(cases.DTYPES)),
    "basis": (str, (*bases.names(), cases.JACOBI.name)),
    "degree": (int, None),
    "sharing": (str, cases.SHARINGS),
    "layout": (str, cases.LAYOUTS),
    "size": (elements, None),
    "pass": (str, cases.PASSES),
    "variant": (str, variants.names()),
}


def usable_device(text: str) -> str:
    """A device that can be measured here.

    Raises:
        argparse.ArgumentTypeError: it is none; the message says what is.
    """
    if text != "cpu":
        if not re.fullmatch(r"cuda(:\d+)?", text):
            raise argparse.ArgumentTypeError(f"{text!r} is no device to measure on; give cpu, cuda, cuda:1, …")
        count = torch.cuda.device_count()
        if int(text[5:] or 0) >= count:
            raise argparse.ArgumentTypeError(f"there is no {text} here: torch finds {count} GPUs; give cpu")
    return text


def main(arguments: Sequence[str]) -> int:
    options = parser().parse_args(arguments or ["run"])
    try:
        status = options.do(options)
        sys.stdout.flush()
    except results.ResultsError as error:
        print(error, file=sys.stderr)
        return 1
    except BrokenPipeError:
        # Whoever reads has enough. What is still in the buffer must not be written at the exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141  # as a shell has it of a process that SIGPIPE ended
    return status


def run(options: argparse.Namespace) -> int:
    if options.profile:
        _, units = _asked(options)
        for unit in units:
            measure.run_once(unit)
        return 0
    path, request, done = _begin(options) if options.resume is None else _resume(options)
    units = cases.select(cases.PRESETS[request["preset"]](request["device"]), request["wanted"])
    completed = measure_all([unit for unit in units if unit.key not in done], path)
    found = [results.load(path)]
    print(report.text(found))
    drawn = figures.draw_all(found, results.pictures(path))
    print(f"\nraw results  {_shown(path)}")
    for picture in drawn:
        print(f"figure       {_shown(picture)}")
    if not completed:
        print(f"Interrupted. Go on with: python -m benchmarks run --resume {_shown(path)}")
    return 0 if completed else 130


def _begin(options: argparse.Namespace) -> tuple[Path, dict, set]:
    """A new file, what is to be measured, and what is done already: nothing."""
    request, _ = _asked(options)
    path = options.output or results.LOCAL / f"{request['preset']}-{datetime.datetime.now():%Y%m%d-%H%M%S}.jsonl"
    results.pictures(path)
    results.start(path, environment.facts(request["device"]), request)
    return path, request, set()


def _asked(options: argparse.Namespace) -> tuple[dict, list[cases.Unit]]:
    """What is to be measured.

    Raises:
        ResultsError: there is nothing of it, or no such device.
    """
    preset = options.preset or "quick"
    device = options.device or ("cuda" if preset in cases.ON_GPU else "cpu")
    _check_device(device, f"{preset} cannot be measured")
    wanted = {name: values for name in FILTERS if (values := getattr(options, name))}
    units = list(cases.PRESETS[preset](device))
    if not units:
        raise results.ResultsError(f"{preset} has nothing to measure on {device}; choose another preset.")
    chosen = cases.select(units, wanted)
    if not chosen:
        there = "; ".join(f"--{name} {' '.join(values)}" for name, values in _values(units, wanted).items())
        raise results.ResultsError(
            f"The filters leave nothing of {preset}. What it has, not all of it together: {there}."
        )
    return {"preset": preset, "device": device, "wanted": wanted}, chosen


def _check_device(device: str, otherwise: str) -> None:
    try:
        usable_device(device)
    except argparse.ArgumentTypeError as error:
        raise results.ResultsError(f"{otherwise}: {error}.") from None


def _resume(options: argparse.Namespace) -> tuple[Path, dict, set]:
    """The file to go on with, what was to be measured, and what of it is done already."""
    ignored = [name for name in ("preset", "device", *FILTERS, "output") if getattr(options, name)]
    if ignored:
        given = " and ".join("a preset" if name == "preset" else f"--{name}" for name in ignored)
        parser().error(f"--resume goes on with what its file asks for; leave out {given}, or start a new run")
    path = options.resume if options.resume != Path() else results.newest()
    begun = _load(path)
    _check_device(begun.request["device"], f"{path} cannot be gone on with")
    results.check_same_environment(begun, environment.facts(begun.request["device"]))
    results.pictures(path)
    return path, begun.request, begun.done()


def _values(units: Iterable[cases.Unit], names: Iterable[str]) -> dict[str, list[str]]:
    """What the units have of each filter's values, as one gives them."""
    entries = [entry for unit in units for entry in unit.entries]
    found = {name: list(dict.fromkeys(map(cases.FILTERS[name], entries))) for name in names}
    numbers = {"degree": str, "size": tables.power}
    return {
        name: list(map(numbers[name], sorted(values))) if name in numbers else values for name, values in found.items()
    }


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
    print("presets, and about how long they take on two quiet cores, gpu… on an H100")
    for name, preset in cases.PRESETS.items():
        units = list(preset("cuda" if name in cases.ON_GPU else "cpu"))
        minutes = sum(u.expected_seconds for u in units) / 60
        print(
            f"  {name:<12}{minutes:>5.1f} min {len(units):>3} units  {(preset.__doc__ or '').strip().splitlines()[0]}"
        )
        there = _values(units, (name for name in FILTERS if name not in ("basis", "variant")))
        said = "; ".join(f"{name} {' '.join(values)}" for name, values in there.items())
        print(textwrap.fill(said, tables.COLUMNS, initial_indent=" " * 12, subsequent_indent=" " * 12))
    print("\nvariants\n  " + "\n  ".join(variants.names()))
    print("\nbases\n  " + "\n  ".join(bases.names()))
    return 0


def make_report(options: argparse.Namespace) -> int:
    if options.details is not None and options.readme is None:
        parser().error("--details is the file that the block of a --readme links to; give that too")
    found = [_load(path) for path in options.results]
    if options.readme is None:
        if options.figures is not None:
            results.check_folder(options.figures)
        print(report.text(found))
        drawn = figures.draw_all(found, options.figures) if options.figures else []
    else:
        drawn = report.write(options.readme, found, options.figures, options.details)
        print(f"{_shown(options.readme)} rewritten between the markers")
        if options.details is not None:
            print(f"every table  {_shown(options.details)}")
    for picture in drawn:
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
    if sys.argv[1:2] in ([], ["run"]) and "--profile" not in sys.argv:
        environment.restart_steadily()
    sys.exit(main(sys.argv[1:]))
