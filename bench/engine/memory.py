"""How much memory training takes, and what to lower where it is not enough."""

from __future__ import annotations

import operator
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from math import prod
from pathlib import Path
from typing import Any

import torch
from tensordict import TensorDict
from torch import Tensor
from torch.fx import Graph, Node

from bench.engine.agent import Agent
from bench.engine.merge import is_view
from bench.engine.problem import recipe_table
from bench.engine.sampling import Source
from bench.engine.stream import Streamed
from bench.engine.trainer import NoiseBlocks, Trainer
from bench.errors import OutOfMemory
from bench.recipe import Problem, Recipe, load_recipe
from bench.recipes import recipe_names

_CPU = torch.device("cpu")
_OBSERVED = ("observation", ("next", "observation"))
_UNITS = ("B", "KB", "MB", "GB", "TB")
_SIZES = (
    "batch_size",
    "hidden",
    "width",
    "layers",
    "context",
    "length",
    "horizon",
    "num_random",
    "critics",
)  # what memory grows by
_WORDS = ("out of memory", "can't allocate memory", "DefaultCPUAllocator", "ALLOC_FAILED")


@dataclass(frozen=True)
class Memory:
    """Bytes of what a trainer holds, and of what an update needs besides."""

    data: int
    parameters: int  # with targets and buffers
    moments: int  # Adam's, and the sums of metrics
    noise: int  # a block's indices and noise
    gradients: int  # of the largest phase
    activations: int  # other results within an update, where they are most

    @property
    def total(self) -> int:
        return sum(asdict(self).values())

    def __str__(self) -> str:
        parts = ", ".join(f"{name} {spell(size)}" for name, size in asdict(self).items())
        return f"{spell(self.total)} ({parts})"


def spell(size: float) -> str:
    """'512 B', '1.5 MB', '23 GB'; a GB is 10^9 bytes."""
    unit = 0
    while size >= 999.5 and unit < len(_UNITS) - 1:
        size, unit = size / 1000, unit + 1
    return f"{size:.1f} {_UNITS[unit]}" if unit and size < 10 else f"{size:.0f} {_UNITS[unit]}"


# ------------------------------------------------------------------------------ a trainer


def held(trainer: Trainer) -> Memory:
    """Of a trainer on any device, also on "meta", where its tensors take none."""
    noise, template = trainer.noise, trainer.agent.loss.tensors()
    states = [t for p in trainer.phases for t in (p.steps, p.sums, p.finite)]
    moments = [t for p in trainer.phases for m in p.moments.values() for t in m.values()]
    indices = noise.size * len(trainer.seeds) * trainer.sampler.batch_size
    grads = [sum(trainer.tensors[n].nbytes for n in p.traced.trained) for p in trainer.phases]
    peaks = [peak(p.traced.graph.graph) for p in trainer.phases]
    return Memory(
        data=trainer.sampler.nbytes(indices),
        parameters=_nbytes([*trainer.tensors.values(), *template.values()]),
        moments=_nbytes([*moments, *states]),
        noise=8 * indices + _noise_bytes(noise),
        gradients=max(grads),
        activations=max(0, max(peaks) - max(grads)),
    )


def _noise_bytes(noise: NoiseBlocks) -> int:
    one = sum(
        prod(d.shape) * (8 if d.kind == "permutation" else d.dtype.itemsize) for d in noise.draws
    )
    return one * noise.size * len(noise.seeds)


def _nbytes(value: Any) -> int:
    if isinstance(value, Tensor):
        return value.numel() * value.element_size()
    return sum(map(_nbytes, value)) if isinstance(value, (list, tuple)) else 0


def peak(graph: Graph) -> int:
    """Bytes of the results of a graph's operations, where most of them are needed at once."""
    root: dict[Node, Node] = {}
    last: dict[Node, int] = {}  # use of a result's memory
    for i, node in enumerate(graph.nodes):
        same = node.target is operator.getitem or is_view(node.target)
        root[node] = root[node.all_input_nodes[0]] if same else node
        last.update(dict.fromkeys((root[n] for n in (*node.all_input_nodes, node)), i))
    sizes = {n: _nbytes(n.meta.get("val")) for n in last if n.op == "call_function"}
    freed = [0] * (len(root) + 1)
    for node, size in sizes.items():
        freed[last[node]] += size
    most = alive = 0
    for i, node in enumerate(graph.nodes):
        alive += sizes.get(node, 0)
        most = max(most, alive)
        alive -= freed[i]
    return most


# ------------------------------------------------------------------- before there is one


class _Shapes:
    """What a trainer on "meta" wants to know of a sampler."""

    def __init__(self, one: Source, data: int, limit: float) -> None:
        self.keys, self.batch_size, self.one = one.keys, one.batch_size, one
        self.data, self.limit = data, limit

    def nbytes(self, indices: int) -> int:
        return self.data if self.data <= self.limit else Streamed(self.one).nbytes(indices)

    def draw(self, generator: torch.Generator, steps: int) -> Tensor:
        return self.one.draw(generator, steps)

    def leaves(self, index: Tensor) -> list[Tensor]:
        found = self.one.leaves(torch.zeros(1, 1, dtype=torch.long))
        return [t.to("meta").expand(*index.shape, *t.shape[2:]) for t in found]


def _one_row(recipe: Recipe, hyper: Any, transitions: TensorDict) -> tuple[Source, int]:
    """A sampler of one row of the table, and how many there are. Recipes look at whole episodes, so
    the table is made of all rows, without what is wide."""
    narrow = recipe_table(recipe, hyper, _observing(transitions, lambda x: x.new_zeros(len(x), 1)))
    kept = narrow.get("valid_next", None)
    rows = len(narrow) if kept is None else int(kept.sum())
    table = narrow[:1].exclude("valid_next")
    for key in _OBSERVED:
        if key in table.keys(True, True):
            table[key] = transitions[key][:1].flatten(1)
    return recipe.sampler(hyper, table, _CPU), rows


def _observing(transitions: TensorDict, change: Callable[[Tensor], Tensor]) -> TensorDict:
    """Transitions with other observations."""
    changed = transitions.copy()
    for key in _OBSERVED:
        changed[key] = change(transitions[key])
    return changed


def data_bytes(recipe: Recipe, hyper: Any, transitions: TensorDict) -> int:
    """Of the table that a recipe trains on, in memory."""
    one, rows = _one_row(recipe, hyper, transitions)
    return rows * one.nbytes(1)


def estimate(
    recipe: Recipe,
    hyper: Any,
    problem: Problem,
    transitions: TensorDict,
    seeds: Sequence[int],
    limit: float = float("inf"),
) -> Memory:
    """What :func:`held` would say of the trainer, without making its tensors; a second or more.

    Args:
        limit: larger data are streamed.
    """

    def build() -> Agent:
        with torch.device("meta"):
            agent: Agent = recipe.build(hyper, problem)
        for module in agent.loss.modules():
            moved = {n: b.to("meta") for n, b in module._buffers.items() if b is not None}
            module._buffers.update(moved)  # of bounds, which exist already
        return agent

    one, rows = _one_row(recipe, hyper, transitions)
    shapes = _Shapes(one, rows * one.nbytes(1), limit)
    return held(Trainer(build, seeds, shapes, total_steps=1, device="meta"))


# -------------------------------------------------------------------------------- limits


def default_limit(device: torch.device | str, workers: int = 1) -> int:
    """Bytes that training data may take: 70 % of a GPU's free memory; on a CPU half of the
    machine's, shared by the workers."""
    if torch.device(device).type == "cuda":
        return int(0.7 * torch.cuda.mem_get_info(device)[0])
    return machine() // 2 // workers


def machine() -> int:
    """Bytes of memory of the machine, or of the container that this is."""
    limits = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    control = Path("/sys/fs/cgroup/memory.max")
    if control.exists() and (text := control.read_text().strip()).isdigit():
        limits.append(int(text))
    return min(limits)


def is_out_of_memory(error: BaseException) -> bool:
    """torch has one type for a GPU's memory and none for the machine's."""
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return True
    return isinstance(error, RuntimeError) and any(word in str(error) for word in _WORDS)


def out_of_memory(needs: Memory, hyper: Any, seeds: Sequence[int]) -> OutOfMemory:
    """The line that a user gets."""
    sizes = [f"{n}={_spell_value(getattr(hyper, n))}" for n in _SIZES if hasattr(hyper, n)]
    count = f"{len(seeds)} seeds" if len(seeds) > 1 else "one seed"
    return OutOfMemory(
        f"out of memory: {count} at once need {needs}, estimated; lower --set {' '.join(sizes)}, "
        "--seeds, --workers, or --data-memory, above which data are streamed"
    )


def _spell_value(value: Any) -> str:
    return ",".join(map(str, value)) if isinstance(value, tuple) else str(value)


# -------------------------------------------------------------------------------- a table


def overview(dataset: str) -> str:
    """What every recipe's paper profile takes on a dataset, a row each (Markdown)."""
    from bench.data import load
    from bench.engine.problem import problem_of
    from bench.plan import misfit

    loaded = load(dataset)
    lines = ["| recipe | data per million | first seed | each further seed |", "|---|---|---|---|"]
    for recipe in map(load_recipe, recipe_names()):
        if misfit(recipe, loaded):
            continue
        hyper = recipe.hyperparameters((loaded.name, loaded.family), "paper", {})
        parts = (recipe, hyper, problem_of(loaded, hyper), loaded.transitions)
        one, two = (estimate(*parts, range(n)) for n in (1, 2))
        per_million = one.data / len(loaded.transitions) * 1e6
        sizes = (per_million, one.total - one.data, two.total - one.total)
        lines.append(f"| {recipe.label} | {' | '.join(map(spell, sizes))} |")
    return "\n".join(lines)


if __name__ == "__main__":
    print(overview(sys.argv[1]))
