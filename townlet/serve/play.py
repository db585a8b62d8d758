"""One episode of a run's agent, played step by step as a viewer asks for it.

Nothing runs on its own: a step is taken when a page asks for the next frame, and no faster than ``FASTEST``. So an
episode that nobody looks at costs nothing. There is one episode at a time; starting another ends it.
"""

from __future__ import annotations

import base64
import io
import secrets
import threading
import time
import warnings
from typing import Any

import numpy as np

from ..envs.adapter import VectorAdapter
from ..envs.town import render
from ..envs.town.args import TownArgs
from ..envs.town.env import TownVectorEnv
from ..envs.town.rules import BUILDINGS, METERS
from ..evaluation.agent import Agent
from ..evaluation.thoughts import SeenMap, Thinker, labels
from ..learning.assembly import open_worlds
from ..runs.checkpoint import CheckpointError
from .runs import Run

FASTEST = 120.0  # steps per second, whatever speed a page asks for
_MOST_STEPS = 32  # steps in one request
_SHOWN_UNITS, _SHOWN_NUMBERS = 256, 64  # at most so many units of the state and numbers of an observation


class Gone(ValueError):
    """The page asks for an episode that is no longer played, because another was started."""


class Player:
    """Plays the episode that was started last. It is safe to call from several threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._agents: dict[str, tuple[str, Agent]] = {}  # the run played last -> (version of its weights, agent)
        self._episode: _Episode | None = None

    def start(self, run: Run, *, member: int, memory: bool, seed: int) -> dict[str, Any]:
        """Start a new episode with the run's newest weights, and end the present one.

        Args:
            run: the run whose agent plays.
            member: the member that plays.
            memory: False zeroes the recurrent state before every step.
            seed: the seed of the episode.

        Returns:
            What does not change during the episode, and its first frame.

        Raises:
            ValueError: the run has no agent yet, ``member`` is not the number of a member, or the world cannot be
                opened.
        """
        with self._lock:
            agent = self._agent(run)
            if not 0 <= member < agent.config.members:
                raise ValueError(f"member is {member}; expected 0 to {agent.config.members - 1}")
            if self._episode is not None:
                self._episode.close()
                self._episode = None
            self._episode = _Episode(agent, member, memory, seed)
            about = {"id": self._episode.id, "run": run.name, "agent": self._agents[run.name][0]}
            return about | self._episode.about() | {"frames": [self._episode.frame()]}

    def next(self, episode: str, steps: int) -> list[dict[str, Any]]:
        """Take the next steps of the episode.

        Args:
            episode: the id of the episode, as `start` returned it.
            steps: how many steps to take.

        Returns:
            A frame for each step taken: fewer than ``steps`` where the episode ends, or where a request asks for more
            than it may.

        Raises:
            Gone: another episode is played now.
        """
        with self._lock:
            if self._episode is None or self._episode.id != episode:
                raise Gone("another page has started an episode; one is played at a time")
            frames = []
            for _ in range(min(max(steps, 1), _MOST_STEPS)):
                if self._episode.over:
                    break
                frames.append(self._episode.step())
            return frames

    def close(self) -> None:
        """End the episode, if there is one."""
        with self._lock:
            if self._episode is not None:
                self._episode.close()
                self._episode = None

    def _agent(self, run: Run) -> Agent:
        path, version = run.agent_file(), run.agent_version()
        if path is None or version is None:
            raise ValueError("this run has no agent yet: it is written at the first evaluation or checkpoint")
        known = self._agents.get(run.name)
        if known is not None and known[0] == version:
            return known[1]
        try:
            agent = Agent.load(path)
        except CheckpointError:
            newer = run.agent_file()  # an older checkpoint is deleted when a newer one is complete
            if newer is None or newer == path:
                raise
            agent = Agent.load(newer)
        self._agents = {run.name: (version, agent)}
        return agent


class _Episode:
    """One greedy episode of one member."""

    def __init__(self, agent: Agent, member: int, memory: bool, seed: int) -> None:
        self.id = secrets.token_urlsafe(12)
        self.agent, self.member, self.seed = agent, member, seed
        self.memory = memory and agent.config.memory
        self.worlds, self.pictures = _open(agent)
        world = self.worlds.env
        self.town = world if agent.config.is_town and isinstance(world, TownVectorEnv) else None
        self.seen = None if self.town is None else SeenMap(self.town.args)
        self.thinker = Thinker(agent.network, agent.member(member), memory=self.memory)
        obs, legal = self.worlds.reset([seed])
        self.t, self.score, self.over, self.cut = 0, 0.0, False, False
        self.action = -1
        self.picture = _png(self.worlds) if self.pictures else None
        self.earliest = time.monotonic()
        self._think(obs, legal, first=True)

    def _think(self, obs: np.ndarray, legal: np.ndarray | None, *, first: bool = False) -> None:
        self.thought = self.thinker.step(obs, legal, np.array([first]))
        if self.seen is not None:
            self.seen.add(obs[0])

    def step(self) -> dict[str, Any]:
        """Take one step; returns the frame it leads to."""
        now = time.monotonic()
        if now < self.earliest:
            time.sleep(self.earliest - now)
        self.earliest = max(now, self.earliest) + 1.0 / FASTEST
        self.action = self.thought.action
        step = self.worlds.step(np.array([self.action]))
        self.t += 1
        self.score += float(step.reward[0])
        self.cut = bool(step.truncated[0]) or self.t >= self.agent.config.eval_max_steps
        self.over = self.cut or bool(step.over[0])
        if step.final_obs is not None and bool(step.over[0]):
            # step.obs belongs to the next episode, and so does the picture
            self._think(step.final_obs, step.final_legal)
            return self.frame()
        self._think(step.obs, step.legal)
        if self.pictures:
            self.picture = _png(self.worlds)
        return self.frame()

    def about(self) -> dict[str, Any]:
        """What does not change during the episode."""
        config = self.agent.config
        out: dict[str, Any] = {
            "env": config.env,
            "member": self.member,
            "members": config.members,
            "memory": self.memory,
            "has_memory": config.memory,
            "seed": self.seed,
            "env_steps": self.agent.env_steps,
            "actions": labels(self.worlds.action_names),
            "pictures": self.pictures,
        }
        if self.town is None:
            return out
        scene, args = self._scene(self.town), self.town.args
        town = {
            "title": scene.title,
            "size": scene.size,
            "sight": scene.sight,
            "temporal": scene.temporal,
            "max_steps": scene.max_steps,
            "meters": list(METERS),
            "still": list(render.still_meters(scene)),
            "buildings": [self._building(args, kind, *cell) for kind, cell in scene.cells.items()],
        }
        return out | {"town": town}

    @staticmethod
    def _building(args: TownArgs, kind: int, x: int, y: int) -> dict[str, Any]:
        building = BUILDINGS[kind]
        opens, closes = building["hours"]
        return {
            "kind": kind,
            "name": building["name"],
            "x": x,
            "y": y,
            "ticks": building["ticks"] if args.temporal else 1,
            "opens": opens,
            "closes": closes,
            "offer": render.offer(kind, args.temporal),
        }

    def frame(self) -> dict[str, Any]:
        """The episode as it stands: what the agent feels, thinks and is about to do."""
        thought = self.thought
        out: dict[str, Any] = {
            "t": self.t,
            "action": self.action,  # the one that led here
            "next": None if self.over else thought.action,
            "q": _short(thought.q),
            "q_cleared": _short(thought.q_cleared),
            "cleared": thought.cleared_action,
            "legal": None if thought.legal is None else thought.legal.tolist(),
            "state": _short(thought.state[:_SHOWN_UNITS]),
            "effect": float(f"{thought.effects[-1]:.5g}"),
            "return": float(f"{self.score:.7g}"),
            "over": self.over,
            "cut": self.cut,
        }
        if self.town is not None and self.seen is not None:
            return out | self._of_town(self.town, self.seen)
        return out | {"picture": self.picture, "obs": _short(thought.obs[:_SHOWN_NUMBERS])}

    def _scene(self, town: TownVectorEnv) -> render.Scene:
        return render.scene(town.args, town.get_state(), 0, self.action)

    def _of_town(self, town: TownVectorEnv, seen: SeenMap) -> dict[str, Any]:
        scene = self._scene(town)
        x, y = scene.agent
        return {
            "x": x,
            "y": y,
            "hour": scene.hour,
            "survival": scene.tick,
            "meters": [round(v, 4) for v in scene.meters.values()],
            "cents": scene.cents,
            "progress": scene.progress,
            "here": render.here(scene),
            "ending": scene.ending,
            "seen": seen.cells.ravel().tolist(),
        }

    def close(self) -> None:
        self.worlds.close()


def _open(agent: Agent) -> tuple[VectorAdapter, bool]:
    """The world to play in, and whether it draws pictures of itself (the page draws the Town)."""
    config = agent.config
    if not config.is_town:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # Gymnasium warns of a mode that the world lacks
                worlds = open_worlds(config, 1, {**config.evaluation_args, "render_mode": "rgb_array"})
            if "rgb_array" in worlds.env.metadata.get("render_modes", []):
                worlds.reset([0])
                _png(worlds)
                return worlds, True
            worlds.close()
        except Exception:  # drawing may need anything that is missing here; the world then plays without pictures
            pass
    return agent.worlds(1), False


def _short(values: np.ndarray) -> list[float]:
    return [float(f"{v:.5g}") for v in values.tolist()]


def _png(worlds: VectorAdapter) -> str:
    """The world's own picture as a data URL, at most 480 pixels wide and high."""
    from PIL import Image

    drawn = worlds.render()
    image = Image.fromarray(np.asarray(drawn[0] if isinstance(drawn, (tuple, list)) else drawn, dtype=np.uint8))
    image.thumbnail((480, 480))
    file = io.BytesIO()
    image.save(file, format="PNG")
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode("ascii")
