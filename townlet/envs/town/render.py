"""Pictures of the Town: `ansi` (text for a terminal) and `rgb_array` (an image), both drawn from a `Scene`."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np

from .rules import ACTIONS, BUILDINGS, FULL_MONEY, METERS, is_open

if TYPE_CHECKING:
    from PIL.ImageDraw import ImageDraw
    from PIL.ImageFont import FreeTypeFont, ImageFont

    from .args import TownArgs

ARROWS = ("↑", "↓", "←", "→", "●", "○")
CODES = ("Be", "Lx", "Sh", "Me", "FF", "Jo", "La", "Gy", "Ba", "Pk", "Re", "Th", "Dr", "Ho")


@dataclass(frozen=True)
class Scene:
    """What a picture shows of one environment."""

    title: str  # the level's name
    size: int  # cells along an edge of the grid
    cells: dict[int, tuple[int, int]]  # index of a building -> x, y
    agent: tuple[int, int]  # x, y
    sight: int | None  # radius of the agent's window; None where it sees the whole map
    temporal: bool  # whether interactions take time and buildings have hours
    meters: dict[str, float]  # name -> level in 0..1
    cents: int  # the agent's money
    hour: int  # of the day, 0..23
    tick: int  # ticks survived
    max_steps: int  # ticks after which the episode is cut
    progress: int  # ticks of the present interaction that are done
    last_action: int  # index into `ACTIONS`; -1 for none yet
    over: bool  # whether the episode has ended

    @property
    def underfoot(self) -> int | None:
        """The index of the building that the agent stands on; None on open ground."""
        return next((kind for kind, cell in self.cells.items() if cell == self.agent), None)

    def is_open(self, kind: int) -> bool:
        """Whether building `kind` can be used at this hour."""
        return is_open(kind, self.hour, self.temporal)

    def sees(self, x: int, y: int) -> bool:
        """Whether the agent's window holds the cell."""
        return self.sight is None or max(abs(x - self.agent[0]), abs(y - self.agent[1])) <= self.sight

    @property
    def ending(self) -> str | None:
        """How the episode ended, in words; None while it runs."""
        if not self.over:
            return None
        if self.meters["energy"] > 0.0 and self.meters["health"] > 0.0:
            return "reached the cap"
        return "died of exhaustion" if self.meters["energy"] <= 0.0 else "died of ill health"


def scene(args: TownArgs, state: Mapping[str, np.ndarray], env: int, last_action: int) -> Scene:
    """The content of a picture.

    Args:
        args: the Town's arguments.
        state: what `TownVectorEnv.get_state` returned.
        env: the number of the environment.
        last_action: index into `ACTIONS`; -1 for none yet.
    """
    cells = {
        kind: (int(cell) % args.size, int(cell) // args.size)
        for kind, cell in zip(args.kinds, state["cells"][env], strict=True)
    }
    floats = dict(zip([m for m in METERS if m != "money"], state["meters"][:, env].tolist(), strict=True))
    floats["money"] = int(state["cents"][env]) / FULL_MONEY
    return Scene(
        title="Town" if args.level == "town" else "Hamlet",
        size=args.size,
        cells=cells,
        agent=(int(state["x"][env]), int(state["y"][env])),
        sight=args.radius_used if args.partial else None,
        temporal=args.temporal,
        meters={name: floats[name] for name in METERS},
        cents=int(state["cents"][env]),
        hour=int(state["hour"][env]),
        tick=int(state["survival"][env]),
        max_steps=args.max_steps,
        progress=int(state["progress"][env]),
        last_action=last_action,
        over=bool(state["done"][env]),
    )


def _dollars(cents: int) -> str:
    return f"${cents / 100:.2f}"


def still_meters(s: Scene) -> tuple[str, ...]:
    """The meters that never change at the scene's level."""
    return ("hygiene", "mood", "social", "fitness") if s.title == "Hamlet" else ()


def offer(kind: int, temporal: bool) -> str:
    """What a building asks or pays, and when it is open, in words."""
    building = BUILDINGS[kind]
    ticks = building["ticks"]
    opens, closes = building["hours"]
    wage = ticks * building["tick"]["cents"] + building["complete"]["cents"]
    price = f"pays {_dollars(wage)}" if wage else _dollars(ticks * building["price"]) if building["price"] else "free"
    if not temporal:
        return price
    hours = "always open" if (opens, closes) == (0, 24) else f"{opens:02d}-{closes:02d} h"
    return f"{price}, {ticks} tick{'s' * (ticks > 1)}, {hours}"


def here(s: Scene) -> str:
    """What the agent stands on, and how far its interaction has come, in words."""
    kind = s.underfoot
    if kind is None:
        return "open ground"
    building = BUILDINGS[kind]
    if not s.is_open(kind):
        return f"{building['name']} (closed until {building['hours'][0]:02d}:00)"
    return f"{building['name']}, tick {s.progress} of {building['ticks']}" if s.temporal else str(building["name"])


def ansi(s: Scene) -> str:
    """The scene as text: map, meters as bars, clock, progress, last action and a legend.

    A building is shown by two letters, which are small while it is closed. @ is the agent, and dots are the empty
    ground that its window shows.
    """
    last = "-" if s.last_action < 0 else f"{ARROWS[s.last_action]} {ACTIONS[s.last_action]}"
    night = "night" if s.hour < 6 or s.hour >= 20 else "day"
    lines = [
        f"{s.title}   tick {s.tick}/{s.max_steps}   {s.hour:02d}:00 ({night})   last action: {last}",
        "┌" + "─" * (4 * s.size + 1) + "┐",
    ]
    at = {cell: kind for kind, cell in s.cells.items()}
    for y in range(s.size):
        row = ""
        for x in range(s.size):
            kind = at.get((x, y))
            mark = "@" if (x, y) == s.agent else " "
            if kind is not None:
                row += mark + (CODES[kind] if s.is_open(kind) else CODES[kind].lower()) + " "
            else:
                row += mark + ("·  " if s.sees(x, y) and mark == " " else "   ")
        lines.append("│" + row + " │")
    lines.append("└" + "─" * (4 * s.size + 1) + "┘")
    lines.append(f"here: {here(s)}" + (f"   *** {s.ending} ***" if s.ending else ""))
    for name, value in s.meters.items():
        filled = round(20 * value)
        amount = _dollars(s.cents) if name == "money" else f"{value:.2f}"
        warn = "  !" if value < 0.3 and name != "money" else ""
        lines.append(f"{name:>9} {'█' * filled}{'░' * (20 - filled)} {amount:>7}{warn}")
    for kind in s.cells:
        shut = "" if s.is_open(kind) else "  (closed)"
        lines.append(f"  {CODES[kind]} {BUILDINGS[kind]['name']:<10} {offer(kind, s.temporal)}{shut}")
    return "\n".join(lines)


# --- the image -----------------------------------------------------------------------------------------------------

Colour = tuple[int, int, int]

PAPER: Colour = (250, 247, 240)
INK: Colour = (45, 48, 58)
FAINT: Colour = (138, 140, 148)
_SLEEP, _WASH, _FOOD, _WORK, _MEET, _MOVE, _CARE = (
    (92, 107, 192),
    (38, 166, 190),
    (239, 138, 60),
    (121, 98, 84),
    (202, 84, 150),
    (88, 160, 88),
    (214, 72, 72),
)
COLOURS: tuple[Colour, ...] = (
    *(_SLEEP, _SLEEP, _WASH, _FOOD, _FOOD, _WORK, _WORK),
    *(_MOVE, _MEET, _MOVE, _MEET, _CARE, _CARE, _CARE),
)
SCALE = 2  # the image is drawn at twice its size and shrunk, which makes edges smooth
_MAP, _PANEL, _MARGIN = 520, 300, 20  # pixels of the finished image


def mix(a: Colour, b: Colour, share: float) -> Colour:
    """The colour `a` with a `share` of `b` in it, from 0 to 1."""
    r, g, blue = (round(p + (q - p) * share) for p, q in zip(a, b, strict=True))
    return (r, g, blue)


def _daylight(hour: int) -> float:
    """How light it is: from 0 at midnight to 1 at noon, with long days."""
    return min(1.0, max(0.0, 0.5 + 0.9 * math.sin(2 * math.pi * (hour - 6) / 24)))


@cache
def _font(pixels: int, bold: bool = False) -> FreeTypeFont | ImageFont:
    """DejaVu Sans where matplotlib is installed, which brings it, else Pillow's own font."""
    from PIL import ImageFont

    try:
        from matplotlib import get_data_path

        name = "DejaVuSans-Bold.ttf" if bold else "DejaVuSans.ttf"
        return ImageFont.truetype(f"{get_data_path()}/fonts/ttf/{name}", pixels * SCALE)
    except (ImportError, OSError):
        return ImageFont.load_default(pixels * SCALE)


class Pen:
    """Draws shapes and text, in the finished image's pixels."""

    def __init__(self, draw: ImageDraw) -> None:
        self._draw = draw

    def box(self, x: float, y: float, w: float, h: float, fill: Colour, radius: float = 0, edge: Any = None) -> None:
        corners = [x * SCALE, y * SCALE, (x + w) * SCALE - 1, (y + h) * SCALE - 1]
        self._draw.rounded_rectangle(corners, radius * SCALE, fill=fill, outline=edge, width=2 * SCALE if edge else 0)

    def frame(self, x: float, y: float, w: float, h: float, edge: Colour, width: float, radius: float) -> None:
        corners = [x * SCALE, y * SCALE, (x + w) * SCALE - 1, (y + h) * SCALE - 1]
        self._draw.rounded_rectangle(corners, radius * SCALE, outline=edge, width=round(width * SCALE))

    def disc(self, x: float, y: float, r: float, fill: Colour) -> None:
        self._draw.ellipse([(x - r) * SCALE, (y - r) * SCALE, (x + r) * SCALE, (y + r) * SCALE], fill=fill)

    def ring(self, x: float, y: float, r: float, share: float, colour: Colour, width: float) -> None:
        corners = [(x - r) * SCALE, (y - r) * SCALE, (x + r) * SCALE, (y + r) * SCALE]
        self._draw.arc(corners, -90, -90 + 360 * share, fill=colour, width=round(width * SCALE))

    def smile(self, x: float, y: float, r: float, up: bool, colour: Colour) -> None:
        shift = 0.0 if up else 0.75 * r
        corners = [(x - r) * SCALE, (y - r + shift) * SCALE, (x + r) * SCALE, (y + r + shift) * SCALE]
        self._draw.arc(
            corners, 20 if up else 200, 160 if up else 340, fill=colour, width=max(1, round(0.3 * r * SCALE))
        )

    def text(
        self, x: float, y: float, words: str, pixels: int, colour: Colour, anchor: str = "lm", bold: bool = False
    ) -> None:
        self._draw.text((x * SCALE, y * SCALE), words, fill=colour, font=_font(pixels, bold), anchor=anchor)


def _draw_map(pen: Pen, s: Scene, left: float, top: float) -> None:
    cell = _MAP / s.size
    light = _daylight(s.hour)
    seen = mix((58, 66, 96), (206, 226, 182), light)
    unseen = mix(seen, (30, 34, 52) if light < 0.5 else (120, 128, 112), 0.38)
    pen.box(left - 4, top - 4, _MAP + 8, _MAP + 8, mix(unseen, (0, 0, 0), 0.35), radius=8)
    gap = max(0.5, cell * 0.02)
    for y in range(s.size):
        for x in range(s.size):
            ground = seen if s.sees(x, y) else unseen
            pen.box(left + x * cell + gap, top + y * cell + gap, cell - 2 * gap, cell - 2 * gap, ground, cell * 0.06)
    for kind, (x, y) in s.cells.items():
        _draw_building(pen, s, kind, left + x * cell, top + y * cell, cell)
    if s.sight is not None:  # what the agent's window shows
        x0, y0 = max(0, s.agent[0] - s.sight), max(0, s.agent[1] - s.sight)
        x1, y1 = min(s.size, s.agent[0] + s.sight + 1), min(s.size, s.agent[1] + s.sight + 1)
        pen.frame(left + x0 * cell, top + y0 * cell, (x1 - x0) * cell, (y1 - y0) * cell, (255, 214, 90), 2, cell * 0.1)
    _draw_agent(pen, s, left + (s.agent[0] + 0.5) * cell, top + (s.agent[1] + 0.5) * cell, cell)


def _draw_building(pen: Pen, s: Scene, kind: int, x: float, y: float, cell: float) -> None:
    shut = not s.is_open(kind)
    colour = mix(COLOURS[kind], (70, 72, 82), 0.72) if shut else COLOURS[kind]
    words = mix((255, 255, 255), colour, 0.45) if shut else (255, 255, 255)
    inset = cell * 0.08
    pen.box(x + inset, y + inset, cell - 2 * inset, cell - 2 * inset, colour, cell * 0.14)
    if cell < 30:
        if cell >= 16:
            pen.text(x + cell / 2, y + cell / 2, CODES[kind], round(cell * 0.42), words, "mm", bold=True)
        return
    small = round(min(cell * 0.15, cell * 1.16 / len(BUILDINGS[kind]["name"])))
    pen.text(x + cell / 2, y + cell * 0.8, BUILDINGS[kind]["name"], max(6, small), words, "mm")
    if s.agent != s.cells[kind]:
        pen.text(x + cell / 2, y + cell * 0.43, CODES[kind], round(cell * 0.36), words, "mm", bold=True)
    if shut:
        pen.text(x + cell * 0.5, y + cell * 0.19, "closed", max(6, round(cell * 0.12)), words, "mm")


def _draw_agent(pen: Pen, s: Scene, x: float, y: float, cell: float) -> None:
    kind = s.underfoot
    if kind is not None and cell >= 30:
        y -= cell * 0.1  # so that the building's name stays legible
    r = cell * 0.22
    worst = min(s.meters["energy"], s.meters["health"], s.meters["satiation"])
    dead = s.ending is not None and s.ending != "reached the cap"
    skin = (176, 176, 180) if dead else mix((226, 92, 66), (255, 206, 74), min(1.0, worst / 0.6))
    pen.disc(x, y, r * 1.12, (40, 36, 30))
    pen.disc(x, y, r, skin)
    for side in (-1, 1):
        pen.disc(x + side * r * 0.36, y - r * 0.2, r * 0.13, (40, 36, 30))
    pen.smile(x, y + r * 0.1, r * 0.5, worst >= 0.3 and not dead, (40, 36, 30))
    if kind is not None and s.progress:
        pen.ring(x, y, r * 1.4, 1.0, (255, 255, 255), r * 0.16)
        pen.ring(x, y, r * 1.4, s.progress / BUILDINGS[kind]["ticks"], (74, 190, 92), r * 0.26)


def _draw_clock(pen: Pen, s: Scene, x: float, y: float, r: float) -> None:
    light = _daylight(s.hour)
    pen.disc(x, y, r, mix((36, 44, 84), (150, 206, 246), light))
    angle = 2 * math.pi * (s.hour - 6) / 24  # the sun rises at 6 on the left, noon is at the top
    for is_sun, turn in ((True, angle), (False, angle + math.pi)):
        height = math.sin(turn)
        if height >= -0.01:
            px, py = x - 0.68 * r * math.cos(turn), y - 0.68 * r * height
            pen.disc(px, py, r * 0.2, (255, 206, 66) if is_sun else (236, 238, 246))
            if not is_sun:
                pen.disc(px + r * 0.08, py - r * 0.05, r * 0.16, mix((36, 44, 84), (150, 206, 246), light))
    pen.text(x, y + r * 0.3, f"{s.hour:02d}:00", round(r * 0.48), (255, 255, 255), "mm", bold=True)


def _draw_panel(pen: Pen, s: Scene, left: float, top: float) -> None:
    pen.text(left, top + 14, s.title, 26, INK, bold=True)
    pen.text(left, top + 46, f"tick {s.tick} of {s.max_steps}", 14, INK)
    last = "none yet" if s.last_action < 0 else f"{ARROWS[s.last_action]} {ACTIONS[s.last_action]}"
    pen.text(left, top + 68, f"last action: {last}", 14, INK)
    _draw_clock(pen, s, left + _PANEL - 44, top + 42, 44)
    y = top + 118.0
    for name, value in s.meters.items():
        still = name in still_meters(s)
        pen.text(left, y, name, 14, FAINT if still else INK)
        pen.box(left + 84, y - 8, 150, 16, (226, 222, 212), radius=5)
        colour = (206, 164, 52) if name == "money" else _level_colour(value)
        if value > 0.0:
            pen.box(left + 84, y - 8, max(5.0, 150 * value), 16, (204, 201, 192) if still else colour, radius=5)
        amount = _dollars(s.cents) if name == "money" else f"{value:.2f}"
        pen.text(left + _PANEL, y, amount, 14, FAINT if still else INK, "rm")
        y += 27
    y += 8
    pen.box(left, y, _PANEL, 74, mix(PAPER, (214, 206, 186), 0.5), radius=8)
    pen.text(left + 12, y + 20, here(s), 14, INK, bold=True)
    kind = s.underfoot
    if kind is not None:
        pen.text(left + 12, y + 40, offer(kind, s.temporal), 12, INK)
        if s.temporal:
            ticks = BUILDINGS[kind]["ticks"]
            width = (_PANEL - 24 - 4 * (ticks - 1)) / ticks
            for i in range(ticks):
                done = (74, 190, 92) if i < s.progress else (255, 255, 255)
                pen.box(left + 12 + i * (width + 4), y + 54, width, 10, done, radius=3)
    else:
        pen.text(left + 12, y + 40, "nothing to do here", 12, FAINT)
    y += 86
    legend = (("sleep", _SLEEP), ("wash", _WASH), ("eat", _FOOD), ("work", _WORK))
    more = (("meet", _MEET), ("move", _MOVE), ("heal", _CARE))
    for row, entries in enumerate((legend, more)):
        for column, (name, colour) in enumerate(entries):
            pen.box(left + 76 * column, y + 22 * row + 2, 12, 12, colour, radius=3)
            pen.text(left + 76 * column + 18, y + 22 * row + 8, name, 12, INK)
    if s.ending:
        good = s.ending == "reached the cap"
        pen.box(left, y + 50, _PANEL, 36, (64, 150, 84) if good else (190, 56, 56), radius=8)
        pen.text(left + _PANEL / 2, y + 68, s.ending, 16, (255, 255, 255), "mm", bold=True)


def _level_colour(value: float) -> Colour:
    """A meter's colour: red below 0.15, amber around 0.35 (where cascades set in), green from 0.65."""
    red, amber, green = (208, 60, 56), (240, 176, 54), (92, 172, 98)
    if value < 0.35:
        return mix(red, amber, min(1.0, max(0.0, (value - 0.15) / 0.2)))
    return mix(amber, green, min(1.0, (value - 0.35) / 0.3))


def rgb_array(s: Scene) -> np.ndarray:
    """The scene as an image, ``[560, 880, 3]`` uint8: the map with the agent's window, and a panel with its meters."""
    from PIL import Image, ImageDraw

    width, height = _MAP + _PANEL + 3 * _MARGIN, _MAP + 2 * _MARGIN
    image = Image.new("RGB", (width * SCALE, height * SCALE), PAPER)
    pen = Pen(ImageDraw.Draw(image))
    _draw_map(pen, s, _MARGIN, _MARGIN)
    _draw_panel(pen, s, _MAP + 2 * _MARGIN, _MARGIN)
    return np.asarray(image.resize((width, height), Image.Resampling.LANCZOS), np.uint8).copy()
