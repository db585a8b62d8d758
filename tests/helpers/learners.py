"""A small learner whose buffer is filled with random streams, what of it trains, and updates that go wrong."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from townlet import ops
from townlet.learning.learner import Learner
from townlet.learning.networks import RecurrentQNetwork
from townlet.learning.population import VectorizedPopulation
from townlet.learning.replay import SequentialReplayBuffer
from townlet.ops import SequenceBatch, TDOutput, TDSpec

OBS, A, H, E, S = 5, 3, 8, 4, 6
GAMMA = 0.9


class World:
    """Random streams that tell nothing of the action: observations, ends and legal actions from a seed per member."""

    def __init__(self, seeds: list[int]):
        self.generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        self.over = torch.ones(len(seeds), E, dtype=torch.bool)

    def draw(self, *shape: int) -> Tensor:
        return torch.stack([torch.rand(*shape, generator=g) for g in self.generators])

    def step(self) -> dict[str, Tensor]:
        reset, self.over = self.over, self.draw(E) < 0.15
        return {
            "obs": self.draw(E, OBS) * 2 - 1,
            "reset": reset,
            "legal": self.draw(E, A) < 0.7,
            "reward": self.draw(E),
            "terminated": self.over & (self.draw(E) < 0.5),
            "mask": self.draw(E) < 0.9,
        }


def make(seeds: list[int], td_unroll: Any = None, spec: dict[str, Any] | None = None, **arguments: Any) -> Learner:
    """A learner whose buffer holds 40 steps of acting."""
    memory = arguments.pop("memory", True)
    lr = arguments.pop("lr", 1e-2)
    stored = arguments.pop("stored", "before")
    prioritised = arguments.pop("prioritised", True)
    where = {"device": arguments.pop("device", "cpu")}
    deferred = arguments.pop("deferred", None)
    network = RecurrentQNetwork(OBS, A, encoder=(9,), hidden_size=H, head_size=7)
    population = VectorizedPopulation(
        network, seeds, num_envs=E, gamma=GAMMA, lr=lr, memory=memory, deferred=deferred, **where
    )
    replay = SequentialReplayBuffer(
        members=len(seeds), num_envs=E, capacity=E * 42, obs_size=OBS, n_actions=A, hidden_size=H, seq_len=S,
        seeds=seeds, prioritised=prioritised, **where,
    )  # fmt: skip
    world = World(seeds)
    for _ in range(40):
        fields = world.step()
        h, c = population.state
        action = population.act(fields["obs"], fields["reset"], fields["legal"], 0.5)
        if stored == "after":
            h, c = population.state
        replay.add(h=h, c=c, action=action, **fields)
    arguments = {"batch_size": 16, "sync_every": 3} | arguments
    spec = {"gamma": GAMMA, "n_step": 3, "burn_in": 2} | (spec or {})
    return Learner(population, replay, TDSpec(**spec), td_unroll=td_unroll, **arguments)


def state_of(learner: Learner) -> list[Tensor]:
    p = learner.population
    return [v.clone() for v in (p.online_flat, p.target_flat, p.adam_m, p.adam_v)]


def broken(kind: str) -> Any:
    def td_unroll(online: Any, target: Any, batch: SequenceBatch, spec: TDSpec) -> TDOutput:
        if kind == "reward":
            batch.reward[1, :] = float("nan")
        out = ops.td_unroll(online, target, batch, spec)
        if kind == "gradient":
            nothing = (online.bias[1].sum() * 0).sqrt()  # 0, with a slope that is not a number
            out = out._replace(loss=out.loss + torch.stack((torch.zeros(()), nothing)))
        return out

    return td_unroll
