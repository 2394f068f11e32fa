"""From a request (algorithms, datasets, seeds, profile) to tasks: groups of seeds to be trained."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from bench.earlier import check_next_observations, other_code
from bench.engine.beside import default_workers
from bench.engine.memory import default_limit
from bench.engine.task import Task
from bench.errors import ConfigError
from bench.provenance import code_fingerprint, git_commit, versions
from bench.recipe import Recipe, load_recipe
from bench.recipes import expand_names
from bench.store import RunFolder, config_hash, read_json

SCHEMA_VERSION = 1
_DOMAINS = {
    "gym-mujoco": ("hopper", "halfcheetah", "walker2d", "ant"),
    "adroit": ("pen", "door", "hammer", "relocate"),
    "antmaze": ("antmaze",),
    "kitchen": ("kitchen",),
}


_SEEDS = {"quick": 2, "paper": 5}
_QUICK_EVAL_INTERVAL, _QUICK_EVAL_EPISODES = 2_000, 10


@dataclass(frozen=True)
class Protocol:
    """How a run is evaluated."""

    eval_interval: int
    eval_episodes: int


@dataclass(frozen=True)
class Request:
    """What the command line asks for."""

    algorithms: tuple[str, ...]
    datasets: tuple[str, ...]
    seeds: int | None = None
    steps: int | None = None
    profile: str = "quick"
    device: str = "auto"
    compile: bool = False
    tf32: bool = False
    settings: Mapping[str, str] = field(default_factory=dict)
    out: Path = Path("results")
    env_id: str | None = None
    strict: bool = False
    eval_interval: int | None = None  # instead of the profile's
    eval_episodes: int | None = None
    data_memory: int | None = None  # bytes; None: by the memory there is
    eval_workers: int | None = None  # None: as many as the device leaves cores for

    def protocol(self, recipe: Recipe) -> Protocol:
        """The profile's evaluations, or what was asked for instead."""
        quick = self.profile == "quick"
        interval = _QUICK_EVAL_INTERVAL if quick else recipe.eval_interval
        episodes = _QUICK_EVAL_EPISODES if quick else recipe.eval_episodes
        return Protocol(self.eval_interval or interval, self.eval_episodes or episodes)

    def is_paper_protocol(self, recipe: Recipe) -> bool:
        """Nothing differs from the recipe's paper settings (the number of seeds aside)."""
        own = (self.settings, self.eval_interval, self.eval_episodes)
        return self.profile == "paper" and not any(own) and self.steps in (None, recipe.steps)


@dataclass(frozen=True)
class Plan:
    """Tasks still to be trained, and the run folders that are finished already, ``diverged`` of
    them. ``notes`` says, a line each, what of these was trained by other code than today's."""

    tasks: tuple[Task, ...]
    finished: tuple[Path, ...]
    datasets: tuple[str, ...]
    algorithms: tuple[str, ...]
    notes: tuple[str, ...] = ()
    diverged: int = 0

    @property
    def summary(self) -> str:
        """'2 runs to train, 1 finished already (1 diverged)'."""
        runs = sum(len(task.seeds) for task in self.tasks)
        lost = f" ({self.diverged} diverged)" if self.diverged else ""
        what = "run" if runs == 1 else "runs"
        return f"{runs} {what} to train, {len(self.finished)} finished already{lost}"


def make_plan(request: Request, workers: int) -> Plan:
    """Resolve names, refuse what does not fit before anything trains, split cells into groups.

    Raises:
        ConfigError, DataError: one line each, for the first request that cannot be met.
    """
    from bench.data import expand, load

    recipes = [load_recipe(name) for name in expand_names(request.algorithms)]
    device = resolve_device(request.device)
    if request.tf32 and device == "cpu":
        raise ConfigError("--tf32 is a way of GPUs to multiply: leave it out on the CPU")
    if device == "cpu" and request.data_memory is None:  # a GPU's is known to who trains there
        request = replace(request, data_memory=default_limit(device, workers))
    refs = expand(expand_suites(request.datasets))
    datasets = [(r, load(r, env_id=request.env_id, strict=request.strict)) for r in refs]
    pairs, notes = _pairs(request, recipes, datasets)
    tasks: list[Task] = []
    finished: list[Path] = []
    for recipe, ref, dataset in pairs:
        task = _task(request, recipe, ref, dataset, device)
        todo, done = _groups(task, list(range(request.seeds or _SEEDS[request.profile])), workers)
        tasks += todo
        finished += done
        folders = [_folder(task, seed) for group in todo for seed in group.seeds]
        check_next_observations([*(folder.path for folder in folders), *done], task)
        notes += other_code(folders, done, task)
    names = tuple(d.name for _, d in datasets)
    algorithms = tuple(r.name for r in recipes)
    diverged = sum(read_json(path / "status.json")["state"] == "diverged" for path in finished)
    return Plan(tuple(tasks), tuple(finished), names, algorithms, tuple(notes), diverged)


def expand_suites(names: Sequence[str]) -> list[str]:
    """Replace the names of suites (``bench/suites/<name>.toml``) by their datasets."""
    found: list[str] = []
    for name in names:
        path = Path(__file__).parent / "suites" / f"{name}.toml"
        plain = re.fullmatch(r"[a-z0-9_-]+", name) is not None
        found += tomllib.loads(path.read_text())["datasets"] if plain and path.exists() else [name]
    return found


def misfit(recipe: Recipe, dataset: Any) -> str | None:
    """Why a recipe cannot train on a dataset; None if it can."""
    if dataset.discrete != recipe.discrete:
        kinds = ("continuous", "discrete")
        return (
            f"{recipe.name} needs {kinds[recipe.discrete]} actions and {dataset.name} has "
            f"{kinds[dataset.discrete]} ones"
        )
    if recipe.families and dataset.family not in recipe.families:
        return (
            f"{recipe.name} trains on data of {' or '.join(recipe.families)} and {dataset.name} "
            f"is of {dataset.family}"
        )
    if dataset.transitions["observation"].ndim > 2 and not recipe.pictures:
        return f"{recipe.name} reads vectors and {dataset.name} holds images"
    return None


def _pairs(
    request: Request, recipes: Sequence[Recipe], datasets: Sequence[tuple[str, Any]]
) -> tuple[list[tuple[Recipe, str, Any]], list[str]]:
    """What is to be trained, dataset by dataset, and a note of what a suite or glob brought along
    that does not fit.

    Raises:
        ConfigError: on a pair that does not fit and whose names are both spelled out, and when no
            pair is left.
    """
    fitting: list[tuple[Recipe, str, Any]] = []
    left: dict[str, list[str]] = {}
    for ref, dataset in datasets:
        for recipe in recipes:
            reason = misfit(recipe, dataset)
            if reason is None:
                fitting.append((recipe, ref, dataset))
                continue
            spelled = recipe.name in request.algorithms and ref in request.datasets
            if spelled or len(recipes) == len(datasets) == 1:
                raise ConfigError(f"{reason}: choose another algorithm or dataset")
            left.setdefault(dataset.name, []).append(recipe.name)
    if not fitting:
        raise ConfigError("none of these algorithms fits any of these datasets")
    notes = [
        f"note: left out on {d}, which they do not fit: {', '.join(a)}" for d, a in left.items()
    ]
    return fitting, notes


def resolve_device(name: str) -> str:
    """The torch device: "auto" is CUDA where there is one."""
    import torch

    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if name.startswith("cuda") and not torch.cuda.is_available():
        raise ConfigError(f"--device {name}: torch sees no CUDA device here; use --device cpu")
    if name not in ("cpu", "cuda") and not re.fullmatch(r"cuda:\d+", name):
        raise ConfigError(f"--device {name}: choose auto, cpu or cuda")
    return name


def _domain(family: str) -> str:
    return next((d for d, families in _DOMAINS.items() if family in families), "other")


def _task(request: Request, recipe: Recipe, ref: str, dataset: Any, device: str) -> Task:
    """The cell's task, still without seeds."""
    protocol = request.protocol(recipe)
    quick = request.profile == "quick"
    steps = request.steps or (recipe.quick_steps if quick else recipe.steps)
    names = (dataset.name, dataset.family, _domain(dataset.family))
    hyper = recipe.hyperparameters(names, request.profile, request.settings)
    _check_sizes(recipe, hyper, steps)
    hyper = _resolved(hyper, dataset, steps)
    record = _record(request, recipe, dataset, hyper, protocol, device)
    return Task(
        out=str(request.out),
        dataset=ref,
        env_id=request.env_id,
        algorithm=recipe.name,
        config=record["config"],
        seeds=(),
        steps=steps,
        hyper=record["hyperparameters"],
        eval_interval=protocol.eval_interval,
        eval_episodes=protocol.eval_episodes,
        device=device,
        compile=request.compile,
        tf32=request.tf32,
        strict=request.strict,
        data_memory=request.data_memory,
        eval_workers=record["eval_workers"],
        record=record,
    )


_SIZES = (
    *("batch_size", "hidden", "width", "layers", "heads", "context", "num_random", "critics"),
    *("subset", "atoms", "mixing", "length", "horizon", "belief", "state", "policy_every"),
    "clone_steps",
    "n_step",
)
_STAGES = ("clone_steps", "model_steps")  # updates before the policy that is evaluated learns


def _check_sizes(recipe: Recipe, hyper: Any, steps: int) -> None:
    """Sizes must be positive, unless a recipe's own is 0, and stages end before the run does."""
    own = recipe.hyper()
    for name in _SIZES:
        value = getattr(hyper, name, 1)
        least = 0 if getattr(own, name, 1) == 0 else 1
        if min(value if isinstance(value, tuple) else (value,), default=1) < least:
            raise ConfigError(f"--set {name}={value}: {recipe.name} expects at least {least} there")
    for name in _STAGES:
        before = getattr(hyper, name, 0)
        if before >= steps:
            raise ConfigError(
                f"{recipe.name} begins to learn its policy after {before} updates and the run has "
                f"{steps}: raise --steps, or --set {name}={steps // 2}"
            )


def _resolved(hyper: Any, dataset: Any, steps: int) -> Any:
    """Settings that depend on the data or the run, as the numbers they stand for."""
    if getattr(hyper, "schedule_steps", None) == 0:
        hyper = replace(hyper, schedule_steps=steps)
    if getattr(hyper, "target_returns", None) == ():
        best = float(dataset.stats["return_max"])
        halfway = (best + float(dataset.stats["return_mean"])) / 2
        hyper = replace(hyper, target_returns=(best, halfway))
    return hyper


def _settings(hyper: Any) -> dict[str, Any]:
    """As config.json has them. `n_step` came later: where it changes nothing it is left out, so
    that the hash finds the runs from before."""
    return {key: value for key, value in asdict(hyper).items() if (key, value) != ("n_step", 1)}


def _record(
    request: Request, recipe: Recipe, dataset: Any, hyper: Any, protocol: Protocol, device: str
) -> dict[str, Any]:
    env_id = request.env_id or dataset.env_id
    workers = default_workers(device) if request.eval_workers is None else request.eval_workers
    identity = {
        "algorithm": recipe.name,
        "hyperparameters": _settings(hyper),
        "profile": request.profile,
        "protocol": asdict(protocol),
        "fingerprint": dataset.fingerprint,
        "unknown_next": int((~dataset.transitions["valid_next"]).sum()),
        "reference": dataset.reference,
        "env_id": env_id,
        "horizon": dataset.horizon,
    }
    return {
        "schema_version": SCHEMA_VERSION,
        "algorithm": recipe.name,
        "label": recipe.label,
        "paper": recipe.paper,
        "dataset": dataset.name,
        "config": config_hash(identity),
        "profile": request.profile,
        "env_id": env_id,
        "horizon": dataset.horizon,
        "unit": dataset.unit,
        "reference": dataset.reference,
        "reference_source": dataset.reference_source,
        "hyperparameters": _settings(hyper),
        "data": {
            "fingerprint": dataset.fingerprint,
            "fingerprint_next": dataset.fingerprint_next,
            "stats": dataset.stats,
            "behaviour_return": dataset.behaviour_return,
        },
        "protocol": asdict(protocol),
        "paper_protocol": request.is_paper_protocol(recipe),
        "versions": versions(),
        "git_commit": git_commit(),
        "code": code_fingerprint(recipe.name),
        "device": device,
        "compile": request.compile,
        "tf32": request.tf32,
        "eval_workers": workers,
    }


def _groups(task: Task, seeds: list[int], workers: int) -> tuple[list[Task], list[Path]]:
    """Split a cell's seeds: groups that already train together stay together; new seeds are
    spread over the workers (on a GPU there is one, so they train as one program)."""
    folders = {s: _folder(task, s) for s in seeds}
    done = [s for s in seeds if _finished(folders[s], task.steps)]
    todo = [s for s in seeds if s not in done]
    groups: list[tuple[int, ...]] = []
    for group in _existing_groups(folders[seeds[0]].path.parent if seeds else Path()):
        if any(s in todo for s in group):
            groups.append(group)
            todo = [s for s in todo if s not in group]
    share = -(-len(todo) // max(1, min(workers, len(todo)))) if todo else 0
    groups += [tuple(todo[i : i + share]) for i in range(0, len(todo), share)] if share else []
    return [replace(task, seeds=g) for g in groups], [folders[s].path for s in done]


def _folder(task: Task, seed: int) -> RunFolder:
    return RunFolder(Path(task.out), task.record["dataset"], task.algorithm, task.config, seed)


def _finished(folder: RunFolder, steps: int) -> bool:
    status = folder.status()
    if status is None:
        return False
    return status["state"] == "diverged" or (status["state"] == "done" and status["step"] >= steps)


def _existing_groups(cell: Path) -> list[tuple[int, ...]]:
    found = sorted((cell / "checkpoints").glob("seeds-*"))
    matches = [re.fullmatch(r"seeds-(\d+(?:-\d+)*)", f.name) for f in found]
    return [tuple(int(s) for s in m.group(1).split("-")) for m in matches if m]
