"""An agent's thoughts to look at: as lines below a frame in the terminal, or as a picture beside a frame."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ..envs.town import render
from ..evaluation.thoughts import EMPTY, OFF_GRID, SOMETHING, UNSEEN, SeenMap, Thought

_BLOCKS = "▁▂▃▄▅▆▇█"

# ---- as text --------------------------------------------------------------------------------------------------------


def text(thought: Thought, names: Sequence[str], seen: SeenMap | None) -> str:
    """The lines below a frame in the terminal.

    Args:
        thought: what goes on inside the agent.
        names: the names of the actions.
        seen: what the agent has seen of the Town's map; None in other worlds, which show their numbers.
    """
    t = thought
    shown = [a for a in range(len(t.q)) if t.allowed(a)]
    low, high = min(t.q[shown]), max(t.q[shown])
    lines = ["Q-values, and what they were with the state cleared now"]
    for a, name in enumerate(names):
        bar = round(20 * float((t.q[a] - low) / (high - low))) if high > low and t.allowed(a) else 0
        mark = "▶" if a == t.action else " "
        values = f"{t.q[a]:8.3f} {t.q_cleared[a]:8.3f}" if t.allowed(a) else "       not legal"
        lines.append(f" {mark} {name:<11} {'█' * bar + '░' * (20 - bar)} {values}")
    if seen is None:
        lines += _numbers(t.obs)
    else:
        lines += _side_by_side(seen)
    lines.append(f"state, {len(t.state)} units from -1 to 1, its norm {t.norms[-1]:.2f}  {_spark(t.norms[-40:])}")
    strip = _spark(t.state, -1.0, 1.0)
    lines += [f"  {strip[i : i + 64]}" for i in range(0, len(strip), 64)]
    changed = ", ".join(f"{u} ({t.change[u]:+.2f})" for u in t.most_changed)
    lines.append(f"  changed most: {changed or 'nothing'}")
    other = names[t.cleared_action]
    would = "choose the same" if t.cleared_action == t.action else f"choose {other}"
    lines.append(
        f"memory moves Q by up to {t.effects[-1]:.3f}  {_spark(t.effects[-40:])}  without it, it would {would}"
    )
    return "\n".join(lines)


def _numbers(obs: np.ndarray) -> list[str]:
    if len(obs) <= 16:
        return ["sees " + " ".join(f"{v:.3g}" for v in obs)]
    strip = _spark(obs)
    return [f"sees {len(obs)} numbers, {obs.min():.3g} to {obs.max():.3g}"] + [
        f"  {strip[i : i + 64]}" for i in range(0, min(len(strip), 256), 64)
    ]


def _spark(values: Any, low: float | None = None, high: float | None = None) -> str:
    """One character for each number, as high as the number lies between low and high."""
    values = np.asarray(values, dtype=np.float64)
    low = float(values.min()) if low is None else low
    high = float(values.max()) if high is None else high
    scaled = (values - low) / (high - low) if high > low else np.zeros_like(values)
    return "".join(_BLOCKS[int(i)] for i in np.clip(np.floor(8 * scaled), 0, 7))


def _cell(what: int) -> str:
    if what >= 0:
        return render.CODES[what]
    return {UNSEEN: "░░", EMPTY: " ·", SOMETHING: "??", OFF_GRID: "##"}[what]


def _side_by_side(seen: SeenMap) -> list[str]:
    window = [" ".join(_cell(int(c)) for c in row) for row in seen.window]
    cells = [[_cell(int(c)) for c in row] for row in seen.cells]
    x, y = seen.position
    if seen.cells[y, x] < 0:
        cells[y][x] = " @"
    known = [" ".join(row) for row in cells]
    width = max(len(window[0]), len("in sight")) + 4
    rows = max(len(window), len(known))
    left = [*window, *[""] * (rows - len(window))]
    right = [*known, *[""] * (rows - len(known))]
    title = f"  {'in sight':<{width}}seen so far ({100 * seen.share:.0f}% of the map)"
    return [title, *(f"  {a:<{width}}{b}" for a, b in zip(left, right, strict=True))]


# ---- as a picture ---------------------------------------------------------------------------------------------------

WIDTH = 340
_BLUE, _RED, _BLANK = (44, 110, 180), (206, 80, 60), (240, 237, 229)


def picture(thought: Thought, names: Sequence[str], seen: SeenMap | None, height: int) -> np.ndarray:
    """The panel beside a frame: uint8 ``[height, WIDTH, 3]``.

    Args:
        thought: what goes on inside the agent.
        names: the names of the actions.
        seen: what the agent has seen of the Town's map; None in other worlds, which show their numbers.
        height: the height in pixels; a panel with more content is higher.
    """
    from PIL import Image, ImageDraw

    height = max(height, panel_height(thought, names, seen))
    scale = render.SCALE
    image = Image.new("RGB", (WIDTH * scale, height * scale), render.PAPER)
    pen = render.Pen(ImageDraw.Draw(image))
    y = _draw_q(pen, thought, names, 20.0)
    y = _draw_obs(pen, thought.obs, y) if seen is None else _draw_maps(pen, seen, y)
    y = _draw_state(pen, thought, y)
    _draw_effect(pen, thought, names, y)
    return np.asarray(image.resize((WIDTH, height), Image.Resampling.LANCZOS), np.uint8).copy()


def panel_height(thought: Thought, names: Sequence[str], seen: SeenMap | None) -> int:
    """The height of the panel's content in pixels."""
    rows = -(-len(thought.state) // _PER_ROW)
    view = _MAP + 34 if seen is not None else 44
    return round(20 + 26 + 20 * len(names) + 10 + view + 34 + rows * _UNIT + 10 + 104)


_LEFT, _RIGHT = 8, WIDTH - 20
_PER_ROW, _UNIT = 32, 9.75  # how many units of the state are in a row, and the pixels of each
_MAP = 140


def _heading(pen: render.Pen, words: str, y: float) -> float:
    pen.text(_LEFT, y + 6, words, 13, render.INK, bold=True)
    return y + 20


def _draw_q(pen: render.Pen, t: Thought, names: Sequence[str], y: float) -> float:
    y = _heading(pen, "Q-values (line: state cleared, same mean)", y) + 6
    shown = [a for a in range(len(t.q)) if t.allowed(a)]
    cleared = t.q_cleared - t.q_cleared[shown].mean() + t.q[shown].mean()  # only differences decide
    values = np.concatenate([t.q[shown], cleared[shown]])
    low, high = float(values.min()), float(values.max())
    room, left = 150.0, _LEFT + 100.0

    def place(value: float) -> float:
        return 6 + (room - 6) * (value - low) / (high - low) if high > low else room / 2

    for a, name in enumerate(names):
        chosen, allowed = a == t.action, t.allowed(a)
        ink = render.INK if allowed else render.FAINT
        pen.text(_LEFT + 12, y + 7, name, 12, ink, bold=chosen)
        if chosen:
            pen.text(_LEFT, y + 7, "▶", 10, _RED)
        pen.box(left, y, room, 14, _BLANK, radius=3)
        if allowed:
            pen.box(left, y, place(float(t.q[a])), 14, _RED if chosen else (150, 170, 196), radius=3)
            pen.box(left + place(float(cleared[a])) - 1, y - 2, 2, 18, render.INK)
        pen.text(_RIGHT, y + 7, f"{t.q[a]:.2f}" if allowed else "not legal", 12, ink, "rm", bold=chosen)
        y += 20
    return y + 10


def _draw_maps(pen: render.Pen, seen: SeenMap, y: float) -> float:
    _heading(pen, "In sight", y)
    right = _RIGHT - _MAP
    pen.text(right, y + 6, f"Seen so far ({100 * seen.share:.0f}%)", 13, render.INK, bold=True)
    y += 22
    _draw_cells(pen, seen.window, _LEFT, y, None)
    _draw_cells(pen, seen.cells, right, y, seen.position)
    return y + _MAP + 12


def _draw_cells(pen: render.Pen, cells: np.ndarray, left: float, top: float, at: tuple[int, int] | None) -> None:
    side = _MAP / len(cells)
    at = (len(cells) // 2, len(cells) // 2) if at is None else at
    pen.box(left, top, _MAP, _MAP, (70, 72, 80))
    for (row, column), what in np.ndenumerate(cells):
        x, y = left + column * side, top + row * side
        ground = {UNSEEN: (70, 72, 80), OFF_GRID: (30, 32, 40)}.get(int(what), (214, 226, 196))
        pen.box(x + 0.5, y + 0.5, side - 1, side - 1, ground)
        if what >= 0 or what == SOMETHING:
            colour = render.COLOURS[what] if what >= 0 else (120, 122, 128)
            pen.box(x + 1, y + 1, side - 2, side - 2, colour, radius=side * 0.12)
            if side >= 11:
                mark = render.CODES[what] if what >= 0 else "?"
                pen.text(x + side / 2, y + side / 2, mark, round(side * 0.45), (255, 255, 255), "mm", bold=True)
    x, y = left + (at[0] + 0.5) * side, top + (at[1] + 0.5) * side
    pen.ring(x, y, side * 0.4, 1.0, (40, 36, 30), max(1.5, side * 0.08))


def _heat(value: float, largest: float) -> render.Colour:
    """The colour of a value: white at 0, blue below and red above."""
    share = min(1.0, abs(value) / largest) if largest > 0 else 0.0
    return render.mix(_BLANK, _BLUE if value < 0 else _RED, share)


def _draw_obs(pen: render.Pen, obs: np.ndarray, y: float) -> float:
    if len(obs) <= 4:
        y = _heading(pen, "In sight: " + "  ".join(f"{v:.3g}" for v in obs), y)
    else:
        y = _heading(pen, f"In sight: {len(obs)} numbers, {obs.min():.3g} to {obs.max():.3g}", y)
    width, largest = (_RIGHT - _LEFT) / len(obs), float(np.abs(obs).max())
    pen.box(_LEFT, y, _RIGHT - _LEFT, 12, _BLANK)
    for i, v in enumerate(obs):
        pen.box(_LEFT + i * width, y, max(width - (0.5 if width > 3 else 0), 0.5), 12, _heat(float(v), largest))
    return y + 24


def _draw_state(pen: render.Pen, t: Thought, y: float) -> float:
    y = _heading(pen, f"State: {len(t.state)} units (framed: changed most)", y)
    for u, value in enumerate(t.state):
        row, column = divmod(u, _PER_ROW)
        pen.box(_LEFT + column * _UNIT, y + row * _UNIT, _UNIT - 0.75, _UNIT - 0.75, _heat(float(value), 1.0))
    for u in t.most_changed:
        row, column = divmod(u, _PER_ROW)
        pen.frame(_LEFT + column * _UNIT - 1, y + row * _UNIT - 1, _UNIT + 1, _UNIT + 1, render.INK, 1.5, 1)
    return y + -(-len(t.state) // _PER_ROW) * _UNIT + 10


def _draw_effect(pen: render.Pen, t: Thought, names: Sequence[str], y: float) -> None:
    half = (_RIGHT - _LEFT - 16) / 2
    for left, title, values, colour in (
        (_LEFT, f"its norm: {t.norms[-1]:.2f}", t.norms, _BLUE),
        (_LEFT + half + 16, f"its effect on Q: {t.effects[-1]:.2f}", t.effects, _RED),
    ):
        pen.text(left, y + 6, title, 12, render.INK)
        last, top = values[-60:], max(values[-60:]) or 1.0
        pen.box(left, y + 18, half, 40, _BLANK, radius=3)
        for i, v in enumerate(last):
            tall = 38 * v / top
            if tall > 0.5:  # a lower bar could not be seen
                pen.box(left + i * half / 60, y + 58 - tall, half / 60, tall, colour)
    same = t.cleared_action == t.action
    words = "without it: the same action" if same else f"without it, it would choose {names[t.cleared_action]}"
    pen.text(_LEFT, y + 74, words, 12, render.FAINT if same else _RED, bold=not same)
