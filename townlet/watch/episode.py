"""One episode to look at: the world and what goes on inside the agent, in a terminal or as an animated GIF."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

import numpy as np

from ..envs.adapter import VectorAdapter
from ..envs.town.env import TownVectorEnv
from ..evaluation.agent import Agent
from ..evaluation.play import GreedyActor
from ..evaluation.thoughts import SeenMap, Thinker, Thought, labels
from ..learning.assembly import open_worlds
from . import panel

_CLEAR = "\x1b[H\x1b[2J"
KEYS = "space: pause and go on   n: one step   q: quit"


@dataclass(frozen=True)
class Moment:
    """The world as the agent finds it, and what the agent thinks.

    Attributes:
        frame: what the world renders: a text, a picture (uint8 ``[height, width, 3]``), or None.
        thought: what goes on inside the agent; None when the episode is over.
        seen: what the agent has seen of the Town's map; None in other worlds.
        names: the names of the actions, as they are shown.
        steps: the steps taken so far.
        score: the undiscounted sum of the rewards so far.
    """

    frame: Any
    thought: Thought | None
    seen: SeenMap | None
    names: list[str]
    steps: int
    score: float


def in_terminal(agent: Agent, stream: TextIO, *, fps: float, **options: Any) -> tuple[int, float]:
    """Print the frames of an episode. A world that does not render as text shows its numbers.

    Args:
        agent: the agent that plays.
        stream: where to print. A terminal is cleared before each frame; anything else gets one frame after another.
        fps: frames per second in a terminal.
        **options: further arguments of `episode`.

    Returns:
        The number of steps, and the return.
    """
    live, steps, score = stream.isatty(), 0, 0.0
    with _keyboard(live) as keys:
        for moment in episode(agent, "ansi", **options):
            steps, score = moment.steps, moment.score
            parts = [] if moment.frame is None else [str(moment.frame)]
            if moment.thought is not None:
                parts.append(panel.text(moment.thought, moment.names, moment.seen))
            frame = "\n".join(parts)
            if not live:
                stream.write(f"--- step {steps}, return {score:.4g}\n{frame}\n")
                continue
            stream.write(f"{_CLEAR}step {steps}, return {score:.4g}   {KEYS if keys else ''}\n{frame}\n")
            stream.flush()
            if keys is None:
                time.sleep(1.0 / fps)
            elif not keys.wait(1.0 / fps):
                break
    return steps, score


def to_gif(agent: Agent, path: Path, *, fps: float, **options: Any) -> tuple[int, float]:
    """Write an episode as an animated GIF.

    Args:
        agent: the agent that plays.
        path: the file to write.
        fps: pictures per second.
        **options: further arguments of `episode`.

    Returns:
        The number of steps, and the return.
    """
    from PIL import Image

    images: list[Any] = []
    steps, score, last = 0, 0.0, None
    for moment in episode(agent, "rgb_array", **options):
        steps, score = moment.steps, moment.score
        last = moment.thought or last  # the panel keeps the last thought when the episode is over
        assert last is not None
        images.append(Image.fromarray(_beside(moment, last)).quantize(96))
    temporary = path.with_name(f".{path.name}.tmp")
    # GIF counts in hundredths of a second, and 2 is the shortest time that viewers keep to.
    timing = {"duration": max(20, round(1000 / fps)), "loop": 0}
    try:
        images[0].save(temporary, format="GIF", save_all=True, append_images=images[1:], **timing)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    return steps, score


def _beside(moment: Moment, thought: Thought) -> np.ndarray:
    """The frame with the panel to its right: uint8 ``[height, width, 3]``."""
    from PIL import Image

    needed = panel.panel_height(thought, moment.names, moment.seen)
    if moment.frame is None:
        return panel.picture(thought, moment.names, moment.seen, needed)
    frame = np.asarray(moment.frame, dtype=np.uint8)
    if frame.ndim != 3:
        frame = np.repeat(frame[..., None], 3, axis=-1)
    if moment.seen is None:  # pictures of other worlds come in all sizes
        height = max(needed, min(frame.shape[0], 560))
        scale = height / frame.shape[0]
        size = (max(1, round(frame.shape[1] * scale)), height)
        frame = np.asarray(Image.fromarray(frame[..., :3]).resize(size, Image.Resampling.LANCZOS))
    beside = panel.picture(thought, moment.names, moment.seen, frame.shape[0])
    below = beside.shape[0] - frame.shape[0]
    frame = np.pad(frame, ((0, below), (0, 0), (0, 0)), mode="edge")
    return np.concatenate([frame, beside], axis=1)


def episode(
    agent: Agent, render_mode: str, *, seed: int, member: int = 0, memory: bool = True, max_steps: int = 500
) -> Iterator[Moment]:
    """Play one greedy episode. In a world of several agents the moments are those of the first.

    Args:
        agent: the agent that plays.
        render_mode: "ansi" or "rgb_array"; a world without that mode gives no frames.
        seed: the seed of the episode.
        member: the member that plays.
        memory: False zeroes the recurrent state before every step.
        max_steps: the episode is cut after so many steps.

    Yields:
        The moment before each step, and the one after the last.
    """
    config, params = agent.config, agent.member(member)
    modes = _render_modes(agent)
    options = {"render_mode": render_mode} if render_mode in modes else {}
    worlds = open_worlds(config, 1, {**config.evaluation_args, **options})
    n, memory = worlds.num_envs, memory and config.memory
    thinker = Thinker(agent.network, params, memory=memory)
    others = GreedyActor(agent.network, params, n - 1, memory=memory)
    town = worlds.env
    seen = SeenMap(town.args) if config.is_town and isinstance(town, TownVectorEnv) else None
    names = labels(worlds.action_names)
    try:
        obs, legal = worlds.reset([seed] * n)
        reset, score, over = np.ones(n, dtype=bool), 0.0, False
        for t in range(max_steps + 1):
            if seen is not None:
                seen.add(obs[0])
            thought = None if over else thinker.step(obs[:1], None if legal is None else legal[:1], reset[:1])
            yield Moment(_frame(worlds) if options else None, thought, seen, names, t, score)
            if thought is None or t == max_steps:
                return
            beside: Any = others(obs[1:], None if legal is None else legal[1:], reset[1:]) if n > 1 else []
            step = worlds.step(np.array([thought.action, *beside]))
            obs, legal, reset = step.obs, step.legal, step.first
            score += float(step.reward[0])
            over = bool(step.terminated[0] or step.truncated[0])
    finally:
        worlds.close()


def _render_modes(agent: Agent) -> list[str]:
    worlds = agent.worlds(1)
    worlds.close()
    return list(worlds.env.metadata.get("render_modes") or [])


def _frame(worlds: VectorAdapter) -> Any:
    frames = worlds.render()
    return frames[0] if isinstance(frames, (tuple, list)) else frames


class _Keys:
    """Reads single keys from a terminal: pause, one step, quit."""

    def __init__(self) -> None:
        self.paused = False

    def wait(self, seconds: float) -> bool:
        """Wait until the next frame is due; returns False for the key that quits."""
        import select

        until = time.monotonic() + seconds
        while True:
            left = None if self.paused else max(0.0, until - time.monotonic())
            if not select.select([sys.stdin], [], [], left)[0]:
                return True
            key = os.read(sys.stdin.fileno(), 1)  # read past Python's buffer, which select does not see
            if key in (b"q", b""):
                return False
            if key == b" ":
                self.paused = not self.paused
            if key == b"n":
                self.paused = True
                return True


@contextmanager
def _keyboard(live: bool) -> Iterator[_Keys | None]:
    """Inside, keys can be read without Enter. None where there is no terminal to read from."""
    try:
        import termios
        import tty
    except ImportError:  # not Unix
        live = False
    if not live or not sys.stdin.isatty():
        yield None
        return
    before = termios.tcgetattr(sys.stdin)
    tty.setcbreak(sys.stdin, termios.TCSANOW)  # TCSANOW: keeps what was typed already
    try:
        yield _Keys()
    finally:
        termios.tcsetattr(sys.stdin, termios.TCSADRAIN, before)
