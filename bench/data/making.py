"""`bench data make`: datasets from their cards, and of any environment.

What was made is judged before it is put where loading looks for it, and replaces nothing unasked.
"""

import argparse
import sys
from pathlib import Path

from bench.data.assemble import About, to_dataset
from bench.data.build import Made, Make, make_dataset, write_made
from bench.data.card import Card, cards
from bench.data.dataset import Dataset
from bench.data.flat import WRITTEN, read_flat
from bench.data.levels import Wish, card_of
from bench.data.loading import expand
from bench.data.staging import commit, discard, staging
from bench.data.training import Say
from bench.errors import ConfigError, DataError

# what a set without a card is made with
DEFAULTS = {
    "algo": "sac",
    "steps": 300_000,
    "transitions": 0,
    "seed": 0,
    "interval": 5_000,
    "set": [],
}


def run_make(args: argparse.Namespace) -> int:
    """`bench data make`."""
    say: Say = lambda text: print(text, flush=True)  # noqa: E731
    root = args.out / "make"
    if args.to and args.to.suffix not in WRITTEN:
        raise ConfigError(f"--to {args.to}: is written as HDF5; end it in {' or '.join(WRITTEN)}")
    if args.to and args.to.exists() and not args.force:
        raise DataError(f"{args.to}: exists already; choose another name or add --force")
    if args.env_id:
        return _make_for(args, root, say)
    ids = expand(args.ids)
    if args.to and len(ids) > 1:
        raise ConfigError(f"--to {args.to}: takes one dataset, not {len(ids)}; leave it out")
    if not ids or args.kind:
        raise ConfigError("give ids of datasets, or an environment with --env-id and --kind")
    _refuse_ignored(args)
    return max([_make_or_refuse(name, args, root, say) for name in ids])


def _refuse_ignored(args: argparse.Namespace) -> None:
    """A card says all of this; what is given beside an id would change nothing."""
    for name, default in DEFAULTS.items():
        if getattr(args, name) != default:
            raise ConfigError(
                f"--{name}: {args.ids[0]} is made as its card says; leave it out, or make another "
                "set with --env-id, --kind and --to"
            )


def _make_or_refuse(name: str, args: argparse.Namespace, root: Path, say: Say) -> int:
    """One set that is refused does not keep the others from being made."""
    try:
        return _make_from_card(name, args, root, say)
    except DataError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


def _make_from_card(name: str, args: argparse.Namespace, root: Path, say: Say) -> int:
    card = cards().get(name)
    if card is None:
        raise ConfigError(f"{name} has no card: give --env-id and --kind instead of an id")
    if card.combine:
        say(f"{card.id}: combines {' and '.join(card.combine)}, nothing to make")
        return 0
    make = Make.of(card)
    path = args.to or _place(card, root)
    if path.exists() and not args.force:
        return _keep(card, make, path, say)
    made = make_dataset(card, root, say)
    good, text = made.verdict(card, make)
    apart = path == card.path and not good
    path = root / path.name if apart else path
    _install(made, card, path, say)
    say(f"{card.id}: {path}\n  fingerprint {made.fingerprint}\n  {text}")
    if apart:
        print(
            f"error: {card.path}: return_mean: {text}; so the set was not put there and {card.id} "
            f"does not load it; use it by its path, or make it anew with another --out",
            file=sys.stderr,
        )
    return 0 if good else 1


def _keep(card: Card, make: Make, path: Path, say: Say) -> int:
    """What is there already stays, and is the card's set or refused."""
    try:
        raw = read_flat(path)
        held = to_dataset(raw, About(card.id))
    except DataError as error:
        raise DataError(f"{error} (or make it anew: --force)") from error
    if not make.made(raw.attributes.get("recipe", "")):
        raise DataError(
            f"{path}: recipe: exists already and was not made as the card of {card.id} says; "
            "replace it by --force, or choose another place by --to"
        )
    good, text = make.verdict(card, _digests(held), held.stats["return_mean"])
    say(f"{card.id}: is here already ({path}); --force makes it anew\n  {text}")
    return 0 if good else 1


def _digests(data: Dataset | Made) -> tuple[str, str]:
    return data.fingerprint, data.fingerprint_next


def _install(made: Made, card: Card, path: Path, say: Say) -> None:
    """Write the file beside its place, read it back as loading does, then put it there."""
    with staging(path, lambda: say(f"{path}: waiting for another process")) as folder:
        staged = folder / path.name
        try:
            write_made(made, card, staged)
            back = to_dataset(read_flat(staged), About(card.id))
            if _digests(back) != _digests(made):
                raise DataError(f"{staged}: holds other data than were made; is the disk sound?")
        except DataError:
            discard(staged)
            raise
        commit(folder, staged, path)


def _place(card: Card, root: Path) -> Path:
    """Beside the training runs for sets that are in git; where it is looked for for others."""
    assert card.path is not None
    return card.path if card.made else root / card.path.name


def _make_for(args: argparse.Namespace, root: Path, say: Say) -> int:
    """A dataset that no card describes."""
    if args.ids:
        raise ConfigError(f"--env-id {args.env_id}: leave out the ids {', '.join(args.ids)}")
    if not args.kind or not args.to:
        raise ConfigError(f"--env-id {args.env_id}: needs --kind and --to as well")
    settings = dict(_setting(text) for text in args.set)
    wish = Wish(
        args.env_id,
        args.kind,
        args.algo,
        args.steps,
        args.transitions,
        args.seed,
        args.interval,
        settings,
    )
    card = card_of(wish, root, say)
    made = make_dataset(card, root, say)
    _install(made, card, args.to, say)
    facts = f"{made.stats['transitions']:,} transitions, {made.stats['episodes']:,} episodes"
    say(f"{args.to}: {facts}, mean return {made.stats['return_mean']:.1f}")
    say(f"  fingerprint {made.fingerprint}")
    return 0


def _setting(text: str) -> tuple[str, str]:
    key, found, value = text.partition("=")
    if not found:
        raise ConfigError(f"--set {text}: write it as key=value")
    return key, value
