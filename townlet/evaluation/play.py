"""Greedy evaluation in worlds of its own, with a state of its own: of a training run it reads only the weights.

Every environment plays exactly one episode, its first, so long and short episodes count alike. All members play the
same episodes (the same seeds), and so do the yardstick policies, which makes their results comparable pair by pair.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from .. import ops
from ..envs.adapter import VectorAdapter
from ..learning.networks import Params, RecurrentNetwork
from ..ops import ActorParams
from ..support import devices

Actor = Callable[[np.ndarray, np.ndarray | None, np.ndarray], np.ndarray]
"""(obs [N, obs_size], legal [N, A] or None, reset [N] bool) -> action [N]."""

_STREAMS = {"validation": 0x76616C, "test": 0x746573}  # apart from each other and from the training seeds


@dataclass(frozen=True)
class Evaluation:
    """Results of P members (or 1 policy) in N episodes each."""

    returns: np.ndarray  # float64 [P, N], undiscounted sum of rewards
    lengths: np.ndarray  # int64 [P, N], steps taken
    survival: np.ndarray | None  # float64 [P, N], ticks survived where the world says so (the Town), else None
    cut: np.ndarray  # bool [P, N], episode stopped by max_steps of the evaluation, not by the world

    @property
    def score(self) -> np.ndarray:
        """Survival where there is one, else the return: float64 [P, N]."""
        return self.returns if self.survival is None else self.survival

    @property
    def score_name(self) -> str:
        return "return" if self.survival is None else "survival"


def evaluation_seeds(seed: int, episodes: int, stream: str = "validation") -> list[int]:
    """Seeds of evaluation episodes: a function of ``seed`` alone, in streams that training never draws from."""
    words = np.random.SeedSequence([_STREAMS[stream], seed]).generate_state(episodes, np.uint64)
    return [int(w >> np.uint64(1)) for w in words]


def training_seeds(member_seed: int, num_envs: int, restart: int = 0) -> list[int]:
    """Seeds of a member's training environments; ``restart`` > 0 gives the fresh episodes of a resumed run."""
    tails = [[e] if restart == 0 else [e, restart] for e in range(num_envs)]
    return [
        int(np.random.SeedSequence([member_seed, *t]).generate_state(1, np.uint64)[0] >> np.uint64(1)) for t in tails
    ]


@torch.no_grad()
def evaluate(
    network: RecurrentNetwork,
    params: Params,
    worlds: Callable[[int], VectorAdapter],
    episodes: int,
    seed: int,
    *,
    memory: bool = True,
    max_steps: int = 10_000,
    stream: str = "validation",
) -> Evaluation:
    """Greedy episodes of every member.

    Args:
        network, params: the network and its parameters with a leading member axis P; only read.
        worlds: makes a given number of environments; they are closed afterwards.
        episodes: N, per member.
        seed: of the episodes.
        memory: False zeroes the recurrent state before every step (the same agent without memory).
        max_steps: episodes still running then are cut and counted as they are.
    """
    actor = GreedyActor(network, params, episodes, memory=memory)
    return evaluate_actor(actor, worlds, seed, max_steps=max_steps, stream=stream)


def evaluate_actor(
    actor: GreedyActor,
    worlds: Callable[[int], VectorAdapter],
    seed: int,
    *,
    max_steps: int = 10_000,
    stream: str = "validation",
) -> Evaluation:
    """The same episodes played by ``actor``, as many per member as it has environments."""
    seeds = evaluation_seeds(seed, actor.num_envs, stream) * actor.members
    adapter = worlds(len(seeds))
    try:
        result = play(actor, adapter, seeds, max_steps=max_steps)
    finally:
        adapter.close()
    return _reshaped(result, actor.members)


def evaluate_policy(
    policy: Callable[[VectorAdapter], Actor],
    worlds: Callable[[int], VectorAdapter],
    episodes: int,
    seed: int,
    *,
    max_steps: int = 10_000,
    stream: str = "validation",
) -> Evaluation:
    """The same episodes played by a hand-written policy; ``policy(adapter)`` gives the actor. Results have P = 1."""
    adapter = worlds(episodes)
    try:
        return play(policy(adapter), adapter, evaluation_seeds(seed, episodes, stream), max_steps=max_steps)
    finally:
        adapter.close()


class GreedyActor:
    """Greedy actions of P members in N environments each, rows ordered member by member, with a state of its own."""

    def __init__(self, network: RecurrentNetwork, params: Params, num_envs: int, *, memory: bool = True) -> None:
        self.network, self.memory = network, memory
        self.params = {k: v.detach() for k, v in params.items()}
        layers = network.layers(self.params)
        self.encodes = layers is not None
        self.packed = ops.pack_actor(ActorParams(layers or (), network.recurrent(self.params)))
        self.members, self.num_envs = next(iter(params.values())).shape[0], num_envs
        self.device = next(iter(params.values())).device
        self.h = torch.zeros(self.members, num_envs, network.hidden_size, device=self.device)
        self.c = torch.zeros_like(self.h)

    def step(self, obs: np.ndarray, legal: np.ndarray | None, reset: np.ndarray) -> ops.ActOutput:
        """Q-values and greedy actions for observations [P*N, obs_size]; advances the state once."""
        out = self.peek(obs, legal, reset)
        self.h, self.c = out.h, out.c
        return out

    @torch.no_grad()
    def peek(self, obs: np.ndarray, legal: np.ndarray | None, reset: np.ndarray) -> ops.ActOutput:
        """What `step` would return; the state stays where it is."""

        def rows(array: np.ndarray, *rest: int) -> Tensor:
            tensor = torch.from_numpy(np.ascontiguousarray(array)).view(self.members, self.num_envs, *rest)
            return devices.upload(tensor, self.device)

        x, first = rows(obs, -1), rows(reset)
        return ops.act(
            self.packed,
            x if self.encodes else self.network.encode(self.params, x),
            self.h,
            self.c,
            first if self.memory else torch.ones_like(first),
            None if legal is None else rows(legal, -1),
        )

    def __call__(self, obs: np.ndarray, legal: np.ndarray | None, reset: np.ndarray) -> np.ndarray:
        return self.step(obs, legal, reset).action.flatten().cpu().numpy()


def play(actor: Actor, adapter: VectorAdapter, seeds: list[int], *, max_steps: int = 10_000) -> Evaluation:
    """One episode per environment -> arrays of shape [1, N].

    An environment whose episode is over plays on, uncounted, until all are; ``reset`` tells the actor of its new ones.
    """
    n = adapter.num_envs
    obs, legal = adapter.reset(seeds)
    returns, lengths = np.zeros(n), np.zeros(n, dtype=np.int64)
    survival: np.ndarray | None = None
    alive, reset = np.ones(n, dtype=bool), np.ones(n, dtype=bool)
    for _ in range(max_steps):
        step = adapter.step(actor(obs, legal, reset))
        returns += np.where(alive, step.reward, 0.0)
        lengths += alive
        if step.survival is not None:
            survival = np.where(alive, step.survival, 0.0 if survival is None else survival)
        alive &= ~step.over
        if not alive.any():
            break
        obs, legal, reset = step.obs, step.legal, step.first
    return Evaluation(returns[None], lengths[None], None if survival is None else survival[None], alive[None].copy())


def _reshaped(e: Evaluation, members: int) -> Evaluation:
    def rows(a: np.ndarray) -> np.ndarray:
        return a.reshape(members, -1)

    return Evaluation(rows(e.returns), rows(e.lengths), None if e.survival is None else rows(e.survival), rows(e.cut))
