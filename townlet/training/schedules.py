"""The members' hyper-parameters, and the values that schedules derive from them at a step.

Schedules are functions of the step count alone. The hyper-parameters change only through population based training.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from ..learning.population import VectorizedPopulation
from ..settings.config import PER_MEMBER, Config
from ..support import devices


def lr_factor(c: Config, env_steps: int) -> float:
    """The factor by which the decay multiplies a learning rate at this step, 1 to ``lr_end``."""
    done = min(1.0, env_steps / c.lr_decay_steps) if c.lr_decay_steps else 0.0
    return c.lr_end**done if c.lr_decay == "exponential" else 1.0 - (1.0 - c.lr_end) * done


class Schedules:
    """What exploration and learning rates are at a step.

    Args:
        config: the settings.

    Attributes:
        hyper: every setting that may differ between members: name -> float64 ``[P]``.
    """

    def __init__(self, config: Config) -> None:
        self.config = config
        self.hyper = {name: np.array(config.per_member(name), dtype=np.float64) for name in PER_MEMBER}
        E = config.num_envs
        # The exponents of epsilon go from 1 to 1 + ladder (Ape-X, Horgan et al. 2018).
        self._ladder = 1.0 + config.epsilon_ladder * np.arange(E) / max(1, E - 1)
        self._forget()

    def _forget(self) -> None:
        self._epsilon = (-1.0, torch.empty(0))  # progress of the decay, and what `epsilon` returned for it

    def state_dict(self) -> dict[str, np.ndarray]:
        """A copy of ``hyper``."""
        return {name: values.copy() for name, values in self.hyper.items()}

    def load_state_dict(self, state: Mapping[str, np.ndarray]) -> None:
        """Take over what ``state_dict`` returned.

        Raises:
            ValueError: names, shapes or types differ from this run's.
        """
        mine = {name: (values.shape, values.dtype) for name, values in self.hyper.items()}
        if {name: (np.shape(values), np.asarray(values).dtype) for name, values in state.items()} != mine:
            raise ValueError(
                f"hyper holds {sorted(state)}; expected {sorted(mine)}, float64 [{self.config.members}] each"
            )
        self.hyper = {name: values.copy() for name, values in state.items()}
        self._forget()

    def epsilon(self, env_steps: int) -> Tensor:
        """The share of random actions, float64 ``[P, E]``.

        It changes linearly with the step count and is then constant. A ladder spreads it over the environments.
        """
        c = self.config
        done = 1.0 if c.epsilon_decay_steps == 0 else min(1.0, env_steps / c.epsilon_decay_steps)
        if done != self._epsilon[0]:  # after the decay it is not computed again
            now = np.clip(c.epsilon_start + (self.hyper["epsilon_end"] - c.epsilon_start) * done, 0.0, 1.0)
            self._epsilon = done, torch.from_numpy(now[:, None] ** self._ladder)
        return self._epsilon[1]

    def set_lr(self, population: VectorizedPopulation, env_steps: int) -> None:
        """Give the population the learning rates of this step."""
        lr = torch.from_numpy(self.hyper["lr"]).float() * lr_factor(self.config, env_steps)
        population.lr.copy_(devices.upload(lr, population.device))

    def apply(self, population: VectorizedPopulation, env_steps: int) -> None:
        """Copy ``hyper`` into the population's own tensors, which are the only ones that a recorded graph reads."""
        population.gamma.copy_(torch.from_numpy(self.hyper["gamma"]))
        assert population.clip_norm is not None
        population.clip_norm.copy_(torch.from_numpy(self.hyper["clip_norm"]))
        self.set_lr(population, env_steps)
        self._forget()
