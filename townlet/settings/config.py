"""Every setting of a training run, in one flat, frozen dataclass.

Each field carries its meaning, its unit and its range beside its default. ``townlet train --help`` and
``help(townlet.Config)`` show them. Values come from four places, of which a later one wins: the defaults below, a
preset (presets.py), a YAML file, and command line flags. Everything is checked once, here, when the object is made.
"""

from __future__ import annotations

import difflib
import inspect
import re
import textwrap
from collections.abc import Mapping
from dataclasses import MISSING, Field, asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, cast

import yaml

from ..support.convolutions import parse_convolutions
from ..support.files import replacing
from ..support.ids import TOWN_ID
from . import plain_yaml
from .plain_yaml import shown
from .presets import with_preset
from .spreads import Spread
from .values import Range, converted, in_range, kind_of, parse_stage, scalar

# The arguments of a world. Each key in `env_args` wins over the one here.
WORLD_DEFAULTS: dict[str, dict[str, Any]] = {TOWN_ID: {"knots": 8}}
# What training changes in them, unless the key is in `env_args`.
TRAINING_DEFAULTS: dict[str, dict[str, Any]] = {TOWN_ID: {"reward": "wellbeing", "random_start": True}}
# The stages of the default training, without the keys that are in `env_args`. In a small Town an agent comes upon bed,
# meal and job often enough to learn what they are for and to go back to them: see docs/results/town-learning.md.
CURRICULUM_DEFAULTS: dict[str, tuple[str, ...]] = {
    TOWN_ID: ("0 size=5", "1500000 size=6", "3500000 size=7"),
}
# What evaluation changes in them, even where the key is in `env_args`: it measures survival, from full meters.
EVALUATION_DEFAULTS: dict[str, dict[str, Any]] = {TOWN_ID: {"reward": "survival", "random_start": False}}

# The headings of --help and config.yaml. Each stands above the setting that is its key.
GROUPS = {
    "env": "world",
    "members": "population",
    "total_steps": "length",
    "network": "network",
    "capacity": "replay",
    "gamma": "learning",
    "epsilon_start": "exploration",
    "pbt_every": "population based training",
    "eval_every": "records",
}


def _about(meaning: str, *, per_member: bool = False, **ends: Any) -> dict[str, Any]:
    """The metadata of a field: the meaning of the setting, and its range.

    Args:
        meaning: what the setting does, for --help and config.yaml.
        per_member: whether the setting may be a tuple with one value for each member.
        ends: the arguments of `Range`.
    """
    return {"meaning": meaning, "range": Range(**ends), "per_member": per_member}


def _setting(default: Any, meaning: str, **facts: Any) -> Any:
    return field(default=default, metadata=_about(meaning, **facts))


@dataclass(frozen=True)
class Config:
    """The settings of one run. Steps are environment steps **per member** unless a setting says otherwise.

    Raises:
        ValueError: a value has the wrong type, lies outside its range or does not fit the others. The message names
            the setting, the value and what was expected.
    """

    env: str = _setting(TOWN_ID, "Gymnasium id of the world")
    env_args: dict[str, Any] = field(
        default_factory=dict,
        metadata=_about("arguments of the world as key=value; they win over the world's defaults"),
    )
    eval_env_args: dict[str, Any] = field(
        default_factory=dict,
        metadata=_about(
            "arguments that differ in evaluation, as key=value; for the Town survival reward and full meters unless "
            "given"
        ),
    )
    curriculum: tuple[str, ...] | None = _setting(
        None,
        "stages of training, each 'STEP key=value ...': from that environment step on, these arguments are laid over "
        "the world's (no arguments: the world itself); off for none",
    )
    seed: int = _setting(0, "seed of member 0; member p uses seed + p", least=0)

    members: int = _setting(1, "P, independent agents trained side by side", least=1, most=100_000)
    num_envs: int = _setting(128, "E, environments per member", least=1)
    threads: int = _setting(
        0, "CPU threads for torch; 0 leaves torch's own choice; another number rounds differently", least=0
    )
    workers: int = _setting(
        0, "processes that step the environments, for worlds with slow steps; 0 for this one; not for the Town", least=0
    )

    device: str = _setting("cpu", "where networks, optimiser and replay live and are computed: cpu, cuda or cuda:N")
    cuda_graph: bool = _setting(True, "on cuda, record the update as a CUDA graph and replay it")

    total_steps: int = _setting(8_000_000, "environment steps per member", least=1)
    learning_starts: int = _setting(
        20_000, "environment steps per member before the first update; at least num_envs * (seq_len + 1)", least=0
    )
    replay_ratio: float = _setting(
        3.0, "trained transitions (batch_size * (seq_len - burn_in) per update) for each environment step", least=0
    )

    network: str = _setting(
        "auto",
        "auto (conv where the observation holds an image of 5 x 5 or more, else mlp), mlp, conv, or spatial (the "
        "Town's window through convolutions)",
        choices=("auto", "mlp", "conv", "spatial"),
    )
    conv: str | None = _setting(
        None,
        "convolutions over an image, CHANNELSxKERNEL or CHANNELSxKERNEL/STRIDE, comma separated; none for 16x3,32x3 on "
        "sides below 20, else 32x8/4,64x4/2,64x3",
    )
    cell: str = _setting("lstm", "recurrent cell; only lstm is supported")
    layers: int = _setting(1, "recurrent layers; only 1 is supported")
    encoder: tuple[int, ...] = _setting((128,), "units of the encoder's ReLU layers, comma separated", least=1)
    hidden_size: int = _setting(96, "H, LSTM units (the spatial network has its own size)", least=1)
    chrono_span: int | None = _setting(
        None,
        "T of the chrono initialisation, at least 2: LSTM units begin by keeping what they hold for 1 to T - 1 steps; "
        "none for a forget bias of 1",
        least=2,
    )
    head_size: int | None = _setting(64, "F, units of the head's ReLU layer; none for a linear head", least=1)
    dueling: bool = _setting(True, "separate value and advantage streams")
    last_action: bool = _setting(
        False, "the last action, one-hot, is part of every observation; zeros at an episode's start"
    )
    last_reward: bool = _setting(
        False, "the last reward, as the world gave it, is part of every observation; zero at an episode's start"
    )
    memory: bool = _setting(
        True, "false trains the memoryless control: state zeroed at every step, in acting and in training"
    )

    capacity: int = _setting(400_000, "transitions kept per member", least=1)
    seq_len: int = _setting(40, "S, transitions in a replayed sequence", least=1)
    burn_in: int = _setting(5, "L, first transitions of a sequence that only warm the state up; below seq_len", least=0)
    stored_state: bool = _setting(
        True, "begin a replayed sequence from the state it was acted with; false begins from zero"
    )
    stride: int | None = _setting(
        None,
        "steps between the starts of stored sequences, at most seq_len - burn_in, so that every transition is trained "
        "on; none for half of seq_len or that, whichever is less",
        least=1,
    )
    batch_size: int = _setting(16, "B, sequences per member in one update", least=1)
    prioritised: bool = _setting(False, "draw sequences by priority instead of uniformly")
    alpha: float = _setting(0.6, "exponent of the priority, 0 (uniform) to 1", least=0, most=1)
    beta: float = _setting(0.4, "exponent of the importance-sampling weight, 0 to 1", least=0, most=1)
    eta: float = _setting(
        0.9, "weight of the largest against the mean TD error in a sequence's priority, 0 to 1", least=0, most=1
    )

    gamma: float | tuple[float, ...] = _setting(
        0.995, "discount per step; one value, or per member as lr", least=0, most=1, per_member=True
    )
    n_step: int = _setting(3, "steps of reward before bootstrapping", least=1)
    reward_scale: float = _setting(
        1.0,
        "factor on the rewards learned from (small ones drown in Adam's steps); records show the real ones",
        above=0,
    )
    double_q: bool = _setting(True, "choose the successor's action with the online network")
    rescale_eps: float = _setting(1e-3, "epsilon of the value rescaling h(x); 0 switches rescaling off", least=0)
    loss: str = _setting("huber", "huber or mse", choices=("huber", "mse"))
    huber_delta: float = _setting(1.0, "TD error at which huber turns linear", above=0)
    compute_dtype: str = _setting(
        "float32",
        "operands of the update's LSTM and head: float32, or bfloat16 (summed in float32, weights kept in float32; "
        "faster with AVX512-BF16)",
        choices=("float32", "bfloat16"),
    )
    lr: float | tuple[float, ...] = _setting(
        1e-3,
        "Adam learning rate; one value, or per member: values separated by commas, log:A:B or lin:A:B (spaced from A "
        "to B), loguniform:A:B or uniform:A:B (drawn from the seed)",
        above=0,
        per_member=True,
    )
    lr_decay: str = _setting(
        "exponential", "how the learning rate falls: linear or exponential", choices=("linear", "exponential")
    )
    lr_end: float = _setting(0.15, "factor of the learning rate reached after lr_decay_steps", least=0, most=1)
    lr_decay_steps: int = _setting(
        8_000_000, "environment steps per member over which the learning rate falls; 0 for constant", least=0
    )
    adam_eps: float = _setting(1e-5, "Adam epsilon", above=0)
    clip_norm: float | tuple[float, ...] = _setting(
        10.0, "largest gradient norm of a member; one value, or per member", above=0, per_member=True
    )
    sync_every: int = _setting(
        30, "updates between hard copies to the target network; unused when tau is given", least=1
    )
    tau: float | None = _setting(
        None, "step of the soft target update made after each update; none for hard copies", above=0, most=1
    )
    ema_decay: float = _setting(
        0.999,
        "share of its old value that the running average of the weights keeps at each update; the average is what "
        "evaluation plays with; 0 for the newest weights",
        least=0,
        below=1,
    )

    epsilon_start: float = _setting(1.0, "share of random actions at step 0", least=0, most=1)
    epsilon_end: float | tuple[float, ...] = _setting(
        0.4, "share of random actions after the decay; one value, or per member as lr", least=0, most=1, per_member=True
    )
    epsilon_decay_steps: int = _setting(
        400_000, "environment steps per member over which epsilon falls linearly", least=0
    )
    epsilon_ladder: float = _setting(
        5.0, "environment e of E acts with epsilon^(1 + ladder * e / (E - 1)); 0 gives all the same", least=0
    )

    pbt_every: int = _setting(
        0,
        "steps per member between events of population based training (docs/guides/populations.md); 0 for none",
        least=0,
    )
    pbt_fraction: float = _setting(
        0.25,
        "share of members, the worst, that become copies of one of the best, as many; at least one each",
        above=0,
        most=0.5,
    )
    pbt_score: str = _setting(
        "train",
        "what is best: train, the recent training episodes, or eval, a greedy evaluation at each event",
        choices=("train", "eval"),
    )
    pbt_explore: tuple[str, ...] = _setting(
        ("lr",), "hyper-parameters that are copied and changed: some of lr, gamma, epsilon_end, clip_norm"
    )
    pbt_perturb: float = _setting(
        1.25, "factor, or its inverse, on a copied hyper-parameter (on 1 - gamma for gamma)", above=0
    )
    pbt_resample: float = _setting(
        0.25,
        "probability of drawing it anew, between the members' initial values, instead of perturbing it",
        least=0,
        most=1,
    )

    eval_every: int = _setting(
        500_000, "environment steps per member between evaluations; 0 for none before the end", least=0
    )
    eval_episodes: int = _setting(64, "greedy episodes per member in each of those evaluations", least=1)
    final_eval_episodes: int = _setting(
        256, "greedy episodes per member in the evaluation at the end; 0 for none", least=0
    )
    eval_max_steps: int = _setting(10_000, "steps after which an evaluation episode that does not end is cut", least=1)
    log_every: int = _setting(
        100_000, "environment steps per member between rows of metrics.csv; evaluations have rows too", least=1
    )
    checkpoint_every: int = _setting(
        2_000_000, "environment steps per member between checkpoints; 0 for one at the end only", least=0
    )
    keep_checkpoints: int = _setting(2, "complete checkpoints kept", least=1)
    run_dir: str | None = _setting(None, "folder of the run; none for runs/<world>-<time>")
    wandb: str | None = _setting(
        None, "project on Weights & Biases to send the records to as well (pip install wandb); none for no such thing"
    )

    def __post_init__(self) -> None:
        for f in fields(self):
            object.__setattr__(self, f.name, converted(f, getattr(self, f.name)))
        in_range(self.__dataclass_fields__["members"], self.members)  # a spread makes this many values
        for f in fields(self):
            if isinstance(value := getattr(self, f.name), Spread):
                object.__setattr__(self, f.name, value.values(f.name, self.members, self.seed))
            in_range(f, getattr(self, f.name))
        validate(self)

    # ---- where values come from -------------------------------------------------------------------------------------

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], *, source: str = "configuration") -> Config:
        """The defaults, with a preset over them, and ``values`` over both.

        Args:
            values: settings by name. The key ``preset`` names the preset; without it that is ``fast``.
            source: where the values come from, for errors.

        Returns:
            The settings.

        Raises:
            ValueError: a key is not a setting, or a value is wrong.
        """
        reject_unknown(values, source)
        return cls(**with_preset(values, {f.name: f.default for f in fields(cls)}))

    @classmethod
    def from_preset(cls, name: str, **values: Any) -> Config:
        """A preset with ``values`` over it.

        Args:
            name: ``drqn``, ``r2d2`` or ``fast`` (docs/guides/presets.md).
            values: settings by name.

        Returns:
            The settings.

        Raises:
            ValueError: there is no such preset, a key is not a setting, or a value is wrong.
        """
        return cls.from_dict({**values, "preset": name}, source="arguments")

    @classmethod
    def from_yaml(cls, path: str | Path, overrides: Mapping[str, Any] | None = None) -> Config:
        """The settings in a YAML file, with ``overrides`` over them. Only the result has to be consistent.

        Args:
            path: the file.
            overrides: settings by name, which win over the file.

        Returns:
            What `from_dict` makes of both.

        Raises:
            ValueError: the file cannot be read, a key is not a setting, or a value is wrong.
        """
        return cls.from_dict({**read_yaml(path), **(overrides or {})}, source=str(path))

    def to_dict(self) -> dict[str, Any]:
        """The settings as plain values, with lists instead of tuples, as YAML and checkpoints hold them."""
        return {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self).items()}

    def to_yaml(self, path: str | Path) -> None:
        """Write all settings to a file, each under its group's heading and below its meaning.

        Raises:
            OSError: the file cannot be written.
        """
        lines = []
        values = self.to_dict()
        for f in fields(self):
            if f.name in GROUPS:
                lines += ["", f"# ---- {GROUPS[f.name]}"]
            value = yaml.safe_dump(values[f.name], default_flow_style=True, width=1000).removesuffix("...\n").strip()
            lines += [f"# {f.metadata['meaning']}", f"{f.name}: {value}"]
        with replacing(path) as file:
            file.write("\n".join(lines).lstrip() + "\n")

    # ---- what follows from the settings -----------------------------------------------------------------------------

    @property
    def window_stride(self) -> int:
        """Steps between the starts of stored sequences: `stride`, or its default for these windows."""
        S, L = self.seq_len, self.burn_in
        return max(1, min(S // 2, S - L)) if self.stride is None else self.stride

    @property
    def is_town(self) -> bool:
        """Whether the world is the Town."""
        return self.env == TOWN_ID

    @property
    def training_args(self) -> dict[str, Any]:
        """The arguments of the training worlds, before any stage of the curriculum changes them."""
        return {**WORLD_DEFAULTS.get(self.env, {}), **TRAINING_DEFAULTS.get(self.env, {}), **self.env_args}

    @property
    def evaluation_args(self) -> dict[str, Any]:
        """The arguments of the evaluation worlds. ``eval_env_args`` win over what evaluation changes by itself."""
        world = {**WORLD_DEFAULTS.get(self.env, {}), **self.env_args}
        return {**world, **EVALUATION_DEFAULTS.get(self.env, {}), **self.eval_env_args}

    @property
    def stages(self) -> list[tuple[int, dict[str, Any]]]:
        """The stages of training in order: the first step of each, and its arguments of the training worlds.

        The first stage begins at step 0.
        """
        given = self.curriculum
        texts = CURRICULUM_DEFAULTS.get(self.env, ()) if given is None else () if given == ("off",) else given
        stages = [parse_stage(text) for text in texts]
        if given is None:
            stages = [(n, {k: v for k, v in args.items() if k not in self.env_args}) for n, args in stages]
        if not stages or stages[0][0] > 0:
            stages.insert(0, (0, {}))
        return [(first, {**self.training_args, **args}) for first, args in stages]

    @property
    def trained_per_update(self) -> int:
        """The transitions per member that one update trains on."""
        return self.batch_size * (self.seq_len - self.burn_in)

    @property
    def last_step(self) -> int:
        """The step of a member at which a run ends: `total_steps`, or a little more, since steps come E at a time."""
        E = self.num_envs
        return (self.total_steps + E - 1) // E * E

    def updates_after(self, env_steps: int) -> int:
        """How many updates of each member the replay ratio calls for after ``env_steps`` steps of it."""
        return max(0, int((env_steps - self.learning_starts) * self.replay_ratio / self.trained_per_update))

    def per_member(self, name: str) -> list[float]:
        """The values of a setting, one for each of P members.

        Args:
            name: a setting in ``PER_MEMBER``.
        """
        value = getattr(self, name)
        return list(value) if isinstance(value, tuple) else [value] * self.members


PER_MEMBER = tuple(f.name for f in fields(Config) if f.metadata["per_member"])
"""The settings that may differ between members."""


class _Meanings:
    """The docstring of `Config`: its own text, and every setting below it. It is put together when it is first read."""

    def __init__(self, text: str) -> None:
        self._text = text

    def __get__(self, instance: object, owner: type) -> str:
        about, raises, errors = inspect.cleandoc(self._text).partition("Raises:")
        return "\n".join([f"{about}Args:", *map(_described, fields(Config)), "", f"{raises}{errors}"])


def _described(f: Field[Any]) -> str:
    """A setting, as an entry of a docstring's ``Args``."""
    default, allowed = shown({} if f.default is MISSING else f.default), f.metadata["range"]
    words = "" if allowed.choices else allowed.words  # the meaning already names the choices
    facts = f"{words[:1].upper()}{words[1:]}; default {default}" if words else f"Default {default}"
    text = f"{f.name} ({f.type}): {f.metadata['meaning']}. {facts}."
    return textwrap.fill(text, 110, initial_indent=" " * 4, subsequent_indent=" " * 8)


Config.__doc__ = cast("str", _Meanings(Config.__doc__ or ""))


def validate(c: Config) -> None:
    """Check settings against each other. Each of them lies in its own range already.

    Raises:
        ValueError: a setting does not fit the others. The message names the first such setting, its value and what was
            expected.
    """

    def require(ok: bool, name: str, wanted: str) -> None:
        if not ok:
            raise ValueError(f"{name} is {shown(getattr(c, name))}; expected {wanted}")

    def every(name: str) -> tuple[float, ...]:
        value = getattr(c, name)
        return value if isinstance(value, tuple) else (value,)

    for name in PER_MEMBER:
        value = getattr(c, name)
        fits = not isinstance(value, tuple) or len(value) == c.members
        require(fits, name, f"one value, or {c.members} (one per member)")
    require(c.pbt_every == 0 or c.members >= 2, "members", "at least 2 for population based training (pbt_every)")
    some = len(c.pbt_explore) > 0 and set(c.pbt_explore) <= set(PER_MEMBER)
    require(some, "pbt_explore", f"some of {', '.join(PER_MEMBER)}")
    if c.pbt_every and "gamma" in c.pbt_explore:
        require(all(v < 1 for v in every("gamma")), "gamma", "below 1 where pbt_explore names it")
    if c.pbt_every and "epsilon_end" in c.pbt_explore:
        require(all(v > 0 for v in every("epsilon_end")), "epsilon_end", "above 0 where pbt_explore names it")
    steps = [first for first, _ in c.stages]
    require(steps == sorted(set(steps)), "curriculum", "stages in the order of their steps")
    require(re.fullmatch(r"cpu|cuda(:\d+)?", c.device) is not None, "device", "cpu, cuda or cuda:N")
    require(c.cell == "lstm", "cell", "lstm, since other cells (GRU among them) are not supported")
    require(c.layers == 1, "layers", "1, since stacked recurrent layers are not supported")
    require(not (c.workers and c.is_town), "workers", f"0 for {TOWN_ID}, which steps all environments at once")
    require(c.network != "spatial" or c.is_town, "network", f"auto, mlp or conv for worlds other than {TOWN_ID}")
    if c.conv is not None:
        parse_convolutions(c.conv)
    for name in ("last_action", "last_reward"):
        fits = c.network != "spatial" or not getattr(c, name)
        require(fits, name, "false with network=spatial, which reads the Town's own observation; mlp takes it")
    require(c.lr_decay == "linear" or c.lr_end > 0, "lr_end", "above 0 with lr_decay=exponential")
    require(c.burn_in < c.seq_len, "burn_in", f"below seq_len={c.seq_len}")
    most = c.seq_len - c.burn_in
    require(c.stride is None or c.stride <= most, "stride", f"1 to seq_len - burn_in = {most}, or none")
    window = c.num_envs * (c.seq_len + 1)
    at_least = f"at least num_envs * (seq_len + 1) = {window}, one window per environment"
    require(c.capacity >= window, "capacity", at_least)
    require(c.learning_starts >= window, "learning_starts", at_least)


def reject_unknown(values: Mapping[str, Any], source: str) -> None:
    """Refuse keys that are no settings.

    Args:
        values: settings by name.
        source: where they come from, for the error.

    Raises:
        ValueError: a key is no setting. The message gives the setting whose name is nearest.
    """
    names = ["preset", *(f.name for f in fields(Config))]
    for key in values:
        if key not in names:
            near = difflib.get_close_matches(shown(key), names, n=1, cutoff=0.5)
            hint = f"; did you mean {near[0]!r}?" if near else f"; settings: {', '.join(names)}"
            raise ValueError(f"{source}: {shown(key)} is not a setting{hint}")


def read_yaml(path: str | Path) -> dict[str, Any]:
    """The settings in a YAML file. Only their names are checked.

    Returns:
        Settings by name; empty for an empty file.

    Raises:
        ValueError: the file cannot be read, or holds something else; the message names it.
    """
    try:
        values = plain_yaml.read_mapping(path, may_be_empty=True)
    except OSError as error:
        raise ValueError(f"{path} cannot be read ({error.strerror}); expected a file of settings") from None
    reject_unknown(values, str(path))
    numeric = {f.name for f in fields(Config) if "str" not in kind_of(f)[0]}
    return {k: _number(v) if k in numeric and isinstance(v, str) else v for k, v in values.items()}


def _number(text: str) -> Any:
    """A string as the number that it spells, else as it is. YAML 1.1 reads 1e-3, without a point, as a string."""
    try:
        return scalar(text)
    except ValueError:
        return text
