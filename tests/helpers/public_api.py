"""Every public name in use, with the types that a caller sees: `mypy --strict` reads this file, test_types.py runs it.

A line with `type: ignore` is a wrong call: were the types lost on the way, mypy would call the ignore unused.
"""

from __future__ import annotations

from typing import Any, assert_type

import numpy as np
import torch
from torch import Tensor

import townlet
import townlet.envs
import townlet.nn
import townlet.ops
from townlet import Config, Learner, SequentialReplayBuffer, Trainer, VectorizedPopulation, build_config
from townlet.memory import MemoryProbe, probe
from townlet.ops import PackedParams, RecurrentQParams, SequenceBatch, TDOutput, TDSpec
from townlet.report import Agent

P, B, S, D, H, A = 2, 3, 4, 5, 6, 3


def facts() -> None:
    assert_type(townlet.__version__, str)
    assert_type(build_config(), dict[str, Any])
    assert_type(townlet.envs.METERS[0], str)
    assert_type(townlet.envs.ACTIONS[0], str)
    assert_type(townlet.envs.BUILDINGS, tuple[dict[str, Any], ...])


def operators() -> None:
    weights = [torch.randn(P, *shape) for shape in ((4 * H, D), (4 * H, H), (4 * H,), (A, H), (A,))]
    params = RecurrentQParams(weights[0], weights[1], weights[2], None, None, weights[3], weights[4])
    packed = townlet.ops.pack(params)
    assert_type(packed, PackedParams)
    x, zero = torch.randn(P, B, S + 1, D), torch.zeros(P, B, H)
    no = torch.zeros(P, B, S + 1, dtype=torch.bool)
    action = torch.zeros(P, B, S, dtype=torch.int64)
    mask = torch.ones(P, B, S, dtype=torch.bool)
    batch = SequenceBatch(x, x, zero, zero, action, torch.zeros(P, B, S), no[..., 1:], no, mask, torch.ones(P, B))
    out = townlet.ops.td_unroll(params, packed, batch, TDSpec(gamma=0.9, loss="mse"))
    assert_type(out, TDOutput)
    assert_type(out.loss, Tensor)
    assert_type(townlet.ops.td_unroll_scratch(P, B, S, D, H, A), int)
    assert_type(townlet.ops.lstm_unroll(x, zero, zero, *weights[:3]), tuple[Tensor, Tensor, Tensor])
    assert_type(townlet.ops.lstm_step(x[:, :, 0], zero, zero, packed), tuple[Tensor, Tensor])
    actor = townlet.ops.pack_actor(townlet.ops.ActorParams((), params))
    assert_type(actor, townlet.ops.PackedActor)
    step = townlet.ops.act(actor, x[:, :, 0], zero, zero)
    assert_type(step, townlet.ops.ActOutput)
    flat = [torch.zeros(P, 7) for _ in range(4)]
    norm = townlet.ops.adam_step(flat[0], flat[1], flat[2], flat[3], torch.ones(P), None, (0.9, 0.999), 1e-8, 1)
    assert_type(norm, Tensor)


def wrong_calls(params: RecurrentQParams, batch: SequenceBatch) -> None:
    townlet.ops.td_unroll(params, None, batch, gamma=0.9)  # type: ignore[call-arg]
    TDSpec(loss="l1")  # type: ignore[arg-type]
    Config(members="two")  # type: ignore[arg-type]
    townlet.Nothing  # type: ignore[attr-defined]  # noqa: B018
    townlet.nn.ResetLSTM("2", 3)  # type: ignore[arg-type]
    Agent.load(3)  # type: ignore[arg-type]


def modules() -> None:
    lstm = townlet.nn.ResetLSTM(D, H, members=P)
    assert_type(lstm.forward(torch.zeros(P, B, S, D)), tuple[Tensor, tuple[Tensor, Tensor]])
    for network in (
        townlet.RecurrentQNetwork(D, A, encoder=(8,), hidden_size=H),
        townlet.RecurrentSpatialQNetwork.from_town(townlet.envs.TownArgs()),
    ):
        assert_type(network.init([1, 2]), dict[str, Tensor])
    assert issubclass(townlet.RecurrentConvQNetwork, torch.nn.Module) is False  # networks are sizes and functions


def learning() -> None:
    network = townlet.RecurrentQNetwork(D, A, encoder=(8,), hidden_size=H, head_size=None)
    population = VectorizedPopulation(network, [1, 2], num_envs=2, lr=[1e-3, 1e-4])
    assert_type(population.online, dict[str, Tensor])
    assert_type(population.state, tuple[Tensor, Tensor])
    obs, first = torch.zeros(2, 2, D), torch.ones(2, 2, dtype=torch.bool)
    assert_type(population.act(obs, first, epsilon=0.1), Tensor)
    population.sync_target("soft", 0.5)
    replay = SequentialReplayBuffer(
        members=2, num_envs=2, capacity=40, obs_size=D, n_actions=A, hidden_size=H, seq_len=S, seeds=[1, 2]
    )
    zero = torch.zeros(2, 2, H)
    for _ in range(3 * S):
        action, reward = torch.zeros(2, 2, dtype=torch.int64), torch.zeros(2, 2)
        replay.add(obs, ~first, None, zero, zero, action, reward, ~first, first)
    learner = Learner(population, replay, TDSpec(gamma=population.gamma), batch_size=2, sync_every=10)
    assert_type(learner.update(), dict[str, Tensor])


def worlds() -> None:
    town = townlet.TownVectorEnv(3, level="hamlet")
    assert_type(town.args, townlet.envs.TownArgs)
    assert_type(town.args.observation, townlet.envs.ObservationLayout)
    obs, info = town.reset(seed=1)
    assert_type(obs, np.ndarray)
    assert_type(info, dict[str, Any])
    one = townlet.envs.TownEnv(level="hamlet")
    one.reset(seed=1)
    reward, terminated = one.step(5)[1:3]
    assert_type(reward, float)
    assert_type(terminated, bool)
    assert isinstance(town, townlet.envs.TownVectorEnv)


def training(config: Config) -> None:
    trainer = Trainer(config)
    trainer.train()
    assert_type(trainer.env_steps, int)
    returns = trainer.evaluate().returns
    assert_type(returns, np.ndarray)
    found = probe(Agent.of(trainer), episodes=2)
    assert_type(found, MemoryProbe)
    assert_type(found.sentence, str)
