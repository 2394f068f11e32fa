"""What a recipe hands to the engine: a loss, and how its terms are optimised."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

from tensordict import TensorDict, TensorDictBase
from torch import Tensor, nn

from rlobj import LossModule

Terms = Callable[[LossModule, TensorDictBase], Mapping[str, Tensor]]
Policy = Callable[[LossModule, TensorDict], Tensor]  # (loss, observed) -> actions
Schedule = Callable[[int, int], float]  # (step, total steps) -> factor on the learning rate


@dataclass(frozen=True)
class Group:
    """Parameters under one optimizer setting.

    ``tensors`` are prefixes of the loss's state-dict names, e.g. ``"qvalue_network_params"``.
    """

    tensors: tuple[str, ...]
    lr: float
    weight_decay: float = 0.0
    decoupled: bool = False  # True: AdamW
    schedule: Schedule | None = None


@dataclass(frozen=True)
class Phase:
    """One gradient step within an update.

    ``terms(loss, batch)`` returns scalars; every name that starts with ``loss_`` is summed and
    differentiated with respect to the groups' tensors, the rest is logged. One that starts with
    ``set_`` is also what the loss's tensor of that name holds after the phase.
    """

    name: str
    terms: Terms
    groups: tuple[Group, ...]
    every: int = 1  # runs at steps divisible by this,
    first: int = 1  # from this one
    last: int | None = None  # to this one
    clip_norm: float | None = None  # per seed, over all tensors of a group
    targets: tuple[str, ...] = ()  # networks whose delayed copy moves after this phase
    copies: tuple[tuple[str, str], ...] = ()  # (to, from): tensors below these names are copied
    follows: tuple[tuple[str, str], ...] = ()  # (to, from): these move as delayed copies do

    def runs(self, after: int, up_to: int) -> int:
        """At how many steps of ``after + 1 ... up_to`` it runs."""
        low = max(after, self.first - 1)
        high = up_to if self.last is None else min(up_to, self.last)
        return max(0, high // self.every - low // self.every)

    def due(self, step: int) -> bool:
        return self.runs(step - 1, step) > 0

    def step_of_run(self, up_to: int, back: int) -> int:
        """The step of its last run up to ``up_to`` (``back`` 0), or of one so many runs before."""
        high = up_to if self.last is None else min(up_to, self.last)
        return (high // self.every - back) * self.every


class Parts(LossModule):
    """Losses that are trained together; their networks may be the same modules.

    A tensor is called after the first part that has it, e.g. ``"model.world_model.0.weight"``; a
    delayed network of a part ``"critic.value_network"``.
    """

    def __init__(self, **parts: LossModule) -> None:
        super().__init__()
        self.parts = nn.ModuleDict(parts)

    def __getitem__(self, name: str) -> LossModule:
        found = self.parts[name]
        assert isinstance(found, LossModule)
        return found

    def _names(self) -> dict[str, dict[str, str]]:
        """By part, what its tensors are called here."""
        known: dict[int, str] = {}
        named: dict[str, dict[str, str]] = {}
        for part in self.parts:
            own = self[part].tensors().items()
            named[part] = {k: known.setdefault(id(t), f"{part}.{k}") for k, t in own}
        return named

    def tensors(self) -> dict[str, Tensor]:
        found: dict[str, Tensor] = {}
        for part, names in self._names().items():
            for k, tensor in self[part].tensors().items():
                found.setdefault(names[k], tensor)
        return found

    @contextmanager
    def bind(self, tensors: Mapping[str, Tensor]) -> Iterator[None]:
        names = self._names()
        with ExitStack() as stack:
            for part, known in names.items():
                given = {n: tensors[name] for n, name in known.items() if name in tensors}
                stack.enter_context(self[part].bind(given))
            yield

    def delayed_networks(self) -> list[str]:
        return [f"{part}.{n}" for part in self.parts for n in self[part].delayed_networks()]

    def mark_updated(self) -> None:
        for part in self.parts:
            self[part].mark_updated()


@dataclass(frozen=True)
class Agent:
    """A loss with its optimisation; ``policy(loss, observed)`` is the evaluated action.

    A recurrent policy returns ``carried`` numbers behind the action; it finds all that it returned
    at the step before under "carried", zeros where an episode starts.
    """

    loss: LossModule
    phases: tuple[Phase, ...]
    tau: float = 0.005
    policy: Policy | None = None
    carried: int = 0
