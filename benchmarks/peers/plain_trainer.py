"""The default training run in plain PyTorch and NumPy: the same algorithm, sizes, updates per step and threads.

The Town is `NumpyTown`. Acting and learning use the modules of benchmarks/update.py. Replay is a ring of tensors,
written and read with one indexing operation per field. nn.LSTM cannot reset inside a window, so a window ends with its
first episode and the rest of it is masked. It therefore learns less from a window than ours does, at the same cost.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor
from update import Case, PlainLearner, PlainNetwork

from peers.numpy_town import NumpyTown
from townlet.learning.sampling import ReplaySample
from townlet.settings.config import Config
from townlet.training.schedules import lr_factor
from townlet.training.trainer import Trainer


class Replay:
    """The streams of E environments. The recurrent state is kept every ``stride`` steps, where windows start."""

    def __init__(self, config: Config, obs_size: int, n_actions: int):
        E, S = config.num_envs, config.seq_len
        self.S, self.E, self.stride = S, E, config.stride or S // 2
        self.T = config.capacity // E // self.stride * self.stride
        self.obs = torch.zeros(self.T, E, obs_size)
        self.legal = torch.zeros(self.T, E, n_actions, dtype=torch.bool)
        self.action = torch.zeros(self.T, E, dtype=torch.int64)
        self.reward = torch.zeros(self.T, E)
        self.terminated, self.over = torch.zeros(2, self.T, E, dtype=torch.bool)
        self.h, self.c = torch.zeros(2, self.T // self.stride, E, config.hidden_size)
        self.count = 0

    def add(self, obs: Tensor, legal: Tensor, h: Tensor, c: Tensor, action: Tensor, over: Tensor) -> int:
        """Store what came before a step; returns where ``reward`` and ``terminated`` are to be stored."""
        t = self.count % self.T
        self.obs[t], self.legal[t], self.action[t], self.over[t] = obs, legal, action, over
        if t % self.stride == 0:
            self.h[t // self.stride], self.c[t // self.stride] = h, c
        self.count += 1
        return t

    def sample(self, B: int) -> ReplaySample:
        """Draw B windows of one member uniformly."""
        first = -(-max(0, self.count - self.T) // self.stride)
        last = (self.count - 1 - self.S) // self.stride
        start = torch.randint(first, last + 1, (B, 1)) * self.stride
        env = torch.randint(self.E, (B, 1))
        t = (start + torch.arange(self.S + 1)) % self.T
        now = t[:, :-1]
        over = self.over[now, env]
        slot = (start % self.T) // self.stride
        fields = (
            self.obs[t, env],
            self.h[slot, env].squeeze(1),
            self.c[slot, env].squeeze(1),
            self.action[now, env],
            self.reward[now, env],
            self.terminated[now, env],
            torch.zeros(B, self.S + 1, dtype=torch.bool),
            over.cumsum(1) == 0,
            torch.ones(B),
            self.legal[t, env],
            slot,
            start,
        )
        return ReplaySample(*(v.unsqueeze(0) for v in fields))

    def update_priorities(self, sample: ReplaySample, priority: Tensor) -> None:
        """Do nothing, because sampling is uniform."""


class PlainTrainer:
    """Acts and learns as ``trainer`` does, with the same settings and from the same initial weights."""

    def __init__(self, trainer: Trainer):
        c = self.config = trainer.config
        self.town = NumpyTown(c.num_envs, seed=c.seed, **c.stages[0][1])
        network = trainer.network
        case = Case(
            "plain", 1, c.batch_size, c.seq_len, "mlp", c.hidden_size, c.head_size or 0, c.burn_in, c.n_step,
            c.rescale_eps, c.tau, c.sync_every, c.num_envs,
        )  # fmt: skip
        self.replay = Replay(c, network.obs_size, network.n_actions)
        self.learner = PlainLearner(case, trainer.learner, self.replay)
        self.net: PlainNetwork = self.learner.online[0]
        obs, legal = self.town.reset()
        self.obs, self.legal = torch.from_numpy(obs), torch.from_numpy(legal)
        self.h = torch.zeros(1, c.num_envs, c.hidden_size)
        self.c = torch.zeros_like(self.h)
        self.over = torch.zeros(c.num_envs, dtype=torch.bool)
        self.reset = ~self.over
        self.env_steps = 0
        self.ladder = 1.0 + c.epsilon_ladder * torch.arange(c.num_envs) / max(1, c.num_envs - 1)

    @torch.no_grad()
    def q_values(self) -> Tensor:
        """The Q-values of the current observations, ``[E, A]``. The call advances the state."""
        keep = (~self.reset).float().unsqueeze(-1)
        state = (self.h * keep, self.c * keep)
        y, (self.h, self.c) = self.net.lstm(self.net.encode(self.obs.unsqueeze(1)), state)
        return self.net.q_values(y[:, 0])

    def act_step(self) -> None:
        """Take one step of every environment and store it."""
        c = self.config
        h, cell = self.h[0], self.c[0]
        greedy = self.q_values().masked_fill(~self.legal, float("-inf")).argmax(-1)
        done = min(1.0, self.env_steps / c.epsilon_decay_steps)
        end: Any = c.epsilon_end
        epsilon = (c.epsilon_start + (end - c.epsilon_start) * done) ** self.ladder
        uniform = torch.rand(self.legal.shape).masked_fill(~self.legal, -1.0).argmax(-1)
        action = torch.where(torch.rand(c.num_envs) < epsilon, uniform, greedy)
        t = self.replay.add(self.obs, self.legal, h, cell, action, self.over)
        obs, reward, terminated, truncated, legal = self.town.step(action.numpy())
        self.replay.reward[t] = torch.from_numpy(reward.astype(np.float32))
        self.replay.terminated[t] = torch.from_numpy(terminated)
        self.obs, self.legal = torch.from_numpy(obs), torch.from_numpy(legal)
        self.reset, self.over = self.over, torch.from_numpy(terminated | truncated)
        self.env_steps += c.num_envs

    def learn(self) -> None:
        """Make the updates that are due."""
        c = self.config
        lr: Any = c.lr
        for group in self.learner.optimisers[0].param_groups:
            group["lr"] = lr * lr_factor(c, self.env_steps)
        due = int((self.env_steps - c.learning_starts) * c.replay_ratio / c.trained_per_update)
        while self.learner.updates < due:
            self.learner.update()
