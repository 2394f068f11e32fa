"""The same updates written by hand on bare torch: no losses, no modules, no tensordict.

What an engine over readable losses is measured against. Networks, batches, optimizers and the order
of an update are those of the recipes' paper profiles; the numbers come out alike, not equal (the
noise differs). The data is that of :mod:`bench.perf.work`.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import torch

from bench.engine import cpu
from bench.perf.protocol import Program, Unavailable, serve
from bench.perf.rivals.by_hand import deterministic, discrete, on_policy, sequence, soft, weighted
from bench.perf.rivals.by_hand.parts import Batches, Loop
from bench.perf.work import Work, arrays, check_device, program

MODULES = (deterministic, weighted, soft, discrete, on_policy, sequence)
LOOPS: dict[str, Callable[[Batches, int, int, str], Loop]] = {
    name: loop for module in MODULES for name, loop in module.LOOPS.items()
}


def packed(work: Work) -> Batches:
    """Rows ``(s, a, r, s', 1)``: none terminates. ReBRAC's hold the next action, too."""
    found = arrays(work)
    columns = [found[k] for k in ("observation", "action", "reward", "after")]
    columns.append(torch.ones(work.rows, 1))
    if work.algorithm == "rebrac":
        columns.append(found["action"].roll(-1, 0))
    rows = [c.reshape(work.rows, -1).float() for c in columns]
    data = torch.cat(rows, 1).to(work.device)
    return Batches(data, [c.shape[1] for c in rows], work.batch)


def loop_of(work: Work) -> Loop:
    return LOOPS[work.algorithm](packed(work), work.observation, work.action, work.device)


def build(request: dict[str, Any]) -> Program:
    work = Work(**request)
    work.only_one_seed()
    check_device(work.device)
    if work.algorithm not in LOOPS:
        raise Unavailable(f"no loop for {work.algorithm} is written by hand")
    if work.device == "cpu":
        cpu.prepare()
    loop = loop_of(work)
    return program(work, loop.step, lambda: loop.weights, ())


if __name__ == "__main__":
    sys.exit(serve(build))
