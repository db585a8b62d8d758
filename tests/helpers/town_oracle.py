"""The Town once more, in plain Python and from docs/guides/town.md alone: the oracle of the simulator's tests.

Slow and obvious: one environment, meters in a dict, the buildings parsed from the table as the docs print it. It shares
no table, no random generator and no code with the package.
"""

from __future__ import annotations

import math
import re

ORDER = ["energy", "hygiene", "satiation", "money", "mood", "social", "health", "fitness"]
SHORT = {"E": "energy", "Hy": "hygiene", "Sa": "satiation", "Mo": "mood", "So": "social", "He": "health"} | {
    "Fi": "fitness",
    "$": "money",
}

# building | cell | ticks x dollars | hours | each paid tick | at completion
TABLE = """
Bed        | 1,1 | 5 x 1    | always | E+.075                      | E+.125 He+.02
LuxuryBed  | 2,1 | 5 x 2.2  | always | E+.1125                     | E+.1875 He+.05
Shower     | 2,2 | 3 x 1    | always | Hy+.10                      | Hy+.10
HomeMeal   | 1,3 | 2 x 1.5  | always | Sa+.16875                   | Sa+.1125 He+.03
FastFood   | 5,6 | 1 x 10   | always | Sa+.3375 E+.1125            | Sa+.1125 E+.0375 Fi-.03 He-.02
Job        | 6,6 | 4 x 0    | 8-18   | $+4.2 E-.0375               | $+5.7 So+.02 He-.03
Labor      | 7,6 | 4 x 0    | 8-18   | $+5.6 E-.05                 | $+7.6 Fi-.05 He-.05 So+.01
Gym        | 7,3 | 4 x 2    | always | Fi+.05625 E-.02             | Fi+.075 Mo+.05
Bar        | 7,0 | 2 x 7.5  | 18-4   | Mo+.075 So+.1875 Sa+.1 E-.075 | Mo+.10 So+.125 Sa+.1 E-.05 Hy-.15 He-.05
Park       | 0,4 | 2 x 0    | 6-22   | Mo+.05 So+.05 Fi+.075 E-.05 | Mo+.05 So+.05 Fi+.05 E-.05
Recreation | 0,7 | 2 x 3    | 8-22   | Mo+.09 So+.04 E+.04         | Mo+.07 So+.02 E+.04
Therapist  | 1,7 | 3 x 5    | 8-18   | Mo+.10                      | Mo+.10 So+.05
Doctor     | 5,1 | 2 x 4    | 8-18   | He+.08                      | He+.09
Hospital   | 6,1 | 3 x 5    | always | He+.10                      | He+.10
"""


def _effects(text: str) -> dict[str, float]:
    found = re.findall(r"(\$|[A-Z][a-z]?)([+-])([\d.]+)", text)
    assert len(found) == len(text.split())
    return {SHORT[name]: float(sign + number) for name, sign, number in found}


def _rows() -> dict[str, dict]:
    rows = {}
    for line in TABLE.strip().splitlines():
        name, cell, cost, hours, tick, done = (part.strip() for part in line.split("|"))
        ticks, price = cost.split(" x ")
        rows[name] = {
            "cell": tuple(int(n) for n in cell.split(",")),
            "ticks": int(ticks),
            "price": round(float(price) * 100),
            "hours": None if hours == "always" else tuple(int(n) for n in hours.split("-")),
            "tick": _effects(tick),
            "done": _effects(done),
        }
    return rows


BUILDINGS = _rows()
NAMES = list(BUILDINGS)
PASSIVE = {"energy": 0.005, "hygiene": 0.003, "satiation": 0.004, "mood": 0.001, "social": 0.006, "fitness": 0.002}
MOVING = {"energy": 0.005, "hygiene": 0.003, "satiation": 0.004}
CASCADES = [
    ("satiation", "health", 0.004),
    ("satiation", "energy", 0.005),
    ("mood", "energy", 0.005),
    ("hygiene", "satiation", 0.002),
    ("hygiene", "fitness", 0.002),
    ("hygiene", "mood", 0.003),
    ("social", "mood", 0.004),
    ("hygiene", "health", 0.0005),
    ("hygiene", "energy", 0.0005),
    ("social", "energy", 0.0008),
]


def philox(counter: list[int], key: int) -> list[int]:
    """Philox4x32-10 with Python's integers."""
    a, b, c, d = counter
    low, high = key & 0xFFFFFFFF, key >> 32
    for _ in range(10):
        left, right = 0xD2511F53 * a, 0xCD9E8D57 * c
        a, b, c, d = (right >> 32) ^ b ^ low, right & 0xFFFFFFFF, (left >> 32) ^ d ^ high, left & 0xFFFFFFFF
        low, high = (low + 0x9E3779B9) & 0xFFFFFFFF, (high + 0xBB67AE85) & 0xFFFFFFFF
    return [a, b, c, d]


def uniform(key: int, stream: int, counter: int, index: int) -> float:
    """Draw number `index` of (key, stream, counter)."""
    words = philox([index // 2, stream, counter & 0xFFFFFFFF, counter >> 32], key)
    low, high = words[2 * (index % 2) : 2 * (index % 2) + 2]
    return ((high << 32 | low) >> 11) / 2**53


def is_open(name: str, hour: int) -> bool:
    hours = BUILDINGS[name]["hours"]
    if hours is None:
        return True
    start, end = hours
    return start <= hour < end if start < end else hour >= start or hour < end


class OracleTown:
    """One environment with NEXT_STEP autoreset; step returns (obs, reward, terminated, truncated, legal, survival)."""

    def __init__(
        self,
        seed: int,
        *,
        level="town",
        size=8,
        layout="random",
        random_start_hour=True,
        max_steps=500,
        start_money=0.2,
        depletion=1.0,
        temporal=True,
        partial=True,
        window=None,
        radius=None,
        knots=0,
        reward="survival",
        random_start=False,
    ):
        self.seed, self.episode = seed, 0
        self.hamlet = level == "hamlet"
        self.names = ["Bed", "HomeMeal", "Job"] if self.hamlet else NAMES
        self.size, self.layout, self.random_start_hour, self.max_steps = size, layout, random_start_hour, max_steps
        self.start_money, self.depletion, self.temporal, self.partial = start_money, depletion, temporal, partial
        self.window = window or ("kind" if self.hamlet else "presence")
        self.radius = radius or (1 if self.hamlet else 2)
        self.knots, self.reward, self.random_start = knots, reward, random_start
        self.over = True

    def _draw(self, slot: int) -> float:
        return uniform(self.seed, 0, self.episode, slot)

    def reset(self):
        cells = list(range(self.size * self.size))
        self.at = {}
        for i, name in enumerate(self.names):
            if self.layout == "random":
                j = i + int(self._draw(5 + i) * (len(cells) - i))
            else:
                x, y = BUILDINGS[name]["cell"]
                j = cells.index(y * self.size + x)
            cells[i], cells[j] = cells[j], cells[i]
            self.at[cells[i] % self.size, cells[i] // self.size] = name
        free = cells[len(self.names) :]
        start = free[int(self._draw(4) * len(free))]
        self.x, self.y = start % self.size, start // self.size
        self.hour = int(self._draw(0) * 24) if self.random_start_hour else 0
        self.m = dict.fromkeys(ORDER, 1.0)
        self.cents = round(self.start_money * 10000)
        if self._draw(5 + 14) < self.random_start:
            self.m["energy"] = 0.3 + 0.7 * self._draw(1)
            self.m["satiation"] = 0.2 + 0.8 * self._draw(2)
            self.cents = math.floor((0.05 + 0.45 * self._draw(3)) * 10000 + 0.5)
        self.progress = self.survival = 0
        self.over = False
        self.episode += 1
        return self.observe()

    def _give(self, effects: dict[str, float]) -> None:
        for name, amount in effects.items():
            if name == "money":
                self.cents += round(amount * 100)
            else:
                self.m[name] += amount

    def _interact(self) -> None:
        name = self.at.get((self.x, self.y))
        if name is None:
            return
        b = BUILDINGS[name]
        if not self.temporal:
            if self.cents >= b["price"] * b["ticks"]:
                self.cents -= b["price"] * b["ticks"]
                total = {k: b["ticks"] * v for k, v in b["tick"].items()}
                for k, v in b["done"].items():
                    total[k] = total.get(k, 0.0) + v
                self._give(total)
            return
        if not is_open(name, self.hour) or self.cents < b["price"]:
            return
        self.cents -= b["price"]
        self._give(b["tick"])
        self.progress += 1
        if self.progress == b["ticks"]:
            self._give(b["done"])
            self.progress = 0

    def step(self, action: int):
        if self.over:
            obs, legal = self.reset()
            return obs, 0.0, False, False, legal, 0
        m, moved = self.m, False
        if action in (0, 1, 2, 3):
            x, y = self.x + [0, 0, -1, 1][action], self.y + [-1, 1, 0, 0][action]
            if 0 <= x < self.size and 0 <= y < self.size:
                self.x, self.y, self.progress, moved = x, y, 0, True
        elif action == 4:
            self._interact()
        fitness_before = m["fitness"]
        for name, loss in PASSIVE.items():
            if self.hamlet and name in ("hygiene", "mood", "social", "fitness"):
                continue
            m[name] -= self.depletion * (loss + MOVING[name] if moved and name in MOVING else loss)
        m["health"] -= self.depletion * (0.001 * (0.5 + 2.5 * (1.0 - fitness_before)))
        for source, target, k in CASCADES:
            if m[source] < 0.3:
                m[target] -= self.depletion * k * (0.3 - max(m[source], 0.0)) / 0.3
        for name in m:
            m[name] = min(1.0, max(0.0, m[name]))
        self.cents = min(10000, max(0, self.cents))
        dead = m["energy"] == 0.0 or m["health"] == 0.0
        reward = 0.0
        if not dead:
            self.survival += 1
            reward = 1.0 if self.reward == "survival" else (m["energy"] + m["satiation"] + m["health"]) / 3
        capped = not dead and self.survival == self.max_steps
        self.over = dead or capped
        self.hour = (self.hour + 1) % 24
        obs, legal = self.observe()
        return obs, reward, dead, capped, legal, self.survival

    def observe(self):
        obs: list[float] = []
        side = range(-self.radius, self.radius + 1)
        if not self.partial:
            cells = [(x, y) for y in range(self.size) for x in range(self.size)]
            obs += [float(self.at.get(cell) == name) for name in NAMES for cell in cells]
        else:
            cells = [(self.x + dx, self.y + dy) for dy in side for dx in side]
            if self.window == "presence":
                obs += [float(cell in self.at) for cell in cells]
            else:
                obs += [float(self.at.get(cell) == name) for name in NAMES for cell in cells]
            obs += [float(not (0 <= x < self.size and 0 <= y < self.size)) for x, y in cells]
        obs += [self.x / (self.size - 1), self.y / (self.size - 1)]
        for at in (self.x, self.y):
            weights = [0.0] * self.knots
            if self.knots:
                below, rest = divmod(at * (self.knots - 1) / (self.size - 1), 1.0)
                weights[int(below)] = 1.0 - rest
                if rest:
                    weights[int(below) + 1] = rest
            obs += weights
        obs += [self.cents / 10000 if name == "money" else self.m[name] for name in ORDER]
        here = self.at.get((self.x, self.y))
        obs += [float(here == name) for name in [*NAMES, None]]
        turn = 2 * math.pi * self.hour / 24
        obs += [math.sin(turn), math.cos(turn)]
        obs += [self.progress / BUILDINGS[here]["ticks"] if here else 0.0]
        use = here is not None and (not self.temporal or is_open(here, self.hour))
        legal = [self.y > 0, self.y < self.size - 1, self.x > 0, self.x < self.size - 1, use, True]
        return obs, legal
