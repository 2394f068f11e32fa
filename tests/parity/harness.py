"""Two libraries, one training script: what torchrl computes, rlobj computes.

A :class:`Config` builds a loss from a :class:`Library`, so the same lines run once with torchrl's
names and once with ours. :func:`compare` gives both the same parameters and the same random
numbers and compares everything a user can see: names and shapes in the state dict, initial values,
keys, every output, what is written into the batch, the gradient of every term with respect to
every parameter, and all parameters after three optimizer and target updates.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any

import torch
from tensordict import (
    NestedKey,
    TensorDict,
    TensorDictBase,
    is_leaf_nontensor,
    is_non_tensor,
    unravel_key,
)
from torch import Tensor

TOLERANCE = 1e-5
UPDATES = 3


@dataclass(frozen=True)
class Library:
    """Where a training script finds its names."""

    name: str
    losses: ModuleType  # torchrl.objectives or rlobj
    modules: ModuleType
    specs: ModuleType
    value: ModuleType


def libraries(own_modules: bool = True) -> tuple[Library, Library]:
    """(torchrl, rlobj); ``own_modules=False`` hands torchrl's modules and specs to our losses."""
    import torchrl.data
    import torchrl.modules
    import torchrl.objectives
    import torchrl.objectives.value

    import rlobj
    import rlobj.modules
    import rlobj.specs
    import rlobj.value

    theirs = Library(
        "torchrl", torchrl.objectives, torchrl.modules, torchrl.data, torchrl.objectives.value
    )
    modules, specs = (rlobj.modules, rlobj.specs) if own_modules else (theirs.modules, theirs.specs)
    return theirs, Library("rlobj", rlobj, modules, specs, rlobj.value)


@dataclass(frozen=True)
class Config:
    """One way of using a loss.

    Args:
        name: says what differs from the other configurations.
        build: makes the loss from a library's names.
        batch: makes the input, the same at every call.
        updater: makes the target updater of a loss, None where there are no targets.
        own_modules: whether our loss gets our modules, or torchrl's.
        skip: entries of the output, of the batch or of the state dict after updates, and
            beginnings of gradients' names, that are not compared; each with its row in
            docs/deviations.md.
        weights: weight of each term in the objective of the updates, by name, default 1.
    """

    name: str
    build: Callable[[Library], Any]
    batch: Callable[[], TensorDictBase]
    updater: Callable[[Library, Any], Any] | None = None
    own_modules: bool = True
    skip: tuple[NestedKey, ...] = ()
    weights: dict[str, float] = field(default_factory=dict)


def soft(tau: float = 0.05) -> Callable[[Library, Any], Any]:
    return lambda lib, loss: lib.losses.SoftUpdate(loss, tau=tau)


def hard(interval: int = 2) -> Callable[[Library, Any], Any]:
    return lambda lib, loss: lib.losses.HardUpdate(loss, value_network_update_interval=interval)


def seeded(function: Callable[..., Any], *args: Any, seed: int = 7) -> Any:
    torch.manual_seed(seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return function(*args)


def tensors_of(loss: Any) -> dict[str, Tensor]:
    return {k: v for k, v in loss.state_dict().items() if isinstance(v, Tensor)}


def leaves(td: TensorDictBase) -> dict[Any, Tensor]:
    """Every tensor below ``td``, those held as non-tensor data too."""
    found = {k: td.get(k) for k in td.keys(True, True, is_leaf=is_leaf_nontensor)}
    found = {k: v.data if is_non_tensor(v) else v for k, v in found.items()}
    return {k: v for k, v in found.items() if isinstance(v, Tensor)}


def assert_same(ours: dict, theirs: dict, what: str) -> None:
    """Same names, shapes and dtypes, and values within the tolerance."""
    assert {str(k) for k in ours} == {str(k) for k in theirs}, f"{what}: different names"
    for key, expected in theirs.items():
        torch.testing.assert_close(
            ours[key].detach(),
            expected.detach(),
            rtol=TOLERANCE,
            atol=TOLERANCE,
            msg=lambda m, k=key: f"{what}, {k}: {m}",
        )


def perturb(state: dict[str, Tensor], seed: int = 1) -> dict[str, Tensor]:
    """Other values for every floating tensor of more than one element, targets included, so that
    no two networks are alike; scalars (coefficients) and buffers such as a support stay."""
    generator = torch.Generator().manual_seed(seed)
    out = {}
    for name, tensor in sorted(state.items()):
        moves = tensor.is_floating_point() and "network_params" in name and "support" not in name
        noise = torch.randn(tensor.shape, generator=generator, dtype=torch.float64)
        out[name] = tensor + (0.3 * noise).to(tensor.dtype) if moves else tensor.clone()
    return out


def load(loss: Any, state: dict[str, Tensor]) -> None:
    """``load_state_dict``, less the views of another network's parameters (one repeated for every
    critic under ``separate_losses``): they cannot be written to, and follow what they view."""
    views = {k for k, v in tensors_of(loss).items() if 0 in v.stride()}
    loss.load_state_dict({k: v for k, v in state.items() if k not in views}, strict=not views)


def term_names(output: TensorDictBase) -> list[str]:
    return sorted(k for k, _ in output.items() if k.startswith("loss"))


def gradients(loss: Any, output: TensorDictBase) -> dict[str, Tensor]:
    """Every term's gradient with respect to every trainable parameter; zero where it has none."""
    params = {k: p for k, p in loss.named_parameters() if p.requires_grad}
    found = {}
    for term in term_names(output):
        value = output.get(term)
        if not value.requires_grad:
            continue
        grads = torch.autograd.grad(
            value.sum(), list(params.values()), retain_graph=True, allow_unused=True
        )
        for (name, p), grad in zip(params.items(), grads, strict=True):
            found[f"d {term} / d {name}"] = torch.zeros_like(p) if grad is None else grad
    return found


def train(config: Config, lib: Library, loss: Any) -> dict[str, Tensor]:
    """The state after three Adam steps on the weighted sum of the terms, each followed by a target
    update."""
    updater = config.updater(lib, loss) if config.updater else None
    params = [p for p in loss.parameters() if p.requires_grad]
    # eps: with Adam's own, rounding errors of gradients near 0 become whole steps
    optimizer = torch.optim.Adam(params, lr=1e-2, eps=1e-3)
    for step in range(UPDATES):
        output = seeded(loss, config.batch(), seed=100 + step)
        terms = (config.weights.get(k, 1.0) * output.get(k).sum() for k in term_names(output))
        optimizer.zero_grad()
        sum(terms).backward()
        optimizer.step()
        if updater is not None:
            updater.step()
    return {k: v for k, v in tensors_of(loss).items() if k not in config.skip}


def promised(loss: Any, output: TensorDictBase) -> set[str]:
    """``out_keys``, less what ``reduction="none"`` leaves out (torchrl still announces it)."""
    return {str(k) for k in loss.out_keys if k in output.keys(True)}


def pair(config: Config) -> tuple[Any, Any]:
    """torchrl's loss and ours, in one state in which no two networks are alike."""
    theirs, ours = (seeded(config.build, lib, seed=3) for lib in libraries(config.own_modules))
    assert_same(tensors_of(ours), tensors_of(theirs), "initial state")
    state = perturb(theirs.state_dict())
    load(theirs, state)
    load(ours, state)
    return theirs, ours


def compare_methods(config: Config, *methods: str, skip: tuple[str, ...] = ()) -> None:
    """Loss and metadata of a loss's parts, called by themselves one after the other on one batch,
    and what they write; under the configuration's own reduction. ``skip`` names what is not
    compared besides ``config.skip``: metadata of one library only, entries written by one only."""
    theirs, ours = pair(config)
    batches = config.batch(), config.batch()
    for method in methods:
        found = []
        for loss, batch in zip((ours, theirs), batches, strict=True):
            value, info = seeded(getattr(loss, method), batch)
            every = {"loss": value, **info, **leaves(batch)}
            found.append({k: v for k, v in every.items() if k not in (*config.skip, *skip)})
        assert_same(*found, method)


def compare_keywords(config: Config) -> None:
    """A call with the entries as keyword arguments returns a tuple in the order of out_keys (of
    a single one, that entry)."""
    theirs, ours = pair(config)
    entries = config.batch().select(*theirs.in_keys, strict=False).items(True, True)
    given = {k if isinstance(k, str) else "_".join(k): v for k, v in entries}
    assert list(ours.out_keys) == list(theirs.out_keys)
    found = [seeded(lambda loss=loss: loss(**given)) for loss in (ours, theirs)]
    found = [values if isinstance(values, tuple) else (values,) for values in found]
    assert_same(*(dict(enumerate(values)) for values in found), "output")


def compare(config: Config) -> None:
    theirs_lib, ours_lib = libraries(config.own_modules)
    theirs, ours = pair(config)
    if hasattr(theirs, "in_keys"):  # torchrl's DistributionalDQNLoss has no keys
        assert {unravel_key(k) for k in ours.in_keys} == {unravel_key(k) for k in theirs.in_keys}

    ours_batch, theirs_batch = config.batch(), config.batch()
    ours_out, theirs_out = seeded(ours, ours_batch), seeded(theirs, theirs_batch)
    if hasattr(theirs, "out_keys"):
        assert promised(ours, ours_out) == promised(theirs, theirs_out)
        assert set(ours.out_keys) <= set(theirs.out_keys)
    assert ours_out.batch_size == theirs_out.batch_size
    kept, mine = (out.exclude(*config.skip) for out in (theirs_out, ours_out))
    assert_same(leaves(mine), leaves(kept), "output")
    ours_after, theirs_after = ours_batch.exclude(*config.skip), theirs_batch.exclude(*config.skip)
    assert_same(leaves(ours_after), leaves(theirs_after), "batch after the call")
    names = tuple(k for k in config.skip if isinstance(k, str))
    mine, kept = (
        {k: v for k, v in gradients(*pair).items() if not k.startswith(names)}
        for pair in ((ours, ours_out), (theirs, theirs_out))
    )
    assert_same(mine, kept, "gradient")
    assert_same(train(config, ours_lib, ours), train(config, theirs_lib, theirs), "after updates")


def transitions(
    *shape: int, observation: int = 4, action: int = 2, seed: int = 0, **more: Tensor
) -> TensorDict:
    """Transitions of batch ``shape``; some are terminated, some truncated, some both."""
    generator = torch.Generator().manual_seed(seed)

    def draw(size: int) -> Tensor:
        return torch.randn(*shape, size, generator=generator)

    terminated = torch.rand(*shape, 1, generator=generator) < 0.2
    truncated = torch.rand(*shape, 1, generator=generator) < 0.2
    data = {
        "observation": draw(observation),
        "action": draw(action).tanh(),
        ("next", "observation"): draw(observation),
        ("next", "reward"): draw(1),
        ("next", "done"): terminated | truncated,
        ("next", "terminated"): terminated,
        **more,
    }
    return TensorDict(data, list(shape))
