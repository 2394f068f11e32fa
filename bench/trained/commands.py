"""The course of ``bench evaluate`` and ``bench export``."""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Iterable, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

from bench.errors import ConfigError
from bench.provenance import code_fingerprint, spell_commit, versions
from bench.report.stats import mean, sd
from bench.store import atomic_write
from bench.store.files import to_json
from bench.trained.run import Trained, data_of, find_runs, open_run, read_config

_TELL_SECONDS = 10.0


def run_evaluate(args: argparse.Namespace) -> int:
    from bench.engine import cpu
    from bench.trained.evaluate import file_name, how_of, record, roll_out
    from bench.trained.film import check_possible, film

    paths = find_runs(args.runs)
    for path in paths:  # whatever is wrong with one is said before hours are spent on others
        read_config(path)
    if args.video:
        check_possible(args.video, len(paths))
    cpu.prepare()  # the arithmetic of training
    records = []
    for path in paths:
        run = open_run(path, args.checkpoint, target=args.target_return, dataset=args.dataset)
        options = {k: getattr(args, k) for k in ("episodes", "env_id", "horizon", "seed")}
        how = how_of(run, **options)
        if args.video:
            found = film(run, how, args.video, Meter(f"{run.name}, film", 1))
            print(f"{args.video}: an episode of return {found.returns[0, 0]:.6g}")
        found = roll_out(run, how, Meter(run.name, how.episodes))
        records.append(record(run, how, found))
        file = path / "evaluations" / file_name(records[-1])
        atomic_write(file, to_json(records[-1]))
        print("\n".join(lines_of(run, records[-1], file)), flush=True)
        if args.out:
            atomic_write(args.out, json.dumps(records, indent=2, sort_keys=True) + "\n")
    print("\n".join(over_seeds(records)), end="\n" if len(records) > 1 else "")
    return 0


class Meter:
    """Every ten seconds a line on how far a long evaluation is."""

    def __init__(self, name: str, episodes: int) -> None:
        self.name, self.episodes = name, episodes
        self.started = self.told = time.monotonic()

    def __call__(self, over: int, steps: int) -> None:
        now = time.monotonic()
        if now - self.told < _TELL_SECONDS:
            return
        self.told = now
        left = (now - self.started) / over * (self.episodes - over) if over else None
        more = f", about {left:.0f} s left" if left is not None else ""
        text = f"{self.name}: {over} of {self.episodes} episodes, step {steps} of the next{more}"
        print(text, file=sys.stderr, flush=True)


def lines_of(run: Trained, record: dict[str, Any], file: Path) -> list[str]:
    """What is printed of an evaluation."""
    horizon = "" if record["horizon"] is None else f", horizon {record['horizon']}"
    asked = record["target_return"]
    target = "" if asked is None else f", asked for a return of {asked:g}"
    length = record["length"]
    rows = [
        ("environment", f"{record['env_id']}{horizon}, {record['episodes']} episodes, start states "
                        f"of seed {record['seed']}{target}"),
        ("return", _spelled(record["return"])),
        ("normalized", record["normalized"] and _spelled(record["normalized"])),
        ("length", f"{length['mean']:.1f} steps (from {length['min']} to {length['max']})"),
        *(("note", note) for note in notes_of(run, record)),
        ("written", str(file)),
    ]  # fmt: skip
    head = f"{run.name}: {run.which} checkpoint, step {run.step}"
    return [head, *(f"  {name:<12} {text}" for name, text in rows if text)]


def _spelled(summary: dict[str, Any]) -> str:
    if summary["sd"] is None:
        return f"{summary['mean']:.2f}"
    low, high = summary["interval"]
    text = f"{summary['mean']:.2f} ± {summary['sd']:.2f} (sd of episodes)"
    return f"{text}, 95 % interval of the mean {low:.2f} to {high:.2f}"


def notes_of(run: Trained, record: dict[str, Any]) -> Iterable[str]:
    """How the episodes relate to those that training recorded, and what to beware of."""
    compared = record["as_recorded"]
    if compared is not None:
        off, count = compared["largest_difference"], compared["episodes"]
        if not off:
            yield f"the first {count} episodes return what training recorded, to the last bit"
        else:
            why = "; ".join(_changes(run, record)) or "another machine or device"
            yield f"the first {count} episodes are off the recorded ones by up to {off:.3g}: {why}"
        if run.which == "best":
            yield "this checkpoint was chosen by these episodes; --seed takes others"
    elif run.config.get("env_id") != record["env_id"]:
        yield f"trained for {run.config.get('env_id')}, whose reference returns do not apply"


def _changes(run: Trained, record: dict[str, Any]) -> Iterable[str]:
    """What differs today from what the run was trained with."""
    config = run.config
    if config.get("code") not in (None, code_fingerprint(run.recipe.name)):
        yield f"other code (trained at commit {spell_commit(config.get('git_commit'))})"
    then = config.get("versions") or {}
    for name, now in versions(record["env_id"]).items():
        if then.get(name, now) != now:
            yield f"{name} {then[name]} then, {now} now"


def over_seeds(records: Sequence[dict[str, Any]]) -> Iterable[str]:
    """One line per cell of several seeds: over the means of its seeds."""
    for cell, found in groupby(records, lambda record: record["run"].rpartition("/")[0]):
        group = list(found)
        if len(group) > 1:
            unit = "normalized" if all(r["normalized"] for r in group) else "return"
            values = [r[unit]["mean"] for r in group]
            spread = f"{mean(values):.2f} ± {sd(values):.2f}"
            yield f"{cell}: {unit} {spread} (sd of {len(group)} seeds)"


def run_export(args: argparse.Namespace) -> int:
    from bench.trained.export import example, export
    from bench.trained.formats import format_of

    chosen = format_of(args.format)
    paths = find_runs([args.run])
    if len(paths) > 1:
        raise ConfigError(f"{args.run}: holds {len(paths)} runs; name one, like {paths[0]}")
    (path,) = paths
    run = open_run(path, args.checkpoint, dataset=args.dataset)
    dataset = data_of(path, run.config, args.dataset)
    folder = args.to or path / "export" / f"{args.checkpoint}-{args.format}"
    about = export(run, args.format, folder, dataset)
    checked = about["verified"]
    size = (folder / chosen.file).stat().st_size
    print(f"{run.name}: {run.which} checkpoint, step {run.step}")
    print(f"  written      {folder / chosen.file} ({size / 1000:.0f} kB) and policy.json")
    verdict = (
        f"on {checked['observations']} observations of {dataset.name}, without this project, "
        f"actions differ from the policy's by up to {checked['largest_difference']:.3g} "
        f"(limit {checked['limit']:g})"
    )
    if not checked["equal"]:
        print(f"error: {verdict}: do not use {folder}; both files are kept", file=sys.stderr)
        return 1
    print(f"  verified     {verdict}\n\nin {folder}:\n")
    print(example(run, chosen, about))
    return 0
