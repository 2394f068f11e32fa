"""Synthetic run folders for the tests of report and tracking (written by the real store)."""

from __future__ import annotations

import zlib
from pathlib import Path
from typing import Any

import numpy as np

from bench.store import RunFolder, config_hash

LABELS = {"td3_bc": "TD3+BC", "iql": "IQL", "cql": "CQL", "bc": "BC", "dt": "DT", "awac": "AWAC"}


def make_run(
    out: Path,
    algo: str = "td3_bc",
    dataset: str = "lite/hopper/medium-v0",
    seed: int = 0,
    *,
    finals: float | None = 50.0,
    evaluations: int = 10,
    episodes: int = 5,
    steps: int = 10_000,
    state: str = "done",
    unit: str = "normalized",
    hyper: dict[str, Any] | None = None,
    spread: float = 0.0,
    **config: Any,
) -> RunFolder:
    """A run whose last evaluation has the mean ``finals`` (normalised) exactly, up to rounding.

    Earlier evaluations rise towards it. The reference is (0, 1000): 10 raw = 1 normalised.
    """
    hyper = {"alpha": 2.5, "discount": 0.99} if hyper is None else hyper
    fingerprint = config.pop("fingerprint", f"{dataset}-fingerprint".encode().hex()[:64])
    hash_ = config_hash({"algo": algo, "hyper": hyper, "data": fingerprint})
    run = RunFolder(out, dataset, algo, hash_, seed)
    run.write_config(
        {
            "schema_version": 1,
            "algorithm": algo,
            "label": LABELS.get(algo, algo),
            "dataset": dataset,
            "config": hash_,
            "seed": seed,
            "profile": "paper",
            "env_id": "Hopper-v5",
            "horizon": None,
            "unit": unit,
            "reference": [0.0, 1000.0] if unit == "normalized" else None,
            "reference_source": "test",
            "hyperparameters": hyper,
            "data": {
                "fingerprint": fingerprint,
                "stats": {"transitions": 1000, "episodes": 10, "return_mean": 460.0},
            },
            "versions": {"python": "3.11.9", "torch": "2.13.0", "project": "0.1.0"},
            "git_commit": "a" * 40,
            "code": "c" * 64,
            "device": "cpu",
            "group": [seed],
            "cpu": {"model": "test", "threads": 1},
            "paper_protocol": True,
            "protocol": {"eval_interval": 1000, "eval_episodes": 5},
            **config,
        }
    )
    rng = np.random.default_rng(zlib.crc32(f"{algo} {dataset} {seed}".encode()))
    last = 0
    for k in range(1, evaluations + 1) if finals is not None else ():
        last = steps * k // evaluations
        middle = finals * (1 - np.exp(-4 * k / evaluations)) / (1 - np.exp(-4))
        noise = rng.normal(0, spread) if k < evaluations else 0.0
        offsets = np.arange(episodes) - (episodes - 1) / 2
        scores = middle + noise + offsets
        normal = unit == "normalized"
        run.append_scores(
            [
                (last, e, float(s) * 10, 100, float(s) if normal else None)
                for e, s in enumerate(scores)
            ]
        )
        run.append_metrics([(last, "loss/q", 1.0 / k), (last, "loss/actor", -1.0 / k)])
    run.set_status(state, step=last if state != "done" else steps, steps=steps, train_seconds=1.5)
    return run
