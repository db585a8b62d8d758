"""Where the time of an acting step goes: simulator, network with choice of actions, replay write; and sampling.

One member acts in the Town, with MLP encoder 128, LSTM 128 and head 128. Before anything is timed, Q-values, state and
actions are compared with the twin in float64. Sampling is from the replay that acting has filled.

python benchmarks/acting.py --threads 1 2 --num-envs 64 256 1024
"""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from townlet import ops, reference
from townlet.bench.machine import pin
from townlet.bench.problem import WrongResult
from townlet.bench.timing import interleave
from townlet.bench.town import acting_trainer
from townlet.ops import ActorParams, RecurrentQParams
from townlet.training.trainer import Trainer

TOLERANCE = 1e-5
"""The largest absolute error allowed of Q-values and state against float64 (seen: 4e-7)."""


def check(trainer: Trainer) -> float:
    """The largest error of one step.

    Raises:
        WrongResult: the error is too large, or an action is not the twin's.
    """
    population, network = trainer.population, trainer.network
    layers = network.layers(population.online)
    assert layers is not None
    actor = ActorParams(layers, network.recurrent(population.online))
    exact = ActorParams(
        tuple((w.detach().double(), b.detach().double()) for w, b in layers),
        RecurrentQParams(*(None if v is None else v.detach().double() for v in actor.recurrent)),
    )
    rollout = trainer.rollout
    choice = (rollout.legal, trainer.epsilon(), torch.tensor(population.seeds), 7)
    got = ops.act(ops.pack_actor(actor), rollout.obs, *population.state, rollout.reset, *choice)
    h, c = (v.double() for v in population.state)
    want = reference.act(exact, rollout.obs.double(), h, c, rollout.reset, *choice)
    worst = max(float((a - b).abs().max()) for a, b in zip(got[1:], want[1:], strict=True))
    if not worst <= TOLERANCE:
        raise WrongResult(f"act is off by {worst:.1e}; expected at most {TOLERANCE:.0e}")
    if not torch.equal(got.action, reference.choose(got.q, *choice)):
        raise WrongResult("act: an action is not the twin's choice for the same Q-values")
    return worst


def calls(trainer: Trainer) -> dict[str, Callable[[], Any]]:
    """The calls to time, by part."""
    population, replay, rollout = trainer.population, trainer.replay, trainer.rollout
    worlds, obs, reset, legal, over = rollout.worlds, rollout.obs, rollout.reset, rollout.legal, rollout.over
    h, c = population.state
    action = population.act(obs, reset, legal, trainer.epsilon())
    random = itertools.cycle(np.random.default_rng(0).integers(0, worlds.n_actions, (50, worlds.num_envs)))
    step = worlds.step(action.reshape(-1).numpy())
    reward, terminated = (torch.from_numpy(row).view(over.shape) for row in (step.reward, step.terminated))
    return {
        "simulator": lambda: worlds.step(next(random)),
        "act": lambda: population.act(obs, reset, legal, trainer.epsilon()),
        "replay add": lambda: replay.add(obs, reset, legal, h, c, action, reward, terminated, ~over),
        "sample 32": lambda: replay.sample(32),
        "whole step": trainer.act_step,
    }


def measure(num_envs: int, threads: int, rounds: int = 30) -> list[dict[str, Any]]:
    """Measure every part.

    Returns:
        A dict for each part: num_envs, threads, part, the minimum and the median of a call in seconds, and the error of
        the step.
    """
    torch.set_num_threads(threads)
    trainer = acting_trainer(num_envs)
    error = check(trainer)
    timings = interleave(calls(trainer), rounds=rounds)
    common = {"num_envs": num_envs, "threads": threads, "error": error}
    return [common | {"part": name, "minimum": t.minimum, "median": t.median} for name, t in timings.items()]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--num-envs", type=int, nargs="+", default=[64, 256, 1024])
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--rounds", type=int, default=30)
    options = parser.parse_args()
    pin(max(options.threads))
    print(f"{'threads':>7} {'E':>5}  {'part':<12} {'min us':>8} {'median us':>10} {'env steps/s (at min)':>21}")
    for threads in options.threads:
        for num_envs in options.num_envs:
            for row in measure(num_envs, threads, options.rounds):
                rate = "" if row["part"].startswith("sample") else f"{num_envs / row['minimum']:,.0f}"
                low, middle = row["minimum"] * 1e6, row["median"] * 1e6
                print(f"{threads:>7} {num_envs:>5}  {row['part']:<12} {low:>8.0f} {middle:>10.0f} {rate:>21}")


if __name__ == "__main__":
    main()
