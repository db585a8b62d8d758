"""One episode to look at: frame by frame in a terminal, or as an animated GIF."""

from __future__ import annotations

import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TextIO

import numpy as np

from .assembly import open_worlds
from .evaluate import GreedyActor
from .report import Agent

_CLEAR = "\x1b[H\x1b[2J"


def in_terminal(agent: Agent, stream: TextIO, *, fps: float, **options: Any) -> tuple[int, float]:
    """Print the episode's frames to ``stream``; a terminal is cleared between them and shown at ``fps``.

    Returns (steps, return). Raises ValueError when the world does not render as text.
    """
    live, frame, steps, score = stream.isatty(), "", 0, 0.0
    for frame, steps, score in episode(agent, "ansi", **options):
        if live:
            stream.write(_CLEAR + frame + "\n")
            stream.flush()
            time.sleep(1.0 / fps)
        else:
            stream.write(f"--- step {steps}, return {score:.4g}\n{frame}\n")
    return steps, score


def to_gif(agent: Agent, path: Path, *, fps: float, **options: Any) -> tuple[int, float]:
    """Write the episode as an animated GIF. Returns (steps, return). Raises ValueError for a world without pictures."""
    from PIL import Image

    frames, steps, score = [], 0, 0.0
    for frame, steps, score in episode(agent, "rgb_array", **options):  # noqa: B007
        frames.append(Image.fromarray(np.asarray(frame, dtype=np.uint8)).quantize(64))
    # GIF counts hundredths of a second
    first, rest = frames[0], frames[1:]
    first.save(path, format="GIF", save_all=True, append_images=rest, duration=max(20, round(1000 / fps)), loop=0)
    return steps, score


def episode(
    agent: Agent, render_mode: str, *, seed: int, member: int = 0, memory: bool = True, max_steps: int = 500
) -> Iterator[tuple[Any, int, float]]:
    """Frames of one greedy episode: (frame, steps so far, return so far), the first before any step."""
    config = agent.config
    if member >= config.members:
        raise ValueError(f"--member {member}: expected 0 to {config.members - 1}")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Gymnasium warns of a mode the world lacks; the error below says so
        worlds = open_worlds(config, 1, {**config.evaluation_args, "render_mode": render_mode})
    modes = worlds.env.metadata.get("render_modes", [])
    if render_mode not in modes:
        raise ValueError(f"{config.env}: offers pictures {modes}, expected {render_mode!r} among them")
    params = {k: v[member : member + 1] for k, v in agent.params.items()}
    actor = GreedyActor(agent.network, params, 1, memory=memory and config.memory)
    try:
        obs, legal = worlds.reset([seed])
        reset, score = np.ones(1, dtype=bool), 0.0
        yield _frame(worlds), 0, score
        for t in range(1, max_steps + 1):
            step = worlds.step(actor(obs, legal, reset))
            obs, legal, reset = step.obs, step.legal, np.zeros(1, dtype=bool)
            score += float(step.reward[0])
            yield _frame(worlds), t, score
            if step.terminated[0] or step.truncated[0]:
                return
    finally:
        worlds.close()


def _frame(worlds: Any) -> Any:
    frames = worlds.render()
    return frames[0] if isinstance(frames, (tuple, list)) else frames
