"""What a setting may be: how a value of each type is read, and the ranges that `Config` holds its settings to."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import Field
from typing import TYPE_CHECKING, Any

import numpy as np

from . import plain_yaml
from .envs.adapter import TOWN_ID
from .envs.images import parse_convolutions
from .plain_yaml import shown
from .spreads import FORMS, Spread

if TYPE_CHECKING:
    from .config import Config

# ---- types ----------------------------------------------------------------------------------------------------------


def _int(v: Any) -> int:
    if isinstance(v, bool) or not isinstance(v, (int, float)) or v != int(v) or not -(2**63) <= v < 2**63:
        raise TypeError
    return int(v)


def _float(v: Any) -> float:
    if isinstance(v, bool) or not isinstance(v, (int, float)) or not math.isfinite(v):
        raise TypeError
    return float(v)


def _str(v: Any) -> str:
    if not isinstance(v, str) or not v:
        raise TypeError
    return v


def _bool(v: Any) -> bool:
    if not isinstance(v, bool):
        raise TypeError
    return v


def _ints(v: Any) -> tuple[int, ...]:
    return tuple(_int(x) for x in v) if isinstance(v, (list, tuple)) else (_int(v),)


def _strs(v: Any) -> tuple[str, ...]:
    if v is False:  # what YAML 1.1 makes of "off"
        v = "off"
    if not isinstance(v, (str, list, tuple)):
        raise TypeError
    return (_str(v),) if isinstance(v, str) else tuple(_str(x) for x in v)


def _floats(v: Any) -> float | tuple[float, ...] | Spread:
    if isinstance(v, str):
        return Spread.parse(v)
    if isinstance(v, (list, tuple)):
        return tuple(_float(x) for x in v)
    return _float(v)


def _args(v: Any) -> dict[str, Any]:
    if not isinstance(v, Mapping) or not all(isinstance(k, str) for k in v):
        raise TypeError
    return {key: _plain(value) for key, value in v.items()}


def _plain(v: Any) -> Any:
    """What YAML and checkpoints hold: None, numbers, strings, lists and string-keyed mappings of them."""
    if isinstance(v, (np.ndarray, np.generic)):
        v = v.tolist()
    if isinstance(v, Mapping):
        return _args(v)
    if isinstance(v, (list, tuple)):
        return [_plain(x) for x in v]
    if v is None or isinstance(v, (bool, int, float, str)):
        return v
    raise TypeError


# By annotation: what converts a value, what the error says was expected, how --help shows it.
KINDS: dict[str, tuple[Callable[[Any], Any], str, str]] = {
    "int": (_int, "an integer", "N"),
    "float": (_float, "a finite number", "X"),
    "str": (_str, "a non-empty string", "NAME"),
    "bool": (_bool, "true or false", ""),
    "tuple[int, ...]": (_ints, "a list of integers", "N,N"),
    "tuple[str, ...]": (_strs, "a list of strings", "TEXT"),
    "float | tuple[float, ...]": (_floats, f"a finite number, a list of one per member, {FORMS}", "X"),
    "dict[str, Any]": (_args, "key=value pairs of numbers, strings, lists", "K=V"),
}


def kind_of(f: Field[Any]) -> tuple[str, bool]:
    """(annotation without None, whether None is allowed)."""
    annotation = str(f.type)
    return annotation.removesuffix(" | None"), annotation.endswith(" | None")


def converted(f: Field[Any], value: Any) -> Any:
    """``value`` as the field's type. Raises ValueError naming field, value and expectation."""
    kind, optional = kind_of(f)
    convert, wanted, _ = KINDS[kind]
    if value is None and optional:
        return None
    try:
        return convert(value)
    except (TypeError, ValueError, OverflowError, RecursionError):
        raise ValueError(f"{f.name}={shown(value)}: expected {wanted}{' or none' if optional else ''}") from None


def scalar(text: str) -> Any:
    """A flag's text as YAML reads it, so that 1e-3, 10_000, none, true and names all mean what they say.

    Raises ValueError.
    """
    if text.lower() == "none":
        return None
    for convert in (int, float):
        try:
            return convert(text)
        except ValueError:
            pass
    try:
        return plain_yaml.load(text)
    except ValueError as error:
        raise ValueError(f"{shown(text)} is not a value: {error}") from None


def parse_stage(text: str) -> tuple[int, dict[str, Any]]:
    """'STEP key=value ...' -> (step, arguments). Raises ValueError."""
    try:
        first, *pairs = text.replace(":", " ").split() or [""]
        try:
            step = _int(scalar(first))
        except (TypeError, ValueError, OverflowError):
            step = -1
        if step < 0:
            raise ValueError("does not begin with a step; expected 'STEP key=value ...'")
        args: dict[str, Any] = {}
        for pair in pairs:
            key, separator, value = pair.partition("=")
            if not (key and separator):
                raise ValueError("holds something that is not key=value")
            if key in args:
                raise ValueError(f"gives {key} twice")
            args[key] = _plain(scalar(value))
    except (TypeError, ValueError) as error:
        raise ValueError(f"curriculum: {shown(text)} {error}") from None
    return step, args


# ---- ranges ---------------------------------------------------------------------------------------------------------

_AT_LEAST_1 = [
    "num_envs",
    "total_steps",
    "hidden_size",
    "seq_len",
    "batch_size",
    "n_step",
    "sync_every",
    "eval_episodes",
    "eval_max_steps",
    "log_every",
    "keep_checkpoints",
    "capacity",
]
_AT_LEAST_0 = [
    "seed",
    "threads",
    "workers",
    "learning_starts",
    "burn_in",
    "rescale_eps",
    "epsilon_decay_steps",
    "epsilon_ladder",
    "lr_decay_steps",
    "eval_every",
    "checkpoint_every",
    "final_eval_episodes",
    "replay_ratio",
    "pbt_every",
]
_UNIT_INTERVAL = ["alpha", "beta", "eta", "gamma", "epsilon_start", "epsilon_end", "lr_end", "pbt_resample"]
_POSITIVE = ["reward_scale", "huber_delta", "lr", "adam_eps", "clip_norm", "pbt_perturb"]
PER_MEMBER = ["gamma", "lr", "clip_norm", "epsilon_end"]


def validate(c: Config) -> None:
    """Raise ValueError, naming setting, value and expectation, for the first one out of its range."""

    def require(ok: bool, name: str, wanted: str) -> None:
        if not ok:
            raise ValueError(f"{name}={shown(getattr(c, name))}: expected {wanted}")

    def every(name: str) -> tuple[float, ...]:
        value = getattr(c, name)
        return value if isinstance(value, tuple) else (value,)

    for name in _AT_LEAST_1:
        require(getattr(c, name) >= 1, name, "at least 1")
    for name in _AT_LEAST_0:
        require(getattr(c, name) >= 0, name, "at least 0")
    for name in _UNIT_INTERVAL:
        require(all(0 <= v <= 1 for v in every(name)), name, "between 0 and 1")
    for name in _POSITIVE:
        require(all(v > 0 for v in every(name)), name, "above 0")
    for name in PER_MEMBER:
        value = getattr(c, name)
        require(
            not isinstance(value, tuple) or len(value) == c.members, name, f"one value, or {c.members} (one per member)"
        )
    require(c.pbt_every == 0 or c.members >= 2, "members", "at least 2 for population based training (pbt_every)")
    require(0 < c.pbt_fraction <= 0.5, "pbt_fraction", "above 0 and at most 0.5")
    require(c.pbt_score in ("train", "eval"), "pbt_score", "train or eval")
    require(len(c.pbt_explore) > 0 and set(c.pbt_explore) <= set(PER_MEMBER), "pbt_explore", f"some of {PER_MEMBER}")
    if c.pbt_every and "gamma" in c.pbt_explore:
        require(all(v < 1 for v in every("gamma")), "gamma", "below 1 where pbt_explore names it")
    if c.pbt_every and "epsilon_end" in c.pbt_explore:
        require(all(v > 0 for v in every("epsilon_end")), "epsilon_end", "above 0 where pbt_explore names it")
    steps = [first for first, _ in c.stages]
    require(steps == sorted(set(steps)), "curriculum", "stages in the order of their steps")
    require(re.fullmatch(r"cpu|cuda(:\d+)?", c.device) is not None, "device", "cpu, cuda or cuda:N")
    require(c.cell == "lstm", "cell", "lstm; other cells (GRU among them) are not supported")
    require(c.layers == 1, "layers", "1; stacked recurrent layers are not supported")
    require(c.network in ("auto", "mlp", "conv", "spatial"), "network", "auto, mlp, conv or spatial")
    require(not (c.workers and c.is_town), "workers", f"0 for {TOWN_ID}, which steps all environments at once")
    require(c.network != "spatial" or c.is_town, "network", f"auto, mlp or conv for worlds other than {TOWN_ID}")
    if c.conv is not None:
        parse_convolutions(c.conv)
    for name in ("last_action", "last_reward"):
        fits = c.network != "spatial" or not getattr(c, name)
        require(fits, name, "false with network=spatial, which reads the Town's own observation; mlp takes it")
    require(c.loss in ("huber", "mse"), "loss", "huber or mse")
    require(c.compute_dtype in ("float32", "bfloat16"), "compute_dtype", "float32 or bfloat16")
    require(c.lr_decay in ("linear", "exponential"), "lr_decay", "linear or exponential")
    require(c.lr_decay == "linear" or c.lr_end > 0, "lr_end", "above 0 with lr_decay=exponential")
    require(all(n >= 1 for n in c.encoder), "encoder", "sizes of at least 1")
    require(c.chrono_span is None or c.chrono_span >= 2, "chrono_span", "at least 2, or none")
    require(c.head_size is None or c.head_size >= 1, "head_size", "at least 1, or none")
    require(0 <= c.ema_decay < 1, "ema_decay", "at least 0 and below 1")
    require(c.tau is None or 0 < c.tau <= 1, "tau", "above 0 and at most 1, or none")
    require(c.burn_in < c.seq_len, "burn_in", f"below seq_len={c.seq_len}")
    require(c.stride is None or 1 <= c.stride <= c.seq_len, "stride", f"1 to seq_len={c.seq_len}, or none")
    window = c.num_envs * (c.seq_len + 1)
    at_least = f"at least num_envs * (seq_len + 1) = {window}, one window per environment"
    require(c.capacity >= window, "capacity", at_least)
    require(c.learning_starts >= window, "learning_starts", at_least)
