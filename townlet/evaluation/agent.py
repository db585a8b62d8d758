"""Trained members, from a file or from a run that is still training."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import numpy as np
from torch import Tensor

from ..envs.adapter import VectorAdapter
from ..learning.assembly import build_network, open_worlds
from ..learning.networks import RecurrentNetwork
from ..runs import checkpoint
from ..runs.resume import read_agent
from ..settings.config import Config
from .play import Evaluation, evaluate


class _Weights(Protocol):
    @property
    def averaged(self) -> dict[str, Tensor]: ...


class _Hyper(Protocol):
    def state_dict(self) -> dict[str, np.ndarray]: ...


class Trained(Protocol):
    """What an agent needs of a `Trainer`."""

    @property
    def config(self) -> Config: ...

    @property
    def network(self) -> RecurrentNetwork: ...

    @property
    def population(self) -> _Weights: ...

    @property
    def schedules(self) -> _Hyper: ...

    @property
    def env_steps(self) -> int: ...


@dataclass(frozen=True)
class Agent:
    """Trained members and the settings they were trained with.

    Attributes:
        config: the settings of the run.
        network: the network that the parameters belong to.
        params: name -> float32 ``[P, ...]``, the weights that evaluation plays with.
        env_steps: environment steps that each member had taken when the weights were saved.
        hyper: name -> float64 ``[P]``, each member's hyper-parameters at that step.
    """

    config: Config
    network: RecurrentNetwork
    params: dict[str, Tensor]
    env_steps: int
    hyper: Mapping[str, np.ndarray] = field(default_factory=dict)

    @classmethod
    def load(cls, run: str | Path) -> Agent:
        """Load the agent of a run folder's newest checkpoint, of a checkpoint file or of an agent.ckpt.

        Args:
            run: the run folder or the file.

        Returns:
            The agent, with all members of the run.

        Raises:
            CheckpointError: there is no checkpoint, it cannot be read, or its weights do not fit the world as its
                settings describe it now.
        """
        run = Path(run)
        if not run.exists():
            raise checkpoint.CheckpointError(f"{run} does not exist; expected a run folder or a checkpoint")
        path = run if run.is_file() else checkpoint.latest(run / "checkpoints")
        tree = read_agent(path)
        config = Config.from_dict(tree["config"], source=str(path))
        adapter = open_worlds(config, 1, config.evaluation_args)
        network = build_network(config, adapter)
        adapter.close()
        for name, shape in network.shapes().items():
            held = tuple(tree["weights"][name].shape[1:]) if name in tree["weights"] else None
            if held != shape:
                raise checkpoint.CheckpointError(
                    f"{path}: {name} is {'missing' if held is None else list(held)}; expected {list(shape)}, as the "
                    f"observations of {config.env} are now (did its default arguments change since this was trained?)"
                )
        return cls(config, network, tree["weights"], tree["env_steps"], tree["hyper"])

    @classmethod
    def of(cls, trainer: Trained) -> Agent:
        """The agent as it is now in a `Trainer`. It shares the weights with the trainer."""
        hyper = trainer.schedules.state_dict()
        return cls(trainer.config, trainer.network, trainer.population.averaged, trainer.env_steps, hyper)

    def member(self, number: int) -> dict[str, Tensor]:
        """The parameters of one member, name -> float32 ``[1, ...]``.

        Raises:
            ValueError: ``number`` is not the number of a member.
        """
        if not 0 <= number < self.config.members:
            raise ValueError(f"member is {number}; expected 0 to {self.config.members - 1}")
        return {k: v[number : number + 1] for k, v in self.params.items()}

    def worlds(self, n: int) -> VectorAdapter:
        """Open ``n`` evaluation environments, which the caller closes."""
        return open_worlds(self.config, n, self.config.evaluation_args, workers=self.config.workers)

    def evaluate(self, episodes: int, seed: int, *, memory: bool | None = None, stream: str = "test") -> Evaluation:
        """Play greedy episodes with every member.

        Args:
            episodes: N, the number of episodes per member.
            seed: the seed that the episodes are drawn from.
            memory: False zeroes the recurrent state before every step. None plays as the agent was trained.
            stream: "test" or "validation", two sets of episodes that never overlap.

        Returns:
            Returns, lengths and survival, each ``[P, N]``.
        """
        c = self.config
        keep = c.memory if memory is None else memory
        return evaluate(
            self.network,
            self.params,
            self.worlds,
            episodes,
            seed,
            memory=keep,
            max_steps=c.eval_max_steps,
            stream=stream,
        )
