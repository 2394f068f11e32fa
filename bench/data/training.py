"""The training runs behind made datasets: where they are, who trained them, and with which code."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bench.data.build import Make

Say = Callable[[str], None]
LEG = ("code", "git_commit", "versions", "machine")


def training_folder(root: Path, env_id: str, make: Make) -> Path:
    """Where the training run lives that a card's data comes from; cards share it."""
    parts = [env_id, make.algorithm, f"seed-{make.seed}"]
    parts += [f"{k}-{v}" for k, v in sorted(make.hyper.items())]
    parts += [f"every-{make.interval}"]
    return root / "-".join(str(p).replace("/", "-").replace(" ", "") for p in parts)


def train(env_id: str, make: Make, steps: int, root: Path, say: Say) -> Any:
    """The training run of a recipe (a ``Training``), gone on with up to ``steps``.

    What trained it is in its config.json; that other code goes on with it is said.

    Raises:
        RunError: while another process trains it.
    """
    from bench.engine import cpu
    from bench.online.agents import training_of
    from bench.store import GroupLock

    cpu.prepare()
    recipe, hyper = hyperparameters(make)
    folder = training_folder(root, env_id, make)

    def progress(step: int, curve: Sequence[Sequence[float]]) -> None:
        last = f", return {curve[-1][1]:.0f}" if curve else ""
        say(f"{env_id}: step {step}/{steps}{last}")

    with GroupLock(folder):
        kind = training_of(recipe)
        run = kind(recipe, hyper, env_id, make.seed, steps, folder, make.interval)
        if run.replay.size:
            say(f"{env_id}: going on from the {run.replay.size} steps in {folder}")
        _note_code(folder, run, steps, say)
        run.run(progress)
    return run


def hyperparameters(make: Make) -> tuple[Any, Any]:
    """The online recipe and its hyper-parameters."""
    from bench.online.agents import load_agent

    recipe = load_agent(make.algorithm)
    chosen = {k: tuple(v) if isinstance(v, list) else v for k, v in make.hyper.items()}
    return recipe, recipe.hyper(**chosen)


def legs(folder: Path) -> list[dict[str, Any]]:
    """What trained a run, part after part: the entries ``LEG`` of its config.json."""
    config = _config(folder)
    return [{key: leg.get(key) for key in LEG} for leg in (config, *config.get("resumed_with", []))]


def _config(folder: Path) -> dict[str, Any]:
    from bench.store import read_json

    path = folder / "config.json"
    return read_json(path) if path.exists() else {}


def _note_code(folder: Path, run: Any, steps: int, say: Say) -> None:
    """Say so where other code trained before; write down what trains from here on."""
    from bench.earlier import other_commit
    from bench.store import atomic_write
    from bench.store.files import to_json

    today, done, config = _today(run), run.replay.size, _config(folder)
    if done and not config:  # a run that is older than these notes
        config = {"code": "unknown"}
    if done and (commit := other_commit(config, today)):
        was = f"was trained by other code ({commit})"
        goes_on = (
            f"goes on with other code than it was trained with ({commit}); config.json notes both"
        )
        say(f"warning: {folder} {goes_on if done < steps else was}, another --out trains it anew")
    if done >= steps:
        return
    if not config:
        config = _identity(run) | today
    elif today["code"] not in [leg["code"] for leg in (config, *config.get("resumed_with", []))]:
        config["resumed_with"] = [*config.get("resumed_with", []), today]
    atomic_write(folder / "config.json", to_json(config))


def _identity(run: Any) -> dict[str, Any]:
    settings = {"env_id": run.env_id, "algorithm": run.recipe.name, "seed": run.seed}
    return settings | {"interval": run.interval, "hyperparameters": asdict(run.hp)}


def _today(run: Any) -> dict[str, Any]:
    from bench.engine.cpu import model_name
    from bench.provenance import code_fingerprint, git_commit, versions

    code = code_fingerprint(run.recipe.name, program=run.program)
    found = (code, git_commit(), versions(run.env_id), model_name())
    return dict(zip(LEG, found, strict=True))
