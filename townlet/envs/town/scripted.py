"""Yardstick policies for the Town and the function that measures them.

A policy maps a `View` of many environments to one action each. It has no memory of its own: it sees the simulator's
full state, of which `random_policy` and `bed_sitter_policy` use only a part.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any, NamedTuple

import numpy as np

from .args import TownArgs
from .env import TownVectorEnv
from .rules import ACTIONS, BUILDINGS, FULL_MONEY, LOSSES, METERS, is_open

UP, DOWN, LEFT, RIGHT, INTERACT, WAIT = range(len(ACTIONS))
KIND = {building["name"]: i for i, building in enumerate(BUILDINGS)}
_NOWHERE = len(BUILDINGS)
_FLOATS = tuple(name for name in METERS if name != "money")  # the order of every [..., 7] array below
_ENERGY, _HYGIENE, _, _MOOD, _SOCIAL, _HEALTH, _FITNESS = range(len(_FLOATS))


@dataclass(frozen=True)
class View:
    """Full knowledge of N environments."""

    args: TownArgs  # the Town's arguments
    legal: np.ndarray  # bool [N, 6]
    x: np.ndarray  # int [N]
    y: np.ndarray  # int [N]
    hour: np.ndarray  # int [N], 0..23
    cents: np.ndarray  # int [N]
    progress: np.ndarray  # int [N], ticks of the present interaction that are done
    meters: np.ndarray  # float64 [N, 7], in the order of `METERS` without money
    cell_x: np.ndarray  # int [N, 14], of each building; -1 where the level lacks it
    cell_y: np.ndarray  # int [N, 14], likewise
    underfoot: np.ndarray  # int [N], index into `BUILDINGS`; 14 for none
    depletion: np.ndarray  # float64 [N], factor on all losses
    rng: np.random.Generator  # for policies that draw


Policy = Callable[[View], np.ndarray]


def view(envs: TownVectorEnv, legal: np.ndarray, rng: np.random.Generator) -> View:
    """What a policy sees of `envs` in their present state.

    Args:
        envs: the Towns.
        legal: ``[N, 6]`` bool, their legal actions.
        rng: for policies that draw.
    """
    state = envs.get_state()
    kinds = list(envs.args.kinds)
    cells = np.full((envs.num_envs, len(BUILDINGS)), -1)
    cells[:, kinds] = state["cells"]
    here = cells == (state["y"] * envs.args.size + state["x"])[:, None]
    return View(
        args=envs.args,
        legal=legal,
        x=state["x"],
        y=state["y"],
        hour=state["hour"],
        cents=state["cents"],
        progress=state["progress"],
        meters=state["meters"].T,
        cell_x=np.where(cells < 0, -1, cells % envs.args.size),
        cell_y=np.where(cells < 0, -1, cells // envs.args.size),
        underfoot=np.where(here.any(1), here.argmax(1), _NOWHERE),
        depletion=state["depletion"],
        rng=rng,
    )


def _uniform(legal: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """One of the legal actions of each row, drawn uniformly."""
    return np.argmax(np.where(legal, rng.random(legal.shape), -1.0), axis=1)


def random_policy(v: View) -> np.ndarray:
    """Draw uniformly from the legal actions."""
    return _uniform(v.legal, v.rng)


def bed_sitter_policy(v: View) -> np.ndarray:
    """Wander until a bed is underfoot, and never leave it.

    On the bed the policy sleeps while energy is below 0.8 and it can pay, and else waits. It is the best simple policy
    that needs no memory.
    """
    moves = v.legal & (np.arange(len(ACTIONS)) < INTERACT)
    bed, luxury = KIND["Bed"], KIND["LuxuryBed"]
    on_bed = (v.underfoot == bed) | (v.underfoot == luxury)
    price = np.where(v.underfoot == bed, _price(v, bed), _price(v, luxury))
    sleep = (v.meters[:, _ENERGY] < 0.8) & (v.cents >= price)
    return np.where(on_bed, np.where(sleep, INTERACT, WAIT), _uniform(moves, v.rng))


def _price(v: View, kind: int) -> int:
    """The cents that one interact action takes."""
    return BUILDINGS[kind]["price"] * (1 if v.args.temporal else BUILDINGS[kind]["ticks"])


class _Tables(NamedTuple):
    """The rules as arrays over the 14 buildings, for one setting of `temporal`."""

    ticks: np.ndarray  # int [14]
    price: np.ndarray  # int [14], cents for each tick
    tick: np.ndarray  # float64 [14, 7]
    tick_cents: np.ndarray  # int [14]
    done: np.ndarray  # float64 [14, 7], at completion
    done_cents: np.ndarray  # int [14]
    stay: np.ndarray  # int [14, 24, 6], ticks from an hour to the r-th paid one, closed hours included


@cache
def _tables(temporal: bool) -> _Tables:
    count = len(BUILDINGS)
    ticks = np.array([b["ticks"] for b in BUILDINGS])
    price = np.array([b["price"] for b in BUILDINGS])
    tick = np.array([[b["tick"][m] for m in _FLOATS] for b in BUILDINGS])
    done = np.array([[b["complete"][m] for m in _FLOATS] for b in BUILDINGS])
    tick_cents = np.array([b["tick"]["cents"] for b in BUILDINGS])
    done_cents = np.array([b["complete"]["cents"] for b in BUILDINGS])
    stay = np.zeros((count, 24, 6), np.int64)
    if not temporal:  # one tick does everything, at any hour
        whole, whole_cents = ticks[:, None] * tick + done, ticks * tick_cents + done_cents
        stay[:, :, 1:] = 1
        one = np.ones(count, np.int64)
        return _Tables(one, price * ticks, whole, whole_cents, np.zeros_like(done), np.zeros_like(done_cents), stay)
    for kind in range(count):
        for hour in range(24):
            passed = 0
            for paid in range(1, 6):
                while not is_open(kind, (hour + passed) % 24, temporal):
                    passed += 1
                passed += 1
                stay[kind, hour, paid] = passed
    return _Tables(ticks, price, tick, tick_cents, done, done_cents, stay)


# A meter is worth weight * log(level + softness). The numbers are chosen by hand. The softness says how steep the worth
# gets when the meter runs out, which matters most for energy, satiation and health, since they kill.
_WEIGHT = np.array([1.0, 0.1, 1.0, 0.3, 0.1, 0.7, 0.2])
_SOFTNESS = 0.1
_MONEY_WEIGHT, _MONEY_SOFTNESS = 0.5, 0.05
_DEADLY = 0.005  # plans that are expected to bring energy or health this low are refused


def _worth(meters: np.ndarray, cents: np.ndarray) -> np.ndarray:
    money = np.clip(cents, 0, FULL_MONEY) / FULL_MONEY
    floats = (_WEIGHT * np.log(np.clip(meters, 0.0, 1.0) + _SOFTNESS)).sum(-1)
    return floats + _MONEY_WEIGHT * np.log(money + _MONEY_SOFTNESS)


def _losses(v: View) -> tuple[np.ndarray, np.ndarray]:
    """The losses per tick at the present levels, cascades included, and what moving adds; ``[N, 7]`` float64 each."""
    below = LOSSES["cascade_below"]
    lack = np.maximum(0.0, below - v.meters) / below
    rate = np.tile(np.array(LOSSES["passive"]), (len(lack), 1))
    moving = np.tile(np.array(LOSSES["moving"]), (len(lack), 1))
    if v.args.level == "hamlet":
        still = [_HYGIENE, _MOOD, _SOCIAL, _FITNESS]
        rate[:, still] = moving[:, still] = 0.0
    rate[:, _HEALTH] += 0.001 * (0.5 + 2.5 * (1.0 - v.meters[:, _FITNESS]))
    for source, target, k in LOSSES["cascades"]:
        rate[:, target] += k * lack[:, source]
    return rate * v.depletion[:, None], moving * v.depletion[:, None]


def scripted_policy(v: View) -> np.ndarray:
    """Plan with full knowledge of map and rules, as a practical ceiling.

    For each building the policy foresees the walk there, the wait until it opens, and the interaction to its end or as
    far as the money goes. It compares the state after that with the state after idling as long. It takes the first step
    towards the building that gains most per tick, or waits where none gains. It decides anew at every tick.
    """
    rules = _tables(v.args.temporal)
    kinds = np.arange(len(BUILDINGS))
    rows = np.arange(len(v.x))
    cents = v.cents[:, None]

    # The plan: how far, how many paid ticks, how long.  All int [N, 14].
    walk = np.abs(v.cell_x - v.x[:, None]) + np.abs(v.cell_y - v.y[:, None])
    missing = rules.ticks - np.where(v.underfoot[:, None] == kinds, v.progress[:, None], 0)
    affordable = np.where(rules.price > 0, cents // np.maximum(rules.price, 1), missing)
    paid = np.minimum(missing, affordable)
    possible = (v.cell_x >= 0) & (paid > 0)
    paid = np.maximum(paid, 1)
    stay = rules.stay[kinds, (v.hour[:, None] + walk) % 24, paid]
    time = walk + stay

    # What becomes of the meters, float64 [N, 14, 7].
    rate, moving = _losses(v)
    now = v.meters[:, None, :]
    idle = now - rate[:, None] * time[..., None]
    arrived = now - (rate + moving)[:, None] * walk[..., None]
    complete = paid >= missing
    after = arrived - rate[:, None] * stay[..., None] + rules.tick * paid[..., None] + rules.done * complete[..., None]
    cents_after = cents + (rules.tick_cents - rules.price) * paid + rules.done_cents * complete

    gain = (_worth(after, cents_after) - _worth(idle, cents)) / time
    vital = [_ENERGY, _HEALTH]
    lowest = np.minimum(arrived[..., vital].min(-1), after[..., vital].min(-1))
    gain = np.where(lowest <= _DEADLY, -1e3, gain)
    gain = np.where(possible, gain, -np.inf)
    goal = gain.argmax(1)

    dx, dy = v.cell_x[rows, goal] - v.x, v.cell_y[rows, goal] - v.y
    there = np.where(v.legal[:, INTERACT], INTERACT, WAIT)
    step = np.select([dx < 0, dx > 0, dy < 0, dy > 0], [LEFT, RIGHT, UP, DOWN], default=there)
    return np.where(gain[rows, goal] > 0.0, step, WAIT)


def run_yardstick(policy: Policy, episodes: int, seed: int = 0, **town_args: Any) -> np.ndarray:
    """Measure how long a policy survives.

    The episodes are the first ones of the seeds seed, seed + 1, ... With layout="random" each has a map of its own.

    Args:
        policy: maps what it sees of many environments to one action each.
        episodes: how many episodes to play, at least 1.
        seed: the seed of the first episode, and of what the policy draws.
        town_args: the arguments of `TownArgs`.

    Returns:
        The survival times in ticks, ``[episodes]`` int64.

    Raises:
        ValueError: an argument is wrong; the message names it.
    """
    if isinstance(episodes, bool) or not isinstance(episodes, int) or episodes < 1:
        raise ValueError(f"episodes is {episodes!r}; expected an integer of at least 1")
    envs = TownVectorEnv(episodes, **town_args)
    rng = np.random.default_rng(seed)
    _, info = envs.reset(seed=seed)
    survival = np.zeros(episodes, np.int64)
    alive = np.ones(episodes, bool)
    while alive.any():
        _, _, terminated, truncated, info = envs.step(policy(view(envs, info["legal"], rng)))
        survival[alive] = info["survival_time"][alive]
        alive &= ~(terminated | truncated)
    return survival
