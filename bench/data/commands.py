"""What the subcommands of `bench data` do; `bench/cli_data.py` has their options. Each returns an
exit code."""

import argparse
import json
import sys
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from bench.data.checks import report
from bench.data.combine import combine
from bench.data.dataset import Dataset
from bench.data.flat import WRITTEN, write_flat
from bench.data.listing import run_list as run_list
from bench.data.loading import expand, load
from bench.data.making import run_make as run_make
from bench.data.memory_map import write_memory_map
from bench.data.minari_export import export_minari
from bench.data.raw import DataWarning
from bench.data.render import plot, render
from bench.errors import BenchError, DataError


@contextmanager
def _warnings_on_stderr() -> Iterator[None]:
    """Print what the loaders warn of as `warning: ...`, each text once."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", DataWarning)
        try:
            yield
        finally:
            for text in dict.fromkeys(str(w.message) for w in caught):
                print(f"warning: {text}", file=sys.stderr)


def run_get(args: argparse.Namespace) -> int:
    """`bench data get`. What an interrupted one has so far stays for the next."""
    from rich.console import Console

    from bench.data.get import get
    from bench.data.progress import download_meter
    from bench.data.sources import Options

    options = Options(
        origin=args.origin,
        mirror=args.mirror,
        offline=args.offline,
        out=args.out,
        again=args.force,
        update=args.update,
        timeout=args.timeout,
    )
    try:
        with download_meter(Console(stderr=True)) as meter:
            get(args.ids, options, lambda text: print(text, flush=True), meter)
    except KeyboardInterrupt:
        print("\nstopped; the same command resumes", file=sys.stderr)
        return 130
    return 0


def _load(ref: str, args: argparse.Namespace) -> Dataset:
    """As the options that several commands share say."""
    keys = args.observation_keys.split(",") if args.observation_keys else None
    return load(ref, env_id=args.env_id, strict=args.strict, observation_keys=keys)


def run_check(args: argparse.Namespace) -> int:
    """`bench data check`: one unusable dataset does not hide the others."""
    reports, failed = [], False
    for ref in expand(args.refs):
        try:
            with _warnings_on_stderr():
                reports.append(report(_load(ref, args)))
        except BenchError as error:
            failed = True
            print(f"error: {error}", file=sys.stderr)
    if args.json:
        print(json.dumps(reports, indent=2))
    else:
        print("\n\n".join(map(render, reports)))
    for facts in reports if args.plots else ():
        print(plot(facts, args.plots), file=sys.stderr)
    return 2 if failed else int(any(r["anomalies"] for r in reports))


def run_import(args: argparse.Namespace) -> int:
    """`bench data import`."""
    _check_target(args.out, args.force)
    with _warnings_on_stderr():
        _write(_load(args.ref, args), args.out)
    return 0


def run_export(args: argparse.Namespace) -> int:
    """`bench data export`."""
    with _warnings_on_stderr():
        dataset = _load(args.ref, args)
        print(export_minari(dataset, args.minari_id, args.root))
    return 0


def run_combine(args: argparse.Namespace) -> int:
    """`bench data combine`."""
    _check_target(args.to, args.force)
    with _warnings_on_stderr():
        refs = expand(args.refs)
        parts = [_load(ref, args) for ref in refs]
        sources = json.dumps([{"name": p.name, "fingerprint": p.fingerprint} for p in parts])
        _write(combine(parts), args.to, {"combines": sources})
    return 0


def _check_target(out: Path, force: bool) -> None:
    """Before anything is read."""
    if out.suffix not in ("", *WRITTEN):
        raise DataError(
            f"{out}: nothing is written as {out.suffix}; end it in {' or '.join(WRITTEN)} for a "
            "flat file, or in nothing for a folder of arrays"
        )
    if out.exists() and not (force and out.suffix):
        mend = "add --force" if out.suffix else "delete it"
        raise DataError(f"{out}: exists already; choose another name or {mend}")


def _write(dataset: Dataset, out: Path, attributes: Mapping[str, str] | None = None) -> None:
    """A flat file, or, without a suffix, a folder of arrays."""
    digests = {key: getattr(dataset, key) for key in ("fingerprint", "fingerprint_next")}
    (write_flat if out.suffix else write_memory_map)(
        out,
        dataset.transitions,
        env_id=dataset.recorded_env_id,
        max_episode_steps=dataset.horizon,
        attributes={"source": dataset.name, **digests, **(attributes or {})},
    )
    print(f"{out}: {dataset.stats['transitions']:,} transitions, {dataset.fingerprint}")
