"""The QMIX recipe without a mixer: independent learners."""

from __future__ import annotations

import torch
from tensordict import TensorDict

from bench.envs.two_step import LAYOUT
from bench.recipe import Problem, load_recipe
from rlobj.specs import Categorical


def test_independent_learners_share_weights_and_the_reward() -> None:
    """Their loss is the mean over agents of ``(r + gamma max_a Q'(o'_i, a) - Q(o_i, a_i))^2``."""
    torch.manual_seed(0)
    recipe = load_recipe("qmix")
    hp = recipe.hyperparameters(("lite/twostep/random-v0",), "quick", {"mixer": "none"})
    agent = recipe.build(hp, Problem(LAYOUT.width, Categorical(LAYOUT.actions**LAYOUT.agents)))
    n, agents = 6, LAYOUT.agents
    here, after = torch.randn(2, n, LAYOUT.width).unbind()
    reward, over = torch.randn(n, 1), torch.tensor([[True], [False]] * (n // 2))
    joint = torch.randint(LAYOUT.actions**agents, (n,))
    flags = {"reward": reward, "done": over, "terminated": over, "observation": after}
    batch = TensorDict({"observation": here, "action": joint, "next": flags}, [n])
    loss = agent.phases[0].terms(agent.loss, batch)["loss_qvalue"]

    def values(joint_observation: torch.Tensor, target: bool) -> torch.Tensor:
        own = TensorDict({("agents", "observation"): LAYOUT.observations(joint_observation)}, [n])
        rows = own.apply(lambda x: x.reshape(n * agents, 1, -1), batch_size=[n * agents])
        found = agent.loss.run_network("local_value_network", rows, target=target)
        return found["agents", "action_value"].reshape(n, agents, -1)

    chosen = values(here, False).gather(-1, LAYOUT.split(joint).unsqueeze(-1)).squeeze(-1)
    best = values(after, True).amax(-1)
    errors = (reward + hp.gamma * ~over * best - chosen).pow(2)
    torch.testing.assert_close(loss, errors.mean())
