"""Greedy evaluation, in worlds and with a recurrent state of its own: it reads nothing of a run but the weights.

Only the first episode of every environment counts, so long and short episodes weigh alike. All members play the same
episodes (the same seeds), and so do the yardstick policies, so their results are comparable pair by pair.
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

_STREAMS = {"validation": 0x76616C, "test": 0x746573}  # distinct from each other and from the training seeds


@dataclass(frozen=True)
class Evaluation:
    """Results of P members (or one policy, then P = 1) in N episodes each.

    Attributes:
        returns: undiscounted sums of rewards, float64 ``[P, N]``.
        lengths: steps taken, int64 ``[P, N]``.
        survival: ticks survived, float64 ``[P, N]``; None for worlds that do not report them (all but the Town).
        cut: whether ``max_steps`` of the evaluation ended the episode rather than the world, bool ``[P, N]``.
    """

    returns: np.ndarray
    lengths: np.ndarray
    survival: np.ndarray | None
    cut: np.ndarray

    @property
    def score(self) -> np.ndarray:
        """Survival where the world reports it, else the return: float64 ``[P, N]``."""
        return self.returns if self.survival is None else self.survival

    @property
    def score_name(self) -> str:
        """What `score` is: "survival" or "return"."""
        return "return" if self.survival is None else "survival"


def evaluation_seeds(seed: int, episodes: int, stream: str = "validation") -> list[int]:
    """The seeds of evaluation episodes, which depend on ``seed`` and ``stream`` alone.

    Args:
        seed: the seed that the episodes' seeds are drawn from.
        episodes: how many seeds to draw.
        stream: "validation" or "test". The two never overlap, and training draws from neither.
    """
    words = np.random.SeedSequence([_STREAMS[stream], seed]).generate_state(episodes, np.uint64)
    return [int(w >> np.uint64(1)) for w in words]


def training_seeds(member_seed: int, num_envs: int, restart: int = 0) -> list[int]:
    """The seeds of a member's training environments.

    Args:
        member_seed: the member's own seed.
        num_envs: how many environments the member has.
        restart: how many times the running episodes were cut and new ones begun; each restart has its own seeds.
    """
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
    """Play greedy episodes with every member.

    Args:
        network: the network; it is only read.
        params: name -> ``[P, ...]``, its parameters; they are only read.
        worlds: opens the given number of environments. They are closed afterwards.
        episodes: N, the number of episodes per member.
        seed: the seed of the episodes.
        memory: False zeroes the recurrent state before every step (the same agent without memory).
        max_steps: episodes that still run after so many steps are cut, and counted as they stand.
        stream: "validation" or "test", as in `evaluation_seeds`.
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
    """Play the episodes of `evaluate` with ``actor``: as many per member as it has environments."""
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
    """Play the episodes of `evaluate` with a hand-written policy.

    Args:
        policy: makes the actor for the worlds it is given.
        worlds: opens the given number of environments. They are closed afterwards.
        episodes: N, the number of episodes.
        seed: the seed of the episodes.
        max_steps: episodes that still run after so many steps are cut.
        stream: "validation" or "test", as in `evaluation_seeds`.

    Returns:
        The results, with P = 1.
    """
    adapter = worlds(episodes)
    try:
        return play(policy(adapter), adapter, evaluation_seeds(seed, episodes, stream), max_steps=max_steps)
    finally:
        adapter.close()


class GreedyActor:
    """Chooses greedy actions for P members in N environments each, and keeps their recurrent state.

    Args:
        network: the network that acts.
        params: name -> ``[P, ...]``, its parameters.
        num_envs: N. Observations come as rows ``[P * N, obs_size]``, ordered member by member.
        memory: False zeroes the state before every step.
    """

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
        """Compute Q-values and greedy actions, and advance the state once.

        Args:
            obs: the observations, float32 ``[P * N, obs_size]``.
            legal: the legal actions, bool ``[P * N, A]``; None allows all.
            reset: whether an observation is the first of its episode, bool ``[P * N]``.
        """
        out = self.peek(obs, legal, reset)
        self.h, self.c = out.h, out.c
        return out

    @torch.no_grad()
    def peek(self, obs: np.ndarray, legal: np.ndarray | None, reset: np.ndarray) -> ops.ActOutput:
        """What `step` would return; the state does not advance."""

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
    """Play one episode in each of the adapter's N environments.

    An environment whose episode is over plays on, uncounted, until all are over; ``reset`` tells the actor where its
    new episodes begin.

    Args:
        actor: chooses the actions.
        adapter: the environments; they stay open.
        seeds: a seed for each environment.
        max_steps: episodes that still run after so many steps are cut.

    Returns:
        The results, with P = 1.
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
