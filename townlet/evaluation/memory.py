"""Does a trained agent use its memory? Measurements on the same greedy episodes, and a sentence that sums them up.

Cleared: the recurrent state is zeroed every k steps, so the agent knows nothing from before.

Swapped: every k steps the agent continues with the state of another environment's episode. That state has the
statistics that the agent was trained on, but the wrong content. A cleared state may fail only because the network never
met zeros in the middle of an episode. A swapped state rules that explanation out.

Alike: at every step the agent continues with the state of the episode whose present observation is most like its own.
That state is wrong only about what the present observation does not show. In a world that shows everything, it is as
good as the agent's own.

Influence: the norm of the gradient of the greedy action's value Q_t with respect to the LSTM's input x_{t-k}, relative
to that norm at k = 0.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .. import ops
from ..learning.networks import Params, RecurrentNetwork
from ..ops import reference
from ..support.intervals import Interval
from .agent import Agent
from .play import GreedyActor, evaluate_actor, evaluate_policy
from .yardsticks import random_actor, yardsticks

LAGS = 127
"""The largest k of the influence."""
WINDOWS = 128
"""The influence is averaged over at most this many windows per member, one from each episode."""
FAINT = 0.01
"""The sentence names the largest lag whose influence is at least this share of the present observation's."""


class DisturbedActor(GreedyActor):
    """A greedy actor whose state is replaced every ``every`` steps.

    Args:
        network: the network that acts.
        params: name -> ``[P, ...]``, its parameters.
        num_envs: N, the number of environments of each member.
        how: what replaces the state. "cleared" zeroes it. "swapped" passes the states of the first episodes that still
            run round a random ring, so that no environment keeps its own; when only one still runs, it takes the state
            of a later episode. "alike" gives each environment the state of the other environment whose present
            observation is nearest in the encoder's features; ties are broken at random.
        every: the number of steps between replacements.
        memory: False zeroes the state before every step as well.
        seed: the seed of the random rings and of the ties.
    """

    def __init__(
        self, network: RecurrentNetwork, params: Params, num_envs: int, *, how: str, every: int, memory: bool, seed: int
    ) -> None:
        super().__init__(network, params, num_envs, memory=memory)
        self.how, self.every, self.steps = how, every, 0
        self.rng = np.random.default_rng(seed)
        self.running = np.ones((self.members, num_envs), dtype=bool)

    @torch.no_grad()
    def step(self, obs: np.ndarray, legal: np.ndarray | None, reset: np.ndarray) -> ops.ActOutput:
        if self.steps > 0:
            self.running &= ~reset.reshape(self.running.shape)
            if self.steps % self.every == 0:
                self._disturb(obs)
        self.steps += 1
        return super().step(obs, legal, reset)

    def _disturb(self, obs: np.ndarray) -> None:
        if self.how == "cleared":
            self.h, self.c = torch.zeros_like(self.h), torch.zeros_like(self.c)
            return
        source = self._ring() if self.how == "swapped" else self._nearest(obs)
        index = torch.from_numpy(source).to(self.device).unsqueeze(-1).expand_as(self.h)
        self.h, self.c = self.h.gather(1, index), self.c.gather(1, index)

    def _ring(self) -> np.ndarray:
        """The environment whose state each one takes under "swapped": int ``[P, N]``."""
        source = np.tile(np.arange(self.num_envs), (self.members, 1))
        for own, running in zip(source, self.running, strict=True):
            ring = self.rng.permutation(np.flatnonzero(running) if running.sum() > 1 else self.num_envs)
            own[ring] = np.roll(ring, 1)
        return source

    def _nearest(self, obs: np.ndarray) -> np.ndarray:
        """The environment whose state each one takes under "alike": int ``[P, N]``."""
        rows = torch.from_numpy(np.ascontiguousarray(obs, dtype=np.float32)).view(self.members, self.num_envs, -1)
        x = self.network.encode(self.params, rows.to(self.device)).double()
        distance = torch.cdist(x, x, compute_mode="donot_use_mm_for_euclid_dist").cpu().numpy()
        distance += 1e-6 * (distance.mean() + 1e-6) * self.rng.random(distance.shape)  # breaks ties
        distance[:, np.arange(self.num_envs), np.arange(self.num_envs)] = np.inf
        return distance.argmin(axis=2)


class _WindowRecorder(GreedyActor):
    """A greedy actor that keeps, for each environment, the steps up to and including step ``ends[p, n]``.

    An episode shorter than the window fills the window's end. The reset of its first step cuts off what lies before.

    Attributes:
        obs: the observations, float32 ``[P, N, T, obs_size]``.
        reset: whether a step is the first of its episode, bool ``[P, N, T]``.
        legal: the legal actions of the last step, bool ``[P, N, A]``.
        h0, c0: the state before the first step, float32 ``[P, N, H]``.
    """

    def __init__(
        self, network: RecurrentNetwork, params: Params, ends: np.ndarray, length: int, *, memory: bool
    ) -> None:
        super().__init__(network, params, ends.shape[1], memory=memory)
        self.ends, self.steps = ends, 0
        P, N, H = self.h.shape
        self.obs = torch.zeros(P, N, length, network.obs_size)
        self.reset = torch.zeros(P, N, length, dtype=torch.bool)
        self.legal = torch.ones(P, N, network.n_actions, dtype=torch.bool)
        self.h0, self.c0 = torch.zeros(P, N, H), torch.zeros(P, N, H)
        self._past: deque[tuple[Tensor, Tensor, Tensor, Tensor]] = deque(maxlen=length)

    @torch.no_grad()
    def step(self, obs: np.ndarray, legal: np.ndarray | None, reset: np.ndarray) -> ops.ActOutput:
        P, N, length = self.reset.shape
        first = torch.from_numpy(reset.reshape(P, N).copy())
        seen = torch.from_numpy(np.array(obs, dtype=np.float32).reshape(P, N, -1))
        self._past.append((seen, first if self.memory else torch.ones_like(first), self.h.cpu(), self.c.cpu()))
        which = torch.from_numpy(self.ends == self.steps)
        if which.any():
            filled = length - len(self._past)
            for i, (seen, first, _, _) in enumerate(self._past, start=filled):
                self.obs[which, i], self.reset[which, i] = seen[which], first[which]
            self.h0[which], self.c0[which] = (s[which] for s in self._past[0][2:])
            if legal is not None:
                self.legal[which] = torch.from_numpy(legal.reshape(P, N, -1))[which]
        self.steps += 1
        return super().step(obs, legal, reset)


def influence(
    network: RecurrentNetwork, params: Params, obs: Tensor, h0: Tensor, c0: Tensor, reset: Tensor, legal: Tensor
) -> Tensor:
    """How much each step of a window moves the greedy action's value at the window's last step.

    The influence is ``||dQ_T / dx_{T-k}||``, where Q_T is that value and x is the input of the LSTM, which is the
    encoder's output. What lies before a reset has an influence of exactly 0.

    Args:
        network: the network.
        params: name -> ``[P, ...]``, its parameters.
        obs: the observations, float32 ``[P, N, T, obs_size]``.
        h0: the hidden state before the window, float32 ``[P, N, H]``.
        c0: the cell state before the window, float32 ``[P, N, H]``.
        reset: whether a step is the first of its episode, bool ``[P, N, T]``.
        legal: the legal actions of the last step, bool ``[P, N, A]``.

    Returns:
        The influence for k = 0 to T - 1, float32 ``[P, N, T]``.
    """
    with torch.no_grad():
        x = network.encode(params, obs)
    x = x.detach().requires_grad_()
    w = network.recurrent({k: v.detach() for k, v in params.items()})
    with torch.enable_grad():
        y, _, _ = ops.lstm_unroll(x, h0, c0, w.w_ih, w.w_hh, w.bias, reset)
        q = reference.head(w, y[:, :, -1])
        best = reference.choose(q.detach(), legal, None, None, 0)
        (gradient,) = torch.autograd.grad(q.gather(-1, best.unsqueeze(-1)).sum(), x)
    return gradient.norm(dim=-1).flip(-1)


@dataclass(frozen=True)
class MemoryProbe:
    """What was measured. All scores are float64 ``[P, N]``, of the same N episodes in the same order.

    Attributes:
        env: the Gymnasium id of the world.
        env_steps: environment steps that each member had taken.
        members: the numbers of the P members that were measured.
        remembers: False for the control, which is trained and run without memory.
        score_name: "survival" or "return".
        seed: the seed of the episodes.
        intact: the scores with the state left alone.
        random: the scores of random legal actions, ``[1, N]``.
        cleared: k -> the scores with the state cleared every k steps.
        swapped: k -> the scores with the state swapped every k steps.
        alike: the scores with the state of the most similar episode at every step.
        influence: float64 ``[P, W, K+1]``, for W windows and lags of 0 to K steps; NaN where the window's episode had
            not begun.
    """

    env: str
    env_steps: int
    members: list[int]
    remembers: bool
    score_name: str
    seed: int
    intact: np.ndarray
    random: np.ndarray
    cleared: dict[int, np.ndarray]
    swapped: dict[int, np.ndarray]
    alike: np.ndarray
    influence: np.ndarray

    def over_members(self, values: np.ndarray) -> Interval:
        """The mean of scores and its interval: over the members' means, or over the episodes of a single member.

        Episodes of one agent are not independent agents, so several members are never pooled.
        """
        return Interval.of(values.mean(axis=1) if len(values) > 1 else values)

    def cost(self, scores: np.ndarray) -> Interval:
        """How much lower ``scores`` are than those of the undisturbed agent in the same episodes."""
        return self.over_members(self.intact - scores)

    @property
    def influence_by_lag(self) -> list[Interval]:
        """The influence for k = 0 to K, relative to the mean influence of the present observation."""
        with np.errstate(invalid="ignore", divide="ignore"):
            relative = self.influence / np.nanmean(self.influence[:, :, :1], axis=1, keepdims=True)
        relative = np.nan_to_num(relative, nan=0.0, posinf=0.0) + 0 * self.influence  # NaN stays where nothing was
        out = []
        for lag in range(relative.shape[2]):
            each = [own[~np.isnan(own)] for own in relative[:, :, lag]]
            out.append(Interval.of(np.array([e.mean() for e in each]) if len(each) > 1 else each[0]))
        return out

    @property
    def verdict(self) -> str:
        """What the figures show, in one word.

        - off: the agent was trained and runs without memory.
        - used: the agent is better than random. It is worse without its state, with another episode's state, and with
          the state of the episode that looks most alike.
        - guessing: its state matters, but the agent is not clearly better than random.
        - redundant: its state matters, but tells it nothing that the present observation does not show.
        - content-free: the agent is worse without a state, but another episode's state does as well.
        - harmful: the agent is better without its state.
        - misleading: the agent is no worse without its state, but worse with another episode's.
        - none: the state was found to make no difference.
        """
        if not self.remembers:
            return "off"
        clear, swap = self.cost(self.cleared[1]), self.cost(self.swapped[1])
        if clear.low > 0 and swap.low > 0:
            if not self.cost(self.random).low > 0:
                return "guessing"
            return "used" if self.cost(self.alike).low > 0 else "redundant"
        if clear.low > 0:
            return "content-free"
        if clear.high < 0:
            return "harmful"
        return "misleading" if swap.low > 0 else "none"

    @property
    def sentence(self) -> str:
        """What the figures show, in one sentence."""
        name, intact = self.score_name, float(self.intact.mean())
        zeroed, swapped = float(self.cleared[1].mean()), float(self.swapped[1].mean())
        clear, swap = self.cost(self.cleared[1]), self.cost(self.swapped[1])
        change = f"{name} goes from {_number(intact)} to {_number(zeroed)} with its state cleared at every step"
        without = f"{change} (difference {_signed(-clear.mean)}, 95% interval {_signed(-clear.high)} to "
        without += f"{_signed(-clear.low)})"
        other = f"with another episode's state it reaches {_number(swapped)} (difference {_signed(-swap.mean)}, 95% "
        other += f"interval {_signed(-swap.high)} to {_signed(-swap.low)})"
        if self.verdict == "off":
            return f"No use of memory: this agent was trained and acts without it; its {name} is {_number(intact)}."
        if self.verdict == "used":
            return f"The agent uses its memory: {without}; {self._reach()}{other}; {self._alike()}{self._lag()}."
        if self.verdict == "guessing":
            return (
                f"No use of memory found: the agent is not clearly better than random ({name} {_number(intact)} "
                f"against {_number(float(self.random.mean()))}), although its state makes a difference: {without}; "
                f"{other}."
            )
        if self.verdict == "redundant":
            return (
                f"No use of memory found: {without}; {other}; but {self._alike()}: its state tells it nothing that the "
                "present observation does not show."
            )
        if self.verdict == "content-free":
            return f"No use of memory found: the agent needs a state, but any will do: {without}; {other}."
        if self.verdict == "harmful":
            return f"No use of memory found: the agent is better without it: {without}; {other}."
        if self.verdict == "misleading":
            return f"No use of memory found: {without}; but what it remembers does steer it: {other}."
        worth = (
            ""
            if self.cost(self.random).low > 0
            else f"; it is not clearly better than random ({_number(self.random.mean())})"
        )
        return f"No use of memory found: {without}; {other}{worth}."

    def _alike(self) -> str:
        cost = self.cost(self.alike)
        return (
            f"with that of the episode most alike at present it reaches {_number(float(self.alike.mean()))} "
            f"(difference {_signed(-cost.mean)}, 95% interval {_signed(-cost.high)} to {_signed(-cost.low)})"
        )

    def _reach(self) -> str:
        """The clause about the longest time between two clearings that still costs something; "" for one step."""
        longest = max(k for k in self.cleared if self.cost(self.cleared[k]).low > 0)
        if longest == 1:
            return ""
        cost = self.cost(self.cleared[longest])
        return f"clearing it every {longest} steps still costs {_number(cost.mean)}; "

    def _lag(self) -> str:
        """The clause about how far back the present value reaches; "" where it does not reach back."""
        means = [i.mean for i in self.influence_by_lag]
        lag = max((k for k, v in enumerate(means) if v >= FAINT), default=0)
        if lag == 0:
            return ""
        steps = "1 step" if lag == 1 else f"{lag} steps"
        return f"; what it saw {steps} ago moves Q {100 * means[lag]:.0f}% as much as what it sees now"

    def to_dict(self) -> dict[str, Any]:
        """The contents of memory.json: plain values."""

        def setting(every: int, scores: np.ndarray) -> dict[str, Any]:
            cost = self.cost(scores).to_dict()
            return {"every": every, **self._score(scores), "cost": cost}

        by_lag = self.influence_by_lag
        return {
            "sentence": self.sentence,
            "verdict": self.verdict,
            "env": self.env,
            "env_steps": self.env_steps,
            "members": self.members,
            "episodes": self.intact.shape[1],
            "seed": self.seed,
            "interval": "95%, Student's t over " + ("members" if len(self.members) > 1 else "episodes"),
            "score": self.score_name,
            "intact": self._score(self.intact),
            "random": self._score(self.random),
            "cleared": [setting(k, v) for k, v in self.cleared.items()],
            "swapped": [setting(k, v) for k, v in self.swapped.items()],
            "alike": [setting(1, self.alike)],
            "influence": {
                "windows": [int((~np.isnan(self.influence[0, :, k])).sum()) for k in range(len(by_lag))],
                **{name: [i.to_dict()[name] for i in by_lag] for name in ("mean", "low", "high")},
            },
        }

    def _score(self, scores: np.ndarray) -> dict[str, Any]:
        return {**self.over_members(scores).to_dict(), "per_member": scores.mean(axis=1).tolist()}


def probe(
    agent: Agent,
    episodes: int = 128,
    seed: int | None = None,
    member: int | None = None,
    say: Callable[[str], None] = lambda text: None,
) -> MemoryProbe:
    """Measure whether an agent uses its memory.

    Args:
        agent: a trained agent, such as ``Agent.load("runs/...")``.
        episodes: N, the number of episodes per member, at least 2. Every measurement plays the same ones.
        seed: the seed of the episodes; None takes the run's.
        member: the member to measure; None measures all of them.
        say: receives a line on each measurement as it begins.

    Returns:
        What was measured.

    Raises:
        ValueError: ``episodes`` is below 2, or ``member`` is not the number of a member.
    """
    if episodes < 2:
        raise ValueError(f"episodes is {episodes}; expected at least 2, to have an interval")
    config = agent.config
    seed = config.seed if seed is None else seed
    network, params = agent.network, agent.params if member is None else agent.member(member)
    limits: dict[str, Any] = {"max_steps": config.eval_max_steps, "stream": "test"}

    def disturbed(how: str, every: int) -> np.ndarray:
        say(f"state {how}, every {every} steps")
        actor = DisturbedActor(network, params, episodes, how=how, every=every, memory=config.memory, seed=seed)
        return evaluate_actor(actor, agent.worlds, seed, **limits).score

    say("undisturbed")
    actor = GreedyActor(network, params, episodes, memory=config.memory)
    intact = evaluate_actor(actor, agent.worlds, seed, **limits)
    intervals = [1]
    while 2 * intervals[-1] < intact.lengths.max():
        intervals.append(2 * intervals[-1])
    cleared = {k: disturbed("cleared", k) for k in intervals}
    swapped = {k: disturbed("swapped", k) for k in intervals}
    policy = yardsticks()["random"] if config.is_town else random_actor
    return MemoryProbe(
        env=config.env,
        env_steps=agent.env_steps,
        members=list(range(actor.members)) if member is None else [member],
        remembers=config.memory,
        score_name=intact.score_name,
        seed=seed,
        intact=intact.score,
        random=evaluate_policy(policy, agent.worlds, episodes, seed, **limits).score,
        cleared=cleared,
        swapped=swapped,
        alike=disturbed("alike", 1),
        influence=_influence_in_play(agent, params, intact.lengths, seed, limits),
    )


def _influence_in_play(
    agent: Agent, params: Params, lengths: np.ndarray, seed: int, limits: dict[str, Any]
) -> np.ndarray:
    """The influence ``[P, W, K+1]`` in one window of each episode, which ends at a random step of the episode."""
    lengths = lengths[:, :WINDOWS]
    lag = int(min(LAGS, lengths.max() - 1))
    ends = (np.random.default_rng(seed).random(lengths.shape[1]) * lengths).astype(np.int64)  # all members alike
    recorder = _WindowRecorder(agent.network, params, ends, lag + 1, memory=agent.config.memory)
    evaluate_actor(recorder, agent.worlds, seed, **limits)
    r, device = recorder, recorder.device
    window = (t.to(device) for t in (r.obs, r.h0, r.c0, r.reset, r.legal))
    out = influence(agent.network, params, *window).double().cpu().numpy()
    out[np.arange(lag + 1) > ends[..., None]] = np.nan
    # A lag that fewer than two windows of a member reach is left out: it would have no interval.
    reached = (~np.isnan(out)).sum(axis=1).min(axis=0) >= 2
    return out[:, :, : max(1, int(reached.sum()))]


def _number(value: float) -> str:
    value += 0.0  # turns -0.0 into 0.0
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}"


def _signed(value: float) -> str:
    text = _number(value)
    return text if text.startswith("-") else f"+{text}"
