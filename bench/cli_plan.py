"""``bench plan``: what a request will take on this machine, and what fits into a budget of time."""

from __future__ import annotations

import argparse
import re
import shlex
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from bench.errors import ConfigError

_DESCRIPTION = """Says what `bench run` with the same options will take, without training: a few
seconds of every program are measured (once: OUT/cache/speed.json keeps them), on as many processes
at a time as will train. Evaluations are counted as if every episode were a full one."""
_EXAMPLES = """examples:
  bench plan --algo td3_bc iql cql --dataset 'lite/hopper/*' --seeds 5
  bench plan --algo '*' --dataset lite --profile paper --budget 8h
"""
_UNITS = {"s": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0, "d": 86400.0}


def register(
    commands: argparse._SubParsersAction,
    add_request: Callable[[argparse.ArgumentParser], None],
    read_request: Callable[[argparse.Namespace], tuple[Any, int]],
) -> None:
    """``add_request`` and ``read_request`` are those of ``bench run``; the latter gives the request
    and how many workers there will be."""
    parser = commands.add_parser(
        "plan",
        help="time and memory that a run will take, and what fits into a budget",
        description=_DESCRIPTION,
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_request(parser)
    parser.add_argument(
        "--budget",
        type=duration,
        metavar="TIME",
        help="choose the most informative part that ends within this time, like 30min, 8h or 2d",
    )
    parser.set_defaults(handler=lambda args: plan(*read_request(args), args))


def duration(text: str) -> float:
    """Seconds of '90s', '30min', '8h', '1.5d'."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?) ?(s|min|m|h|d)", text)
    if match is None or float(match[1]) == 0:
        raise argparse.ArgumentTypeError(f"{text!r} is not a time like 30min, 8h or 2d")
    return float(match[1]) * _UNITS[match[2]]


def plan(request: Any, workers: int, args: argparse.Namespace) -> int:
    from bench import forecast
    from bench.plan import make_plan

    made = make_plan(request, workers)
    print("\n".join([made.summary, *made.notes]))
    if not made.tasks:
        return 0
    calibration = forecast.Calibration(request.out, workers)
    found = forecast.costs(made, calibration, lambda text: print(text, file=sys.stderr))
    print("\n".join(["", *table(found), "", *totals(found, workers)]))
    if args.budget is not None:
        print("\n".join(["", *budget(found, workers, args.budget, options(args))]))
    return 0


def table(found: Sequence[Any]) -> Iterator[str]:
    """A line per task."""
    from bench.engine.memory import spell

    rows = [("dataset", "algorithm", "seeds", "updates/s", "memory", "training", "evaluations")]
    for cost in found:
        task = cost.task
        rows.append(
            (
                task.record["dataset"],
                task.record["label"],
                spell_seeds(task.seeds) + (f" from {cost.done}" if cost.done else ""),
                f"{cost.rate:.3g}",
                spell(cost.speed.memory),
                spell_time(cost.speed.start + cost.training),
                f"at most {spell_time(cost.evaluating)}" if cost.evaluating else "none",
            )
        )
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        yield "  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip()


def spell_seeds(seeds: Sequence[int]) -> str:
    """'0-4' for what follows one another, else '0,2'."""
    whole = len(seeds) > 2 and list(seeds) == list(range(seeds[0], seeds[-1] + 1))
    return f"{seeds[0]}-{seeds[-1]}" if whole else ",".join(map(str, seeds))


def spell_time(seconds: float) -> str:
    """'40 s', '12 min', '3 h 20 min', '2 d 4 h'."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    if minutes < 60:
        return f"{minutes} min"
    hours, rest = divmod(minutes, 60)
    return f"{hours} h {rest} min" if hours < 48 else f"{hours // 24} d {hours % 24} h"


def totals(found: Sequence[Any], workers: int) -> Iterator[str]:
    from bench import forecast
    from bench.engine.memory import machine, spell

    work = sum(cost.seconds for cost in found)
    busy = min(workers, len(found))
    wall = forecast.makespan([cost.seconds for cost in found], workers)
    yield f"{spell_time(work)} of work; {spell_time(wall)} on {count(busy, 'worker')}"
    needed, there = forecast.most_memory(found, busy), machine()
    yield f"{spell(needed)} of memory where the largest meet, of {spell(there)}"
    if needed > there:
        most = max(n for n in range(busy) if forecast.most_memory(found, n) <= there)
        mend = f"--workers {most}" if most else "a smaller batch_size or fewer --seeds"
        yield f"that does not fit: use {mend}"
    devices = [cost.speed.device_memory for cost in found if cost.speed.device_memory]
    if devices:
        yield f"{spell(max(devices))} of the GPU's memory for the largest"


def count(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"


def budget(found: Sequence[Any], workers: int, seconds: float, asked: str) -> Iterator[str]:
    """What a budget buys and why, and the commands that run it.

    Raises:
        ConfigError: when not even one seed of the cheapest cell fits.
    """
    from bench import forecast

    choice = forecast.choose(found, seconds, workers)
    kept = forecast.with_seeds(found, choice.seeds)
    if not choice.steps:
        least = min(cost.seconds / len(cost.task.seeds) for cost in found)
        raise ConfigError(
            f"--budget: {spell_time(seconds)} on {count(workers, 'worker')} is too little for any "
            f"cell: the cheapest seed takes about {spell_time(least)}; raise it or lower --steps"
        )
    every, runs = (sum(len(c.task.seeds) for c in part) for part in (found, kept))
    wall = forecast.makespan([cost.seconds for cost in kept], workers)
    yield f"a budget of {spell_time(seconds)} takes {runs} of {count(every, 'run')}, about " + (
        f"{spell_time(wall)} on {count(workers, 'worker')}:"
    )
    for step in choice.steps:
        algorithms = ", ".join(algorithm for _, algorithm in step.cells)
        yield f"  {step.cells[0][0]}: {algorithms} ({spell_time(step.seconds / workers)})"
        yield f"      {step.why}"
    for dataset, algorithm in choice.left_out:
        yield f"  left out: {algorithm} on {dataset}"
    yield "run it with:"
    for name, together, number in commands(choice.seeds):
        what = f"--algo {shlex.join(together)} --dataset {shlex.quote(name)} --seeds {number}"
        yield f"  bench run {what}{asked}"


def commands(seeds: Any) -> Iterator[tuple[str, list[str], int]]:
    """(dataset, algorithms, seeds): the cells of a dataset with equally many seeds together."""
    grouped: dict[tuple[str, int], list[str]] = {}
    for (dataset, algorithm), number in seeds.items():
        if number:
            grouped.setdefault((dataset, number), []).append(algorithm)
    for (dataset, number), algorithms in grouped.items():
        yield dataset, algorithms, number


def options(args: argparse.Namespace) -> str:
    """What else was asked for, as it is written on a command line."""
    text = ""
    for name in ("steps", "profile", "device", "env_id", "eval_interval", "eval_episodes"):
        value = getattr(args, name)
        if value not in (None, "quick", "auto"):
            text += f" --{name.replace('_', '-')} {shlex.quote(str(value))}"
    for name in ("compile", "tf32", "strict"):
        text += f" --{name}" if getattr(args, name) else ""
    if args.settings:
        text += f" --set {shlex.join(args.settings)}"
    if args.workers:
        text += f" --workers {args.workers}"
    return text + (f" --out {shlex.quote(str(args.out))}" if str(args.out) != "results" else "")
