"""Every setting of a training run: one flat, frozen dataclass.

Each field carries its meaning and unit beside its default; ``townlet train --help`` prints exactly these lines. Values
come from three places, later ones winning: the defaults below, a YAML file, command line flags. Everything is checked
once, here, when the object is made.
"""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import Field, asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import yaml

from .envs.adapter import TOWN_ID

# What a world is when `env_args` does not say otherwise. Keys given in `env_args` win one by one.
WORLD_DEFAULTS: dict[str, dict[str, Any]] = {TOWN_ID: {"level": "hamlet", "depletion": 1.5, "start_money": 0.2}}
# What training changes in it, unless the key is in `env_args`.
TRAINING_DEFAULTS: dict[str, dict[str, Any]] = {TOWN_ID: {"reward": "wellbeing", "random_start": True}}
# Stages of the default training; keys in `env_args` are left out of them. In a small and gentle Town an agent comes
# upon bed, meal and job often enough to learn what they are for and to go back to them: see docs/town-learning.md.
CURRICULUM_DEFAULTS: dict[str, tuple[str, ...]] = {
    TOWN_ID: ("0 size=5 depletion=1.0", "3500000 size=6 depletion=1.0", "7000000 size=6", "10000000 size=7"),
}
# What evaluation changes in it, whatever `env_args` says: it measures survival, from full meters.
EVALUATION_DEFAULTS: dict[str, dict[str, Any]] = {TOWN_ID: {"reward": "survival", "random_start": False}}


# Headings of --help and config.yaml, each above the setting that follows.
GROUPS = {
    "env": "world",
    "members": "population",
    "total_steps": "length",
    "network": "network",
    "capacity": "replay",
    "gamma": "learning",
    "epsilon_start": "exploration",
    "eval_every": "records",
}


def _setting(default: Any, meaning: str) -> Any:
    return field(default=default, metadata={"meaning": meaning})


@dataclass(frozen=True)
class Config:
    """The settings of one run. Steps are environment steps **per member** unless said otherwise.

    Raises:
        ValueError: a value has the wrong type or lies outside its range; field, value and expectation are named.
    """

    env: str = _setting(TOWN_ID, "Gymnasium id of the world")
    env_args: dict[str, Any] = field(
        default_factory=dict,
        metadata={"meaning": "arguments of the world as key=value; they win over the world's defaults"},
    )
    eval_env_args: dict[str, Any] = field(
        default_factory=dict,
        metadata={
            "meaning": "arguments that differ in evaluation, as key=value; for the Town survival reward and full "
            "meters unless given"
        },
    )
    curriculum: tuple[str, ...] | None = _setting(
        None,
        "stages of training, each 'STEP key=value ...': from that environment step on, these arguments are laid over "
        "the world's (no arguments: the world itself); off for none",
    )
    seed: int = _setting(0, "seed of member 0; member p uses seed + p")

    members: int = _setting(1, "P, independent agents trained side by side")
    num_envs: int = _setting(128, "E, environments per member")
    threads: int = _setting(0, "CPU threads for torch; 0 leaves torch's own choice; another number rounds differently")

    device: str = _setting("cpu", "where networks, optimiser and replay live and are computed: cpu, cuda or cuda:N")
    cuda_graph: bool = _setting(True, "on cuda, record the update as a CUDA graph and replay it")

    total_steps: int = _setting(14_000_000, "environment steps per member")
    learning_starts: int = _setting(
        20_000, "environment steps per member before the first update; at least num_envs * (seq_len + 1)"
    )
    replay_ratio: float = _setting(
        2.0, "trained transitions (batch_size * (seq_len - burn_in) per update) for each environment step"
    )

    network: str = _setting("mlp", "mlp (any world) or spatial (the Town's window through convolutions)")
    cell: str = _setting("lstm", "recurrent cell; only lstm is supported")
    layers: int = _setting(1, "recurrent layers; only 1 is supported")
    encoder: tuple[int, ...] = _setting((128,), "units of the encoder's ReLU layers (mlp), comma separated")
    hidden_size: int = _setting(64, "H, LSTM units (mlp; the spatial network has its own size)")
    head_size: int | None = _setting(64, "F, units of the head's ReLU layer; none for a linear head")
    dueling: bool = _setting(True, "separate value and advantage streams")
    memory: bool = _setting(
        True, "false trains the memoryless control: state zeroed at every step, in acting and in training"
    )

    capacity: int = _setting(400_000, "transitions kept per member")
    seq_len: int = _setting(40, "S, transitions in a replayed sequence")
    burn_in: int = _setting(5, "L, first transitions of a sequence that only warm the state up; below seq_len")
    stride: int | None = _setting(None, "steps between the starts of stored sequences; none for half of seq_len")
    batch_size: int = _setting(32, "B, sequences per member in one update")
    prioritised: bool = _setting(False, "draw sequences by priority instead of uniformly")
    alpha: float = _setting(0.6, "exponent of the priority, 0 (uniform) to 1")
    beta: float = _setting(0.4, "exponent of the importance-sampling weight, 0 to 1")
    eta: float = _setting(0.9, "weight of the largest against the mean TD error in a sequence's priority, 0 to 1")

    gamma: float | tuple[float, ...] = _setting(
        0.99, "discount per step; one value, or one per member, comma separated"
    )
    n_step: int = _setting(3, "steps of reward before bootstrapping")
    reward_scale: float = _setting(
        1.0, "factor on the rewards learned from (small ones drown in Adam's steps); records show the real ones"
    )
    double_q: bool = _setting(True, "choose the successor's action with the online network")
    rescale_eps: float = _setting(1e-3, "epsilon of the value rescaling h(x); 0 switches rescaling off")
    loss: str = _setting("huber", "huber or mse")
    huber_delta: float = _setting(1.0, "TD error at which huber turns linear")
    lr: float | tuple[float, ...] = _setting(1e-3, "Adam learning rate; one value, or one per member, comma separated")
    lr_end: float = _setting(0.1, "factor of the learning rate reached linearly after lr_decay_steps")
    lr_decay_steps: int = _setting(
        14_000_000, "environment steps per member over which the learning rate falls; 0 for constant"
    )
    adam_eps: float = _setting(1e-5, "Adam epsilon")
    clip_norm: float = _setting(10.0, "largest gradient norm of a member")
    sync_every: int = _setting(30, "updates between hard copies to the target network; unused when tau is given")
    tau: float | None = _setting(None, "step of the soft target update made after each update; none for hard copies")

    epsilon_start: float = _setting(1.0, "share of random actions at step 0")
    epsilon_end: float | tuple[float, ...] = _setting(
        0.4, "share of random actions after the decay; one value, or one per member"
    )
    epsilon_decay_steps: int = _setting(400_000, "environment steps per member over which epsilon falls linearly")
    epsilon_ladder: float = _setting(
        5.0, "environment e of E acts with epsilon^(1 + ladder * e / (E - 1)); 0 gives all the same"
    )

    eval_every: int = _setting(500_000, "environment steps per member between evaluations; 0 for none before the end")
    eval_episodes: int = _setting(64, "greedy episodes per member in each of those evaluations")
    final_eval_episodes: int = _setting(256, "greedy episodes per member in the evaluation at the end; 0 for none")
    eval_max_steps: int = _setting(10_000, "steps after which an evaluation episode that does not end is cut")
    log_every: int = _setting(
        100_000, "environment steps per member between rows of metrics.csv; evaluations have rows too"
    )
    checkpoint_every: int = _setting(
        2_000_000, "environment steps per member between checkpoints; 0 for one at the end only"
    )
    keep_checkpoints: int = _setting(2, "complete checkpoints kept")
    run_dir: str | None = _setting(None, "folder of the run; none for runs/<world>-<time>")

    def __post_init__(self) -> None:
        for f in fields(self):
            object.__setattr__(self, f.name, _checked(f, getattr(self, f.name)))
        _validate(self)

    # ---- where values come from -------------------------------------------------------------------------------------

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], *, source: str = "configuration") -> Config:
        """Defaults with ``values`` laid over them. Raises ValueError for a key that is not a setting."""
        reject_unknown(values, source)
        return cls(**values)

    @classmethod
    def from_yaml(cls, path: str | Path, overrides: Mapping[str, Any] | None = None) -> Config:
        """Defaults, then the YAML mapping in ``path``, then ``overrides``; only the result has to be consistent."""
        return cls.from_dict({**read_yaml(path), **(overrides or {})}, source=str(path))

    def to_dict(self) -> dict[str, Any]:
        """Plain values (lists instead of tuples), as YAML and checkpoints hold them."""
        return {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self).items()}

    def to_yaml(self, path: str | Path) -> None:
        """Write all settings, each under its group's heading and below its meaning."""
        lines = []
        values = self.to_dict()
        for f in fields(self):
            if f.name in GROUPS:
                lines += ["", f"# ---- {GROUPS[f.name]}"]
            value = yaml.safe_dump(values[f.name], default_flow_style=True, width=1000).removesuffix("...\n").strip()
            lines += [f"# {f.metadata['meaning']}", f"{f.name}: {value}"]
        Path(path).write_text("\n".join(lines).lstrip() + "\n", encoding="utf-8")

    # ---- what follows from the settings -----------------------------------------------------------------------------

    @property
    def is_town(self) -> bool:
        return self.env == TOWN_ID

    @property
    def training_args(self) -> dict[str, Any]:
        """Arguments of the training worlds, before any stage of the curriculum."""
        return {**WORLD_DEFAULTS.get(self.env, {}), **TRAINING_DEFAULTS.get(self.env, {}), **self.env_args}

    @property
    def evaluation_args(self) -> dict[str, Any]:
        """Arguments of the evaluation worlds: the world itself, what evaluation changes, what the user changes."""
        world = {**WORLD_DEFAULTS.get(self.env, {}), **self.env_args}
        return {**world, **EVALUATION_DEFAULTS.get(self.env, {}), **self.eval_env_args}

    @property
    def stages(self) -> list[tuple[int, dict[str, Any]]]:
        """(first step, arguments of the training worlds) of every stage, in order; the first begins at step 0."""
        given = self.curriculum
        texts = CURRICULUM_DEFAULTS.get(self.env, ()) if given is None else () if given == ("off",) else given
        stages = [_stage(text) for text in texts]
        if given is None:
            stages = [(n, {k: v for k, v in args.items() if k not in self.env_args}) for n, args in stages]
        if not stages or stages[0][0] > 0:
            stages.insert(0, (0, {}))
        return [(first, {**self.training_args, **args}) for first, args in stages]

    @property
    def trained_per_update(self) -> int:
        """Transitions per member that one update trains on."""
        return self.batch_size * (self.seq_len - self.burn_in)

    def per_member(self, name: str) -> list[float]:
        """Setting ``name`` as a list of ``members`` floats."""
        value = getattr(self, name)
        return list(value) if isinstance(value, tuple) else [value] * self.members


# ---- types ----------------------------------------------------------------------------------------------------------


def _int(v: Any) -> int:
    if isinstance(v, bool) or not isinstance(v, (int, float)) or v != int(v):
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
    return (_str(v),) if isinstance(v, str) else tuple(_str(x) for x in v)


def _floats(v: Any) -> float | tuple[float, ...]:
    if isinstance(v, (list, tuple)):
        return tuple(_float(x) for x in v)
    return _float(v)


def _args(v: Any) -> dict[str, Any]:
    if not isinstance(v, Mapping) or not all(isinstance(k, str) for k in v):
        raise TypeError
    return dict(v)


# By annotation: what converts a value, what the error says was expected, how --help shows it.
KINDS: dict[str, tuple[Callable[[Any], Any], str, str]] = {
    "int": (_int, "an integer", "N"),
    "float": (_float, "a finite number", "X"),
    "str": (_str, "a non-empty string", "NAME"),
    "bool": (_bool, "true or false", ""),
    "tuple[int, ...]": (_ints, "a list of integers", "N,N"),
    "tuple[str, ...]": (_strs, "a list of strings", "STAGE"),
    "float | tuple[float, ...]": (_floats, "a finite number, or a list of one per member", "X"),
    "dict[str, Any]": (_args, "key=value pairs", "K=V"),
}


def kind_of(f: Field[Any]) -> tuple[str, bool]:
    """(annotation without None, whether None is allowed)."""
    annotation = str(f.type)
    return annotation.removesuffix(" | None"), annotation.endswith(" | None")


def _checked(f: Field[Any], value: Any) -> Any:
    kind, optional = kind_of(f)
    convert, wanted, _ = KINDS[kind]
    if value is None and optional:
        return None
    try:
        return convert(value)
    except (TypeError, ValueError, OverflowError):
        raise ValueError(f"{f.name}={value!r}: expected {wanted}{' or none' if optional else ''}") from None


# ---- ranges ---------------------------------------------------------------------------------------------------------

_AT_LEAST_1 = [
    "members",
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
]
_UNIT_INTERVAL = ["alpha", "beta", "eta", "gamma", "epsilon_start", "epsilon_end", "lr_end"]
_POSITIVE = ["reward_scale", "huber_delta", "lr", "adam_eps", "clip_norm"]


def _validate(c: Config) -> None:
    def require(ok: bool, name: str, wanted: str) -> None:
        if not ok:
            raise ValueError(f"{name}={getattr(c, name)!r}: expected {wanted}")

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
    for name in ("gamma", "lr", "epsilon_end"):
        value = getattr(c, name)
        require(
            not isinstance(value, tuple) or len(value) == c.members, name, f"one value, or {c.members} (one per member)"
        )
    steps = [first for first, _ in c.stages]
    require(steps == sorted(set(steps)), "curriculum", "stages in the order of their steps")
    require(re.fullmatch(r"cpu|cuda(:\d+)?", c.device) is not None, "device", "cpu, cuda or cuda:N")
    require(c.cell == "lstm", "cell", "lstm; other cells (GRU among them) are not supported")
    require(c.layers == 1, "layers", "1; stacked recurrent layers are not supported")
    require(c.network in ("mlp", "spatial"), "network", "mlp or spatial")
    require(c.network != "spatial" or c.is_town, "network", f"mlp for worlds other than {TOWN_ID}")
    require(c.loss in ("huber", "mse"), "loss", "huber or mse")
    require(all(n >= 1 for n in c.encoder), "encoder", "sizes of at least 1")
    require(c.head_size is None or c.head_size >= 1, "head_size", "at least 1, or none")
    require(c.tau is None or 0 < c.tau <= 1, "tau", "above 0 and at most 1, or none")
    require(c.burn_in < c.seq_len, "burn_in", f"below seq_len={c.seq_len}")
    require(c.stride is None or 1 <= c.stride <= c.seq_len, "stride", f"1 to seq_len={c.seq_len}, or none")
    window = c.num_envs * (c.seq_len + 1)
    at_least = f"at least num_envs * (seq_len + 1) = {window}, one window per environment"
    require(c.capacity >= window, "capacity", at_least)
    require(c.learning_starts >= window, "learning_starts", at_least)


def _stage(text: str) -> tuple[int, dict[str, Any]]:
    """'STEP key=value ...' -> (step, arguments). Raises ValueError."""
    first, *pairs = text.replace(":", " ").split()
    args = {key: scalar(value) for key, _, value in (pair.partition("=") for pair in pairs)}
    step = scalar(first)
    if isinstance(step, bool) or not isinstance(step, (int, float)) or step != int(step) or step < 0:
        raise ValueError(f"curriculum: {text!r} does not begin with a step; expected 'STEP key=value ...'")
    if not all("=" in pair for pair in pairs):
        raise ValueError(f"curriculum: {text!r} holds something that is not key=value")
    return int(step), args


def scalar(text: str) -> Any:
    """A flag's text as YAML reads it, so that 1e-3, 10_000, none, true and names all mean what they say."""
    if text.lower() == "none":
        return None
    for convert in (int, float):
        try:
            return convert(text)
        except ValueError:
            pass
    return yaml.safe_load(text)


def reject_unknown(values: Mapping[str, Any], source: str) -> None:
    """Raise ValueError for the first key that is no setting, with the nearest real name."""
    names = [f.name for f in fields(Config)]
    for key in values:
        if key not in names:
            near = difflib.get_close_matches(str(key), names, n=1, cutoff=0.5)
            hint = f"; did you mean {near[0]!r}?" if near else f"; settings: {', '.join(names)}"
            raise ValueError(f"{source}: {key!r} is not a setting{hint}")


def read_yaml(path: str | Path) -> dict[str, Any]:
    """The mapping in a YAML file, checked for unknown keys only. Raises ValueError naming the file."""
    try:
        values = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise ValueError(f"{path}: cannot be read ({error.strerror})") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: is not YAML ({' '.join(str(error).split())})") from None
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise ValueError(f"{path}: holds {type(values).__name__}, expected 'setting: value' lines")
    reject_unknown(values, str(path))
    numeric = {f.name for f in fields(Config) if "str" not in kind_of(f)[0]}
    # YAML 1.1 reads 1e-3 (no point) as a string; whoever writes it means the number.
    return {k: scalar(v) if k in numeric and isinstance(v, str) else v for k, v in values.items()}
