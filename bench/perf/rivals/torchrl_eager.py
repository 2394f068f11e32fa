"""TorchRL: its losses, modules, replay buffer and the update of its own training scripts.

Eager, and in its favour: transitions in memory, no logging, no ``item()``, CQL without Lagrange
multiplier. Clipping comes after the gradients it clips.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable
from typing import Any

import torch
from tensordict import TensorDict

from bench.perf.protocol import Program, Unavailable, serve
from bench.perf.rivals.with_torchrl import continuous, discrete, on_policy, sequence
from bench.perf.rivals.with_torchrl.parts import Learner
from bench.perf.work import Work, arrays, check_device, program

LEARNERS: dict[str, Callable[[Work], Learner]] = {
    **continuous.LEARNERS,
    **discrete.LEARNERS,
    **on_policy.LEARNERS,
    **sequence.LEARNERS,
}


def replay_buffer(work: Work) -> Any:
    """Transitions, or windows of consecutive steps (a cheaper sampler than its script's)."""
    from torchrl.data import TensorDictReplayBuffer, TensorStorage
    from torchrl.data.replay_buffers.samplers import SamplerWithoutReplacement, SliceSampler

    found = {k: v.to(work.device) for k, v in arrays(work).items()}
    last, window = found["last"], sequence.WINDOW.get(work.algorithm)
    rows: dict[str, Any] = {
        "observation": found["observation"],
        "action": found["action"],
        "next": {
            "observation": found["after"],
            "reward": found["reward"],
            "done": last,
            "terminated": torch.zeros_like(last),
        },
    }
    sampler, size = SamplerWithoutReplacement(), work.batch
    if window is not None:
        rows = sequence.steps(work, rows) | {"last": last}
        sampler = SliceSampler(slice_len=window, end_key="last", cache_values=True)
        size *= window
    storage = TensorStorage(TensorDict(rows, [work.rows], device=work.device))
    return TensorDictReplayBuffer(storage=storage, sampler=sampler, batch_size=size, prefetch=4)


def build(request: dict[str, Any]) -> Program:
    warnings.simplefilter("ignore")
    work = Work(**request)
    work.only_one_seed()
    check_device(work.device)
    if work.algorithm not in LEARNERS:
        raise Unavailable("torchrl does not have it")
    update, optimizers = LEARNERS[work.algorithm](work)
    buffer = replay_buffer(work)
    weights = [p for o in optimizers for group in o.param_groups for p in group["params"]]
    return program(
        work, lambda: update(buffer.sample()), lambda: weights, ("torchrl", "tensordict")
    )


if __name__ == "__main__":
    sys.exit(serve(build))
