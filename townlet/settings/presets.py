"""Presets: named sets of settings, with the source of each number.

A preset wins over the defaults, and what the user gives wins over the preset. What a preset does not name keeps its
default. ``docs/guides/presets.md`` shows the same tables, and a test compares them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from ..support.ids import TOWN_ID


class Choice(NamedTuple):
    """A setting's value, and the paper or the reason behind it."""

    value: Any
    source: str


_DRQN = "Hausknecht & Stone 2015"
_DQN = "Mnih et al. 2015, Extended Data Table 1"
_R2D2 = "Kapturowski et al. 2019"
_APEX = "Horgan et al. 2018"

DRQN = {
    "last_action": Choice(False, f"{_DRQN}: observations alone"),
    "last_reward": Choice(False, f"{_DRQN}: observations alone"),
    "encoder": Choice((128,), "ours for vectors; the paper encodes screens by DQN's three convolutions"),
    "hidden_size": Choice(256, f"ours; {_DRQN} have 512 on screens (Figure 2)"),
    "head_size": Choice(None, f"{_DRQN}, Figure 2: a linear layer from the LSTM to the Q-values"),
    "dueling": Choice(False, f"{_DRQN}: one stream"),
    "seq_len": Choice(8, f"ours; {_DRQN} unroll 10 steps"),
    "burn_in": Choice(0, f"{_DRQN}: none"),
    "stored_state": Choice(False, f"{_DRQN}, Stable Recurrent Updates: random updates begin from a zero state"),
    "batch_size": Choice(16, f"ours, of 8 steps each; 32 single transitions in {_DQN}"),
    "replay_ratio": Choice(8.0, f"{_DQN}: 32 transitions trained for every 4 actions"),
    "prioritised": Choice(False, f"{_DRQN}: uniform"),
    "gamma": Choice(0.99, f"{_DQN}"),
    "n_step": Choice(1, f"{_DQN}"),
    "double_q": Choice(False, f"{_DRQN}: the target network's own maximum"),
    "rescale_eps": Choice(0.0, f"{_DRQN}: none"),
    "loss": Choice("mse", f"{_DRQN}, Deep Q-Learning: squared error"),
    "lr": Choice(5e-4, f"ours, for Adam; {_DRQN} use ADADELTA with 0.1"),
    "lr_decay_steps": Choice(0, f"{_DRQN}: constant"),
    "clip_norm": Choice(10.0, f"{_DRQN}, Appendix A: gradients clipped at ten (here by norm)"),
    "sync_every": Choice(100, f"ours; 10,000 updates in {_DQN}, for runs a hundred times as long"),
    "tau": Choice(None, f"{_DQN}: hard copies"),
    "ema_decay": Choice(0.0, f"{_DQN}: no averaging"),
    "epsilon_start": Choice(1.0, f"{_DQN}"),
    "epsilon_end": Choice(0.1, f"{_DQN}"),
    "epsilon_ladder": Choice(0.0, f"{_DQN}: one exploration rate"),
}
"""Deep recurrent Q-learning as published, with uniform replay of short sequences from a zero state."""

R2D2 = {
    "last_action": Choice(True, f"{_R2D2}, Section 2.3: the LSTM sees the last action"),
    "last_reward": Choice(True, f"{_R2D2}, Section 2.3: the LSTM sees the last reward"),
    "encoder": Choice((128,), "ours for vectors; the paper encodes screens by DQN's three convolutions"),
    "hidden_size": Choice(128, f"ours; {_R2D2}, Appendix: 512"),
    "head_size": Choice(128, f"ours; {_R2D2}, Appendix: 512"),
    "dueling": Choice(True, f"{_R2D2}, Section 2.3"),
    "seq_len": Choice(60, f"ours: 40 trained steps after the burn-in; {_R2D2}, Section 2.3: 80"),
    "burn_in": Choice(20, f"{_R2D2}, Section 3, the shorter of the two burn-ins studied (20 and 40)"),
    "stride": Choice(20, f"ours: neighbours share half of their trained steps, as in {_R2D2}, Section 2.3"),
    "stored_state": Choice(True, f"{_R2D2}, Section 3: stored state with burn-in"),
    "batch_size": Choice(32, f"ours; {_R2D2}, Appendix: 64"),
    "prioritised": Choice(True, f"{_R2D2}, Section 2.3"),
    "alpha": Choice(0.9, f"{_R2D2}, Section 2.3: priority exponent"),
    "beta": Choice(0.6, f"the value customary for R2D2 code; {_R2D2}, Section 2.3, find no gain from the weights"),
    "eta": Choice(0.9, f"{_R2D2}, Section 2.3: mixture of largest and mean TD error"),
    "gamma": Choice(0.997, f"{_R2D2}, Section 2.3"),
    "n_step": Choice(5, f"{_R2D2}, Section 2.3"),
    "double_q": Choice(True, f"{_R2D2}, Section 2.3: n-step double Q-learning"),
    "rescale_eps": Choice(1e-3, f"{_R2D2}, Section 2.3: value rescaling h"),
    "loss": Choice("mse", "ours, as public R2D2 code has it; the rescaling keeps errors small"),
    "lr": Choice(5e-4, f"ours; {_R2D2}, Appendix: 1e-4 for runs a thousand times as long"),
    "lr_decay_steps": Choice(0, f"{_R2D2}: constant"),
    "adam_eps": Choice(1e-3, f"{_R2D2}, Appendix"),
    "clip_norm": Choice(40.0, f"{_APEX}, Appendix: gradient norm"),
    "sync_every": Choice(100, f"ours; {_R2D2}, Section 2.3: 2500, for runs a thousand times as long"),
    "tau": Choice(None, f"{_R2D2}, Section 2.3: hard copies"),
    "ema_decay": Choice(0.0, f"{_R2D2}: no averaging"),
    "epsilon_start": Choice(0.4, f"{_APEX}, Section 4.1"),
    "epsilon_end": Choice(0.4, f"{_APEX}, Section 4.1: no decay"),
    "epsilon_decay_steps": Choice(0, f"{_APEX}, Section 4.1: no decay"),
    "epsilon_ladder": Choice(7.0, f"{_APEX}, Section 4.1: alpha of the ladder over environments"),
}
"""Recurrent replay distributed DQN, with sizes and intervals cut to runs of minutes on a CPU."""

PRESETS: dict[str, dict[str, Choice]] = {"fast": {}, "drqn": DRQN, "r2d2": R2D2}
"""Name -> preset. `fast` is the defaults themselves, which are tuned for the Town (docs/results/town-learning.md)."""

ELSEWHERE = {
    "total_steps": (500_000, "enough for the small worlds that people try first"),
    "num_envs": (16, "an ordinary Gymnasium world steps one environment after the other"),
    "learning_starts": ("a tenth of total_steps, at most 5,000", "at least one sequence in every environment"),
    "replay_ratio": (24, "an ordinary world is dear to act in and cheap to learn from"),
    "capacity": (
        "total_steps, at most 200,000",
        f"at least two sequences in every environment; {_DRQN}, Appendix A: 400,000",
    ),
    "hidden_size": (64, "the size that was tried there"),
    "batch_size": (32, "the size that was tried there"),
    "gamma": (0.99, "the horizon that was tried there"),
    "epsilon_decay_steps": ("a tenth of total_steps", "Mnih et al. 2015 decay over 2% of a hundred times longer runs"),
    "lr_decay": ("linear", "the shape that was tried there"),
    "lr_end": (0.1, "the shape that was tried there"),
    "lr_decay_steps": ("total_steps", "the step size falls until the end"),
    "ema_decay": (0.0, "the average was measured in the Town only"),
    "eval_every": ("a twentieth of total_steps", "twenty points on the curve"),
    "log_every": ("a fiftieth of total_steps", "fifty points on the curve"),
    "checkpoint_every": ("a fifth of total_steps", "a crash costs a fifth of the run"),
}
"""What every preset sets in worlds other than the Town, each with its reason. The defaults are tuned for the Town."""


def _elsewhere(given: Mapping[str, Any], window: int) -> dict[str, Any]:
    """The numbers of ELSEWHERE.

    Args:
        given: the settings that the user gives.
        window: the steps that one sequence in every environment takes.
    """
    total = given.get("total_steps")
    if isinstance(total, bool) or not isinstance(total, (int, float)) or not 1 <= total < 2**63:
        total = 500_000  # Config says what is wrong with a value that was given
    total = int(total)
    computed = {
        "total_steps": total,
        "learning_starts": max(window, min(5_000, total // 10)),
        "capacity": max(2 * window, min(200_000, total)),
        "epsilon_decay_steps": total // 10,
        "lr_decay_steps": total,
        "eval_every": max(1, total // 20),
        "log_every": max(1, total // 50),
        "checkpoint_every": max(1, total // 5),
    }
    return {name: value for name, (value, _) in ELSEWHERE.items()} | computed


def with_preset(given: Mapping[str, Any], defaults: Mapping[str, Any]) -> dict[str, Any]:
    """The settings that the user gives, over a preset.

    Args:
        given: settings by name. The key ``preset`` names the preset; without it that is ``fast``.
        defaults: the defaults of all settings, by name.

    Returns:
        Settings by name, without the key ``preset``.

    Raises:
        ValueError: there is no such preset.
    """
    given = dict(given)
    values = {name: choice.value for name, choice in choices(given.pop("preset", "fast")).items()}
    if given.get("env", TOWN_ID) != TOWN_ID:
        sizes = {"seq_len": defaults["seq_len"], "num_envs": 16, **values, **given}
        envs, steps = sizes["num_envs"], sizes["seq_len"]
        numbers = all(isinstance(v, (int, float)) and abs(v) < 2**63 for v in (envs, steps))
        window = int(envs * (steps + 1)) if numbers else 1  # Config says what is wrong with them
        values = {**_elsewhere(given, window), **values}
    return {**values, **given}


def table(name: str) -> str:
    """A preset as a table in Markdown.

    Raises:
        ValueError: there is no preset of that name.
    """
    return _markdown((k, c.value, c.source) for k, c in choices(name).items())


def table_elsewhere() -> str:
    """ELSEWHERE as a table in Markdown."""
    return _markdown((k, *v) for k, v in ELSEWHERE.items())


def _markdown(rows: Iterable[tuple[str, Any, str]]) -> str:
    def shown(value: Any) -> str:
        value = value[0] if isinstance(value, tuple) and len(value) == 1 else value
        words = {None: "none", True: "true", False: "false"}
        text = words[value] if value is None or isinstance(value, bool) else f"{value}"
        return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else text

    lines = [f"| `{name}` | {shown(value)} | {source} |" for name, value, source in rows]
    return "\n".join(["| setting | value | where it comes from |", "|---|---|---|", *lines])


def choices(name: object) -> dict[str, Choice]:
    """The settings of a preset.

    Raises:
        ValueError: there is no preset of that name.
    """
    if not isinstance(name, str) or name not in PRESETS:
        raise ValueError(f"preset is {name!r}; expected one of {', '.join(PRESETS)}")
    return PRESETS[name]
