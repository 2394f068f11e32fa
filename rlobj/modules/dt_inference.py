"""A Decision Transformer at the wheel."""

from __future__ import annotations

import torch
from tensordict import NestedKey, TensorDictBase, unravel_key
from tensordict.nn import TensorDictModule, TensorDictModuleWrapper, dispatch
from torch import Tensor

from rlobj.modules.actors import _of_first
from rlobj.specs import TensorSpec, output_specs


class DecisionTransformerInferenceWrapper(TensorDictModuleWrapper):
    """The next action of a sequence policy: it hides all but the last steps of a window from it,
    and keeps the last of the actions it predicts.

    A call returns a copy of its input with the action ``[*batch, action_dim]``, the last
    return-to-go ``[*batch, 1]``, the observations as they came, and what else the policy writes.

    Args:
        policy: predicts ``[*batch, T, action_dim]`` from observations, actions (the last one is
            unknown: those of the window move up a step and zeros follow) and returns-to-go.
        inference_context: how many steps the policy sees; in those before, everything is 0.
        spec: of the action, or a Composite; by default the policy's.
        device: where the spec is moved.

    Raises:
        ValueError: when observations, actions and returns-to-go are not equally long.
    """

    def __init__(
        self,
        policy: TensorDictModule,
        *,
        inference_context: int = 5,
        spec: TensorSpec | None = None,
        device: torch.device | None = None,
    ) -> None:
        super().__init__(policy)
        self.observation_key: NestedKey = "observation"
        self.action_key: NestedKey = "action"
        self.out_action_key: NestedKey = "action"
        self.return_to_go_key: NestedKey = "return_to_go"
        self.inference_context = inference_context
        given = getattr(policy, "spec", None) if spec is None else spec
        found = output_specs(_of_first(given, [self.action_key]), self.out_keys)
        self.spec = found if device is None else found.to(device)

    @property  # type: ignore[misc]
    def in_keys(self) -> list[NestedKey]:
        return [self.observation_key, self.action_key, self.return_to_go_key]

    @property  # type: ignore[misc]
    def out_keys(self) -> list[NestedKey]:
        return sorted({*self.td_module.out_keys, *self.in_keys}, key=str)

    def set_tensor_keys(self, **keys: NestedKey) -> None:
        """Rename ``observation``, ``action``, ``return_to_go`` (inputs) or ``out_action``.

        Raises:
            TypeError: on another name.
            ValueError: when the policy does not write ``out_action``.
        """
        for name, key in keys.items():
            if name not in ("observation", "action", "return_to_go", "out_action"):
                raise TypeError(f"{name!r} is no entry of {type(self).__name__}")
            setattr(self, f"{name}_key", unravel_key(key))
        if self.out_action_key not in self.td_module.out_keys:
            raise ValueError(f"{self.out_action_key!r} is not among {self.td_module.out_keys}")

    def mask_context(self, tensordict: TensorDictBase) -> TensorDictBase:
        """Write what the policy is to see into ``tensordict``."""
        seen, action, to_go = (tensordict.get(k) for k in self.in_keys)
        if not seen.shape[:-1] == action.shape[:-1] == to_go.shape[:-1]:
            shapes = [tuple(x.shape) for x in (seen, action, to_go)]
            raise ValueError(f"windows of different lengths: {shapes}")
        action = last(action, self.inference_context - 1)
        action = torch.cat([action[..., 1:, :], torch.zeros_like(action[..., :1, :])], -2)
        tensordict.set(self.observation_key, last(seen, self.inference_context))
        tensordict.set(self.action_key, action)
        return tensordict.set(self.return_to_go_key, last(to_go, self.inference_context))

    @dispatch
    def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        seen = tensordict.get(self.observation_key)
        out = self.td_module(self.mask_context(tensordict.clone(False)))
        action = out[self.out_action_key]
        if out.ndim == action.ndim - 1:  # time is an axis of the batch, which has no more steps
            out.batch_size = out.batch_size[:-1]
        out.set(self.out_action_key, action[..., -1, :])
        out.set(self.return_to_go_key, out.get(self.return_to_go_key)[..., -1, :])
        return out.set(self.observation_key, seen)


def last(x: Tensor, steps: int) -> Tensor:
    """``x`` ``[*batch, T, n]`` with 0 in all but the last steps."""
    length = x.shape[-2]
    old = torch.arange(length, device=x.device) < length - steps
    return x.masked_fill(old.unsqueeze(-1), 0)
