"""TorchRL's recurrent DQN: `LSTMModule` and `DQNLoss`, put together as in its tutorial.

Windows of consecutive steps are stored whole, with the state at their first step. The loss runs the LSTM over them.
"""

from __future__ import annotations

from collections.abc import Iterator

import gymnasium
import torch
from tensordict.nn import TensorDictModule, TensorDictSequential
from torch import nn
from torchrl.collectors import Collector
from torchrl.data import LazyTensorStorage, TensorDictReplayBuffer
from torchrl.envs import Compose, GymWrapper, InitTracker, TransformedEnv
from torchrl.modules import MLP, EGreedyModule, LSTMModule, QValueModule, set_recurrent_mode
from torchrl.objectives import DQNLoss, SoftUpdate

from peers.budget import Budget
from peers.flat_world import make


def worlds(env_id: str, n: int, lstm: LSTMModule, reward_scale: float = 1.0) -> TransformedEnv:
    """Open ``n`` environments that are stepped together."""
    vector = gymnasium.vector.SyncVectorEnv(
        [lambda: make(env_id, reward_scale)] * n, autoreset_mode=gymnasium.vector.AutoresetMode.SAME_STEP
    )
    env = TransformedEnv(GymWrapper(vector), Compose(InitTracker()))
    env.append_transform(lstm.make_tensordict_primer())
    return env


def train(env_id: str, seed: int, budget: Budget) -> Iterator[tuple[int, list[float]]]:
    """Train one agent; yields the environment steps and the greedy returns at every evaluation."""
    torch.manual_seed(seed)
    one = make(env_id)
    size, actions = one.observation_space.shape[0], int(one.action_space.n)
    embed = TensorDictModule(nn.Sequential(nn.Linear(size, 64), nn.ReLU()), ["observation"], ["embed"])
    lstm = LSTMModule(64, budget.hidden_size, in_key="embed", out_key="embed")
    head = TensorDictModule(
        MLP(in_features=budget.hidden_size, out_features=actions, num_cells=[64]), ["embed"], ["action_value"]
    )
    env = worlds(env_id, budget.num_envs, lstm, budget.reward_scale)
    env.set_seed(seed)
    value = TensorDictSequential(embed, lstm, head, QValueModule(spec=env.action_spec_unbatched))
    explore = EGreedyModule(spec=env.action_spec, annealing_num_steps=1, eps_init=1.0, eps_end=budget.epsilon_end)
    loss = DQNLoss(value, action_space="one-hot" if _one_hot(env) else "categorical", delay_value=True, double_dqn=True)
    loss.make_value_estimator(gamma=budget.gamma)
    update_target = SoftUpdate(loss, eps=0.99)
    optimiser = torch.optim.Adam(value.parameters(), lr=budget.lr)
    window = budget.num_envs * budget.seq_len
    collector = Collector(
        env, TensorDictSequential(value, explore), frames_per_batch=window, total_frames=-1, trust_policy=True
    )
    replay = TensorDictReplayBuffer(
        storage=LazyTensorStorage(budget.capacity // budget.seq_len), batch_size=budget.batch_size
    )
    judges = worlds(env_id, budget.eval_episodes, lstm)
    steps = updates = 0
    due = iter(budget.evaluations())
    until = next(due)
    for data in collector:
        steps += window
        replay.extend(data.exclude("embed"))
        explore.eps.fill_(budget.epsilon(steps))
        while updates < budget.updates(steps):
            with set_recurrent_mode(True):
                found = loss(replay.sample())["loss"]
            optimiser.zero_grad()
            found.backward()
            nn.utils.clip_grad_norm_(value.parameters(), 10.0)
            optimiser.step()
            update_target.step()
            updates += 1
        if steps >= until:
            yield steps, evaluate(judges, value)
            until = next(due, None)
            if until is None:
                break
    collector.shutdown()


def _one_hot(env: TransformedEnv) -> bool:
    return type(env.action_spec_unbatched).__name__ == "OneHot"


@torch.no_grad()
def evaluate(judges: TransformedEnv, policy: TensorDictSequential) -> list[float]:
    """The greedy return of the first episode in each environment."""
    judges.set_seed(10_000_000)
    td = judges.reset()
    returns = torch.zeros(judges.batch_size)
    alive = torch.ones(judges.batch_size, dtype=torch.bool)
    while alive.any():
        td, following = judges.step_and_maybe_reset(policy(td))
        returns += td["next", "reward"].squeeze(-1) * alive
        alive &= ~td["next", "done"].squeeze(-1)
        td = following
    return returns.tolist()
