"""The simulator and the acting loop around it: what to time, and the checks that come first."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from ..envs import TownVectorEnv
from ..ops import reference
from ..settings.config import Config
from ..training.trainer import Trainer
from .problem import WrongResult

STEPS = 50
"""How many steps of all environments one timed call takes."""

ACTING_TOLERANCE = 1e-5
"""The largest absolute error allowed of the carried state after a step (seen: 3e-7). States are within about 1."""


def simulator(num_envs: int, **arguments: Any) -> Callable[[], None]:
    """The simulator under uniformly random actions. Episodes end and restart as usual.

    Args:
        num_envs: the number of environments.
        **arguments: arguments of the Town.

    Returns:
        A call that takes STEPS steps of all environments.

    Raises:
        WrongResult: an environment among many does not do what it does alone.
    """
    actions = np.random.default_rng(0).integers(0, 6, (STEPS, num_envs))
    envs = TownVectorEnv(num_envs, **arguments)
    envs.reset(seed=0)
    last = num_envs - 1
    seen = [(obs[last].copy(), reward[last]) for obs, reward, *_ in map(envs.step, actions)]
    alone = TownVectorEnv(1, **arguments)
    alone.reset(seed=last)
    for t in range(STEPS):
        obs, reward, *_ = alone.step(actions[t, last:])
        if not (np.array_equal(obs[0], seen[t][0]) and reward[0] == seen[t][1]):
            raise WrongResult(f"simulator: environment {last} of {num_envs} differs from itself alone at step {t}")

    def run() -> None:
        for row in actions:
            envs.step(row)

    return run


def acting(num_envs: int) -> Callable[[], None]:
    """Acting with one member: simulator, MLP encoder 128, LSTM 128, epsilon-greedy action and replay write.

    Args:
        num_envs: the number of environments.

    Returns:
        A call that takes STEPS steps of all environments.

    Raises:
        WrongResult: the carried state is not the one that the twin computes in float64.
    """
    trainer = acting_trainer(num_envs)
    check_acting(trainer)

    def run() -> None:
        for _ in range(STEPS):
            trainer.act_step()

    return run


def acting_trainer(num_envs: int) -> Trainer:
    """A run that only acts, with MLP encoder 128, LSTM 128 and head 128. Its replay has been filled once over."""
    sizes: dict[str, Any] = {"encoder": (128,), "hidden_size": 128, "head_size": 128, "seq_len": 32}
    sizes |= {"capacity": 64 * num_envs, "learning_starts": 33 * num_envs}
    trainer = Trainer(Config(num_envs=num_envs, **sizes))
    for _ in range(65):
        trainer.act_step()
    return trainer


def check_acting(trainer: Trainer, steps: int = 3) -> None:
    """Take some steps and compare each with the twin.

    Args:
        trainer: the run to act with.
        steps: how many steps to take.

    Raises:
        WrongResult: a step does not do what the twin does.
    """
    for _ in range(steps):
        _check_step(trainer)


def _check_step(trainer: Trainer) -> None:
    population = trainer.population
    params = {name: value.detach().double() for name, value in population.online.items()}
    with torch.no_grad():
        features = trainer.network.encode(params, trainer.rollout.obs.double())
        h, c = (v.double() for v in population.state)
        weights = trainer.network.recurrent(params)
        want = reference.lstm_step(features, h, c, weights.w_ih, weights.w_hh, weights.bias, trainer.rollout.reset)
    trainer.act_step()
    for name, got, twin in zip("hc", population.state, want, strict=True):
        error = float((got - twin).abs().max())
        if not error <= ACTING_TOLERANCE:
            raise WrongResult(f"acting: {name} is off by {error:.1e}; expected at most {ACTING_TOLERANCE:.0e}")
