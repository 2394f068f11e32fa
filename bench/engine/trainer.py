"""All seeds of a cell as one program: stacked parameters, per-seed noise, phases in order."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
from tensordict import TensorDict
from torch import Tensor

from bench.engine.agent import Agent, Phase
from bench.engine.sampling import Sampler
from bench.engine.trace import TracedPhase, matching, record_draws
from rlobj import noise

_NOISE_BYTES = 8 << 20  # noise drawn ahead per seed and block
_MAX_BLOCK = 100
_TRAINING_STREAM = 1


def stream_seed(seed: int, stream: int, index: int) -> int:
    """A 63-bit seed for block ``index`` of one of a run's independent random streams."""
    words = np.random.SeedSequence([seed, stream, index]).generate_state(1, np.uint64)
    return int(words[0] >> 1)


def build_agents(build: Callable[[], Agent], seeds: Sequence[int]) -> list[Agent]:
    """One freshly initialised agent per seed; the global generator is left as it was."""
    agents = []
    with torch.random.fork_rng(devices=[]):
        for seed in seeds:
            torch.manual_seed(stream_seed(seed, 0, 0))
            agents.append(build())
    return agents


class NoiseBlocks:
    """Each seed's indices and noise, drawn a block of steps at a time.

    Block b of a seed depends on (seed, b) alone, so nothing about randomness needs to be saved:
    the step number is the whole state.
    """

    def __init__(
        self,
        seeds: Sequence[int],
        sampler: Sampler,
        draws: Sequence[noise.Draw],
        device: torch.device | str,
    ) -> None:
        self.seeds, self.sampler, self.draws, self.device = seeds, sampler, draws, device
        bytes_per_step = 4 * sum(int(np.prod(d.shape)) for d in draws)
        self.size = max(1, min(_MAX_BLOCK, _NOISE_BYTES // max(1, bytes_per_step)))
        self._block = -1
        self._index: Tensor | None = None
        self._noise: list[Tensor] = []

    def _fill(self, block: int) -> None:
        indices, noises = [], []
        for seed in self.seeds:
            generator = torch.Generator(self.device)
            generator.manual_seed(stream_seed(seed, _TRAINING_STREAM, block))
            indices.append(self.sampler.draw(generator, self.size))
            noises.append([d.sample(generator, self.device, self.size) for d in self.draws])
        self._index = torch.stack(indices, 1)
        self._noise = [torch.stack(n, 1) for n in zip(*noises, strict=True)]
        self._block = block

    def at(self, step: int) -> tuple[Tensor, list[Tensor]]:
        """Indices and noise tensors, ``[n_seeds, ...]`` each, of update ``step`` (from 1)."""
        block, row = divmod(step - 1, self.size)
        if block != self._block:
            self._fill(block)
        assert self._index is not None
        return self._index[row], [n[row] for n in self._noise]


class Trainer:
    """N seeds of one recipe, trained together.

    Args:
        build: makes one agent from torch's global generator.
        seeds: the run seeds; each fixes its own initialisation, minibatches and noise.
        sampler: where batches come from.
        total_steps: what learning-rate schedules refer to.
    """

    def __init__(
        self,
        build: Callable[[], Agent],
        seeds: Sequence[int],
        sampler: Sampler,
        *,
        total_steps: int,
        device: torch.device | str = "cpu",
    ) -> None:
        self.seeds, self.sampler, self.total_steps = tuple(seeds), sampler, total_steps
        self.device = torch.device(device)
        agents = build_agents(build, self.seeds)
        self.agent = agents[0]
        parts = [a.loss.tensors() for a in agents]
        self.tensors = {k: torch.stack([p[k].detach() for p in parts]).to(device) for k in parts[0]}
        self.agent.loss.to(device)
        self._prepare(device)
        self.step = 0

    def _prepare(self, device: torch.device | str) -> None:
        probe = torch.zeros((len(self.seeds), self.sampler.batch_size), dtype=torch.long)
        batch = self.sampler.gather(probe.to(device))
        loss, phases = self.agent.loss, self.agent.phases
        draws = [record_draws(loss, p, batch[0]) for p in phases]
        self.noise = NoiseBlocks(self.seeds, self.sampler, [d for p in draws for d in p], device)
        self.traced = [
            TracedPhase(loss, p, self.tensors, batch, d) for p, d in zip(phases, draws, strict=True)
        ]
        self._draw_counts = [len(d) for d in draws]
        self._optimizers = [self._optimizer(p, t) for p, t in zip(phases, self.traced, strict=True)]
        self._sums = [
            torch.zeros(len(self.seeds), len(t.metrics), dtype=torch.float64, device=device)
            for t in self.traced
        ]
        self._counts = [0] * len(phases)

    def _optimizer(self, phase: Phase, traced: TracedPhase) -> torch.optim.Optimizer:
        groups = []
        for group in phase.groups:
            names = matching(traced.trained, group.tensors)
            groups.append(
                {
                    "params": [self.tensors[n] for n in names],
                    "lr": group.lr,
                    "weight_decay": group.weight_decay,
                }
            )
        decoupled = any(g.decoupled for g in phase.groups)
        cls = torch.optim.AdamW if decoupled else torch.optim.Adam
        return cls(groups, fused=True)

    def update(self) -> None:
        """One update of every seed: each phase that is due, in order."""
        self.step += 1
        index, tape = self.noise.at(self.step)
        batch = self.sampler.gather(index)
        offset = 0
        for i, phase in enumerate(self.agent.phases):
            count = self._draw_counts[i]
            if self.step % phase.every == 0:
                self._run_phase(i, phase, batch, tape[offset : offset + count])
            offset += count

    @torch.no_grad()
    def _run_phase(self, i: int, phase: Phase, batch: TensorDict, tape: list[Tensor]) -> None:
        traced, optimizer = self.traced[i], self._optimizers[i]
        grads, metrics = traced(self.tensors, batch, tape)
        for name, grad in zip(traced.trained, grads, strict=True):
            self.tensors[name].grad = grad
        for spec, group in zip(phase.groups, optimizer.param_groups, strict=True):
            if spec.schedule is not None:
                group["lr"] = spec.lr * spec.schedule(self.step - 1, self.total_steps)
        optimizer.step()
        self._sums[i] += metrics
        self._counts[i] += 1
        self._move_targets(phase)

    def _move_targets(self, phase: Phase) -> None:
        pairs = [
            (t, self.tensors[name[len("target_") :]])
            for net in phase.targets
            for name, t in self.tensors.items()
            if name.startswith(f"target_{net}_params.")
        ]
        if pairs:
            torch._foreach_lerp_([t for t, _ in pairs], [s for _, s in pairs], self.agent.tau)

    def read_metrics(self) -> dict[str, list[float]]:
        """Means since the last call, by ``phase/name``: one number per seed."""
        found: dict[str, list[float]] = {}
        for i, traced in enumerate(self.traced):
            if self._counts[i] == 0:
                continue
            means = (self._sums[i] / self._counts[i]).T.tolist()
            names = [f"{traced.phase.name}/{m}" for m in traced.metrics]
            found.update(zip(names, means, strict=True))
            self._sums[i].zero_()
            self._counts[i] = 0
        return found

    def state(self) -> dict[str, Tensor]:
        """Everything that training changes, by name; stacked over seeds."""
        state = dict(self.tensors)
        for i, optimizer in enumerate(self._optimizers):
            for name in self.traced[i].trained:
                for key, value in optimizer.state.get(self.tensors[name], {}).items():
                    state[f"optimizer.{i}.{name}.{key}"] = value
            state[f"metrics.{i}"] = self._sums[i]
            state[f"metrics.{i}.count"] = torch.tensor(self._counts[i])
        return state

    @torch.no_grad()
    def load_state(self, step: int, state: Mapping[str, Tensor]) -> None:
        """Continue from what :meth:`state` returned after ``step`` updates."""
        self.step = step
        for name, tensor in self.tensors.items():
            tensor.copy_(state[name])
        for i, optimizer in enumerate(self._optimizers):
            for name in self.traced[i].trained:
                prefix = f"optimizer.{i}.{name}."
                found = {k[len(prefix) :]: v for k, v in state.items() if k.startswith(prefix)}
                if found:
                    param = self.tensors[name]
                    optimizer.state[param] = {k: v.to(param.device) for k, v in found.items()}
            self._sums[i].copy_(state[f"metrics.{i}"])
            self._counts[i] = int(state[f"metrics.{i}.count"])
