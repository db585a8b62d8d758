"""Tianshou's DRQN: `DQN` with `Recurrent`, trained on stacked observations as its own example does it.

A sample is a stack of the last observations, which the LSTM reads from a zero state. Only the Q-value of the last one
is trained. Acting carries the state through the whole episode.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from tianshou.algorithm.modelfree.dqn import DQN, DiscreteQLearningPolicy
from tianshou.algorithm.optim import AdamOptimizerFactory
from tianshou.data import Collector, VectorReplayBuffer
from tianshou.env import DummyVectorEnv
from tianshou.utils.net.common import Recurrent
from tianshou.utils.torch_utils import policy_within_training_step, torch_train_mode

from peers.budget import Budget
from peers.flat_world import make


def train(env_id: str, seed: int, budget: Budget) -> Iterator[tuple[int, list[float]]]:
    """Train one agent; yields the environment steps and the greedy returns at every evaluation."""
    torch.manual_seed(seed)
    np.random.seed(seed)  # Tianshou explores with NumPy's global generator
    worlds = DummyVectorEnv([lambda: make(env_id, budget.reward_scale) for _ in range(budget.num_envs)])
    judges = DummyVectorEnv([lambda: make(env_id) for _ in range(budget.eval_episodes)])
    worlds.seed([1000 * seed + i for i in range(budget.num_envs)])
    space, actions = make(env_id).observation_space, make(env_id).action_space
    net = Recurrent(layer_num=1, state_shape=space.shape, action_shape=actions.n, hidden_layer_size=budget.hidden_size)
    policy = DiscreteQLearningPolicy(model=net, action_space=actions, observation_space=space)
    learner = DQN(
        policy=policy,
        optim=AdamOptimizerFactory(lr=budget.lr),
        gamma=budget.gamma,
        n_step_return_horizon=4,  # as in Tianshou's example
        target_update_freq=320,  # as in Tianshou's example
    )
    buffer = VectorReplayBuffer(
        budget.capacity, buffer_num=budget.num_envs, stack_num=budget.seq_len, ignore_obs_next=True
    )
    collector = Collector(learner, worlds, buffer, exploration_noise=True)
    judge = Collector(learner, judges)
    collector.reset()
    steps = updates = 0
    for until in budget.evaluations():
        while steps < until:
            policy.set_eps_training(budget.epsilon(steps))
            with policy_within_training_step(policy), torch_train_mode(policy, False):
                steps += int(collector.collect(n_step=budget.num_envs).n_collected_steps)
            while updates < budget.updates(steps):
                with policy_within_training_step(policy), torch_train_mode(policy):
                    # A stack has one loss, so there are four stacks where the others train one window.
                    learner.update(buffer=buffer, sample_size=4 * budget.batch_size)
                updates += 1
        judges.seed([10_000_000 + i for i in range(budget.eval_episodes)])
        judge.reset()
        with torch_train_mode(policy, False):
            yield steps, judge.collect(n_episode=budget.eval_episodes).returns.tolist()
