"""Sequence replay: what each environment saw and did, one unbroken stream that is cut into windows when sampled.

Every environment of every member has a ring of T steps. Step t of a stream holds observation t, whether it opens an
episode, the action taken on it and what the world returned. Windows of S transitions (S + 1 observations) start every
`stride` steps and run across the ends of episodes; `reset` and `mask` tell the learner where those are, so an episode
of any length is trained on whole, in proportion to its length, with no padding. The recurrent state before a window's
first observation is stored (R2D2, Kapturowski et al. 2019), and there alone; so is the window's priority (prioritised
replay, Schaul et al. 2016).

Symbols: P members, E environments per member, T ring length, S transitions in a window, B windows in a batch,
K = T / stride window slots of a stream, H LSTM units, A actions.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from .. import _C
from ..ops import reference
from ..ops import replay as compiled
from ..ops.types import ReplaySteps, ReplayStores, ReplayTables
from ..support import devices
from .members import check_seeds

log = logging.getLogger(__name__)

REPLAY_STREAM = 2
"""Which of a member's Philox streams windows are drawn from."""

_GIVEN = {"obs": torch.float32, "action": torch.int64, "reward": torch.float32}  # the other fields are flags

PRIORITY_FLOOR = 1e-6
"""Added to every priority, so that a window without error can still be drawn."""


class ReplaySample(NamedTuple):
    """B windows for each of P members."""

    obs: Tensor  #          [P, B, S+1, obs_size] float32
    h0: Tensor  #           [P, B, H] float32, the state before observation 0
    c0: Tensor  #           [P, B, H]
    action: Tensor  #       [P, B, S] int64
    reward: Tensor  #       [P, B, S] float32
    terminated: Tensor  #   [P, B, S] bool
    reset: Tensor  #        [P, B, S+1] bool
    mask: Tensor  #         [P, B, S] bool
    weight: Tensor  #       [P, B] float32, importance-sampling weights (ones when uniform)
    legal: Tensor | None  # [P, B, S+1, A] bool
    slot: Tensor  #         [P, B] int64, where the window's priority lives: env * K + (start % T) / stride
    start: Tensor  #        [P, B] int64, the stream step at which the window starts


class ReplaySize(NamedTuple):
    """What a buffer of given arguments holds."""

    ring: int  #    T, steps per environment
    windows: int  # K * E, window slots per member
    nbytes: int  #  memory of all members


class SequentialReplayBuffer:
    """Streams of P x E environments in preallocated rings, sampled as windows of S + 1 observations.

    Args:
        members, num_envs: P, E.
        capacity: transitions per member. T = capacity // E rounded down to a multiple of `stride`.
        obs_size, n_actions, hidden_size: widths of what is stored.
        seq_len: S.
        stride: steps between window starts, 1..S; None: half a window. With burn-in L, choose at most S - L to train
            on every transition.
        prioritised: draw windows in proportion to priority**alpha instead of uniformly.
        alpha: exponent of the priority in [0, 1]. beta: exponent of the importance weights in [0, 1]; may be written
            between samples, to anneal it.
        seeds: one int per member; a member's draws depend on its seed and the number of samples drawn, not on P.
        store_legal: keep legal-action masks; without, samples carry None.
        device: where steps, priorities and samples live. On a GPU, torch's own operations take the place of the
            compiled ones, and neither sampling nor new priorities wait for it.

    The memory needed is logged before it is allocated; `measure` tells it beforehand.

    Raises:
        ValueError: an argument is out of its range, or the capacity does not hold one window per environment; the
            argument is named.
        MemoryError: the machine does not have that much; the sizes are given.
    """

    def __init__(
        self,
        *,
        members: int,
        num_envs: int,
        capacity: int,
        obs_size: int,
        n_actions: int,
        hidden_size: int,
        seq_len: int,
        seeds: Sequence[int],
        stride: int | None = None,
        prioritised: bool = False,
        alpha: float = 0.6,
        beta: float = 0.4,
        store_legal: bool = True,
        device: torch.device | str = "cpu",
    ):
        check_seeds(seeds)
        if len(seeds) != members:
            raise ValueError(f"seeds holds {len(seeds)} values; expected one per member, {members}")
        if not 0.0 <= alpha <= 1.0:
            raise ValueError(f"alpha is {alpha}; expected a value in [0, 1]")
        if not 0.0 <= beta <= 1.0:
            raise ValueError(f"beta is {beta}; expected a value in [0, 1]")
        sizes = {"members": members, "num_envs": num_envs, "capacity": capacity, "obs_size": obs_size}
        sizes |= {"n_actions": n_actions, "hidden_size": hidden_size, "seq_len": seq_len}
        size = self.measure(**sizes, stride=stride, store_legal=store_legal)
        self.members, self.num_envs, self.device = members, num_envs, devices.resolve(str(device))
        self.obs_size, self.n_actions, self.hidden_size = obs_size, n_actions, hidden_size
        self.seq_len, self.stride = seq_len, _stride(stride, seq_len)
        self.ring, self.nbytes = size.ring, size.nbytes
        self.prioritised, self.alpha, self.beta = prioritised, alpha, beta
        self.seeds = [int(s) for s in seeds]
        self._keys = np.asarray(self.seeds, dtype=np.uint64)
        self._slots = self.ring // self.stride  # K
        self._loops: Any = compiled if self.device.type == "cpu" else reference

        what = f"replay: {members} x {num_envs} streams of {self.ring} steps, {size.nbytes / 2**20:,.1f} MiB"
        memory = devices.total_memory(self.device)
        if size.nbytes > memory:
            where = devices.device_name(self.device)
            raise MemoryError(f"{what}; {where} has {memory / 2**20:,.1f} MiB: lower capacity")
        log.info(what)
        streams, steps, states = members * num_envs, members * num_envs * self.ring, members * size.windows

        def zeros(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
            return torch.zeros(*shape, dtype=dtype, device=self.device)

        try:
            self._data: dict[str, Tensor] = {  # one row per step of a stream
                "obs": zeros(steps, obs_size),
                "action": zeros(steps, dtype=torch.int32),
                "reward": zeros(steps),
                "terminated": zeros(steps, dtype=torch.bool),
                "reset": zeros(steps, dtype=torch.bool),
                "mask": zeros(steps, dtype=torch.bool),
            }
            if store_legal:
                self._data["legal"] = zeros(steps, n_actions, dtype=torch.bool)
            self._h = zeros(states, hidden_size)  # one row per window slot
            self._c = zeros(states, hidden_size)
        except RuntimeError as error:
            raise MemoryError(f"{what}; allocation failed: {error}") from error
        self._priority = zeros(states, dtype=torch.float64)
        self._start = zeros(states, dtype=torch.int64) - 1  # the slot's window, -1: none complete
        self._max_priority = zeros(members, dtype=torch.float64) + 1
        # these two follow from the calls alone; on the CPU they tell how much is held without asking a device
        self._count = torch.zeros(streams, dtype=torch.int64)  # steps ever written to each stream
        self._closed = torch.zeros(streams, dtype=torch.bool)  # the next step must open an episode
        self._samples = 0
        self._fields = {name: (tuple(v.shape[1:]), _GIVEN.get(name, torch.bool)) for name, v in self._data.items()}
        self._fields |= dict.fromkeys(("h", "c"), ((hidden_size,), torch.float32))
        stores: dict[str, Tensor | None] = {**self._data, "h": self._h, "c": self._c}
        self._stores = ReplayStores._make(stores.get(name) for name in ReplayStores._fields)

    # -- size ----------------------------------------------------------------------------------------------------------

    @staticmethod
    def measure(
        *,
        members: int,
        num_envs: int,
        capacity: int,
        obs_size: int,
        n_actions: int,
        hidden_size: int,
        seq_len: int,
        stride: int | None = None,
        store_legal: bool = True,
    ) -> ReplaySize:
        """Ring length, window slots and bytes of a buffer, without allocating it.

        Raises:
            ValueError: as the class does.
        """
        sizes = (("members", members), ("num_envs", num_envs), ("capacity", capacity), ("obs_size", obs_size))
        for name, value in (*sizes, ("n_actions", n_actions), ("hidden_size", hidden_size), ("seq_len", seq_len)):
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ValueError(f"{name} is {value!r}; expected an int >= 1")
        every = _stride(stride, seq_len)
        ring = capacity // num_envs // every * every
        if ring < seq_len + 1:
            least = num_envs * (-(-(seq_len + 1) // every) * every)
            raise ValueError(
                f"capacity is {capacity}: {num_envs} environments of {ring} steps (a multiple of stride {every}), but "
                f"a window takes {seq_len + 1}; expected at least {least}"
            )
        windows = num_envs * (ring // every)
        per_step = 4 * obs_size + 4 + 4 + 3 + (n_actions if store_legal else 0)
        per_window = 2 * 4 * hidden_size + 8 + 8
        return ReplaySize(ring, windows, members * (num_envs * ring * per_step + windows * per_window))

    def __len__(self) -> int:
        """Steps held per member (of the member that holds fewest)."""
        return int(self._count.clamp(max=self.ring).view(self.members, -1).sum(1).min())

    @property
    def windows(self) -> Tensor:
        """How many complete windows each member holds, int64 [P]."""
        count = self._count.numpy()
        first = np.maximum(count - self.ring, 0)  # step still held
        last = count - 1 - self.seq_len  # step that a complete window starts at
        held = np.maximum(last // self.stride - (first - 1) // self.stride, 0)
        return torch.from_numpy(held.reshape(self.members, -1).sum(1))

    @property
    def ready(self) -> bool:
        """Whether every member holds a window."""
        return bool((self.windows > 0).all())

    def missing(self) -> str:
        """In words, how much is missing before `sample` can be called; "" when nothing is."""
        short = np.flatnonzero(self.windows.numpy() == 0).tolist()
        if not short:
            return ""
        longest = self._count.view(self.members, -1).amax(1)
        p = min(short, key=lambda m: int(longest[m]))
        need = self.seq_len + 1
        return (
            f"member {p} holds {int(longest[p])} of the {need} steps of a first window in its longest stream; "
            f"{need - int(longest[p])} more are missing"
        )

    # -- writing -------------------------------------------------------------------------------------------------------

    def add(
        self,
        obs: Tensor | np.ndarray,
        reset: Tensor | np.ndarray,
        legal: Tensor | np.ndarray | None,
        h: Tensor,
        c: Tensor,
        action: Tensor | np.ndarray,
        reward: Tensor | np.ndarray,
        terminated: Tensor | np.ndarray,
        mask: Tensor | np.ndarray,
    ) -> None:
        """One time step of all streams: what was seen, and what came of the action taken on it.

        Args:
            obs: [P, E, obs_size], finite.
            reset: [P, E] bool, obs is the first of an episode.
            legal: [P, E, A] bool, or None for all legal.
            h, c: [P, E, H], the acting state *before* obs.
            action: [P, E] int; reward: [P, E] float; terminated: [P, E] bool, true end (not truncation).
            mask: [P, E] bool, False where obs was an episode's final one, so that the step only reset the world
                (NEXT_STEP autoreset; `add_final` stores what the other modes show).

        Raises:
            ValueError: an argument does not fit; it is named, and nothing has been stored.
        """
        P, E = self.members, self.num_envs
        steps = {"obs": obs, "reset": reset, "action": action, "reward": reward, "terminated": terminated, "mask": mask}
        steps |= {"h": h, "c": c}
        if legal is not None:
            steps["legal"] = legal
        data = self._check(steps, (P, E))
        self._write(0, P * E, 1, data)

    def add_final(
        self,
        ended: Tensor | np.ndarray,
        obs: Tensor | np.ndarray,
        legal: Tensor | np.ndarray | None,
        h: Tensor,
        c: Tensor,
    ) -> None:
        """One more row for each stream where `ended`: the final observation of an episode whose next has begun.

        For worlds that show both in one step; to be called right after the `add` of the transition that led to it. Only
        these streams grow. Nobody acts on the row: it is masked.

        Args:
            ended: [P, E] bool, true for K streams.
            obs: [K, obs_size], finite, member by member. legal: [K, A] bool, or None for all legal.
            h, c: [P, E, H], the acting state *before* these observations.

        Raises:
            ValueError: an argument does not fit; it is named, and nothing has been stored.
        """
        whole = self._check({"mask": ended, "h": h, "c": c}, (self.members, self.num_envs))
        which = whole["mask"].flatten().nonzero().flatten()
        lead = (len(which),)
        steps: dict[str, Any] = {"obs": obs} if legal is None else {"obs": obs, "legal": legal}
        never = torch.zeros(lead, dtype=torch.bool)
        steps |= {"action": never, "reward": never, "terminated": never, "reset": never, "mask": never}
        data = self._check(steps, lead)
        if not bool(data["obs"].isfinite().all()):
            raise ValueError("obs holds NaN or infinity; expected finite numbers")
        data |= {name: whole[name].flatten(0, 1)[devices.upload(which, whole[name].device)] for name in ("h", "c")}
        for k, stream in enumerate(which.tolist()):
            self._write(stream, 1, 1, {name: value[k : k + 1] for name, value in data.items()})

    def add_episode(
        self,
        member: int,
        obs: Tensor | np.ndarray,
        action: Tensor | np.ndarray | Sequence[int],
        reward: Tensor | np.ndarray | Sequence[float],
        *,
        terminated: bool,
        env: int | None = None,
        legal: Tensor | np.ndarray | None = None,
        h: Tensor | None = None,
        c: Tensor | None = None,
    ) -> None:
        """A whole episode from elsewhere, appended to one stream; episodes shorter than a window are joined up.

        Args:
            member: whose. env: which stream; None: the one that has received least.
            obs: [n+1, obs_size], the final observation included. action: [n] int. reward: [n] float.
            terminated: whether the episode truly ended with the last action, or was cut.
            legal: [n+1, A] bool or None.
            h, c: [n+1, H] states before each observation; zeros when not known (then use burn-in if windows start in
                the middle of episodes).

        The same stream may receive live steps later if they begin with an episode's first observation; a live episode
        that an added one interrupts loses its last transition (it is masked).

        Raises:
            ValueError: an argument does not fit; it is named, and nothing has been stored.
        """
        if not 0 <= member < self.members:
            raise ValueError(f"member is {member}; expected 0..{self.members - 1}")
        if env is None:
            env = int(self._count.view(self.members, -1)[member].argmin())
        if not 0 <= env < self.num_envs:
            raise ValueError(f"env is {env}; expected 0..{self.num_envs - 1} or None")
        n = len(action)
        if n < 1 or n + 1 > self.ring:
            raise ValueError(
                f"action holds {n} steps; expected 1..{self.ring - 1} (a stream holds {self.ring} observations)"
            )
        last = torch.arange(n + 1) == n
        steps: dict[str, Any] = {"obs": obs, "reset": torch.arange(n + 1) == 0, "mask": ~last}
        if legal is not None:
            steps["legal"] = legal
        data = self._check(steps, (n + 1,)) | self._pad_final(self._check({"action": action, "reward": reward}, (n,)))
        data["terminated"] = (torch.arange(n + 1) == n - 1) & terminated
        for name, value in (("h", h), ("c", c)):
            data |= self._check({name: torch.zeros(n + 1, self.hidden_size) if value is None else value}, (n + 1,))
        self._write(member * self.num_envs + env, 1, n + 1, data, closes=True)

    @staticmethod
    def _pad_final(data: dict[str, Tensor]) -> dict[str, Tensor]:
        """A zero entry for the final observation, on which no action was taken."""
        return {name: torch.cat((v, torch.zeros_like(v[:1]))) for name, v in data.items()}

    def _check(self, steps: Mapping[str, Any], lead: tuple[int, ...]) -> dict[str, Tensor]:
        """`steps` as tensors of the stored types and shapes [*lead, ...]; ValueError names what does not fit."""
        out = {}
        for name, value in steps.items():
            if name not in self._fields:
                raise ValueError(f"{name} is given to a buffer made with store_{name}=False; expected None")
            size, dtype = self._fields[name]
            tensor = torch.as_tensor(value)
            if tensor.shape != lead + size:
                raise ValueError(f"{name} has shape {list(tensor.shape)}; expected {[*lead, *size]}")
            if tensor.dtype != dtype:
                if dtype != torch.float32 and tensor.is_floating_point():
                    raise ValueError(f"{name} has dtype {tensor.dtype}; expected {dtype}")
                tensor = tensor.to(dtype)
            out[name] = tensor
        return out

    def _write(self, first: int, streams: int, n: int, data: Mapping[str, Tensor], *, closes: bool = False) -> None:
        """Appends n steps to each stream from `first` on: fields [streams, n, ...] or alike, as `_check` returns them.

        `closes`: the next step of these streams must open an episode.
        """
        tables = ReplayTables(self._start, self._priority, self._count, self._closed, self._max_priority)
        sizes = {"n": n, "ring": self.ring, "stride": self.stride, "seq_len": self.seq_len}
        steps = ReplaySteps._make(data.get(name) for name in ReplaySteps._fields)
        self._loops.replay_write(self._stores, tables, steps, first=first, streams=streams, **sizes, closes=closes)

    # -- sampling ------------------------------------------------------------------------------------------------------

    def sample(self, batch_size: int) -> ReplaySample:
        """B windows per member, drawn with replacement: uniformly, or in proportion to (priority + floor)**alpha.

        Importance weights (Schaul et al. 2016): (N * probability)**-beta over the member's N windows, divided by the
        largest in the member's batch; ones when uniform.

        Raises:
            ValueError: a member does not hold a complete window yet (it is said what is missing), or batch_size is
                below 1.
        """
        return self.windows_at(devices.upload(self.draw(batch_size), self.device))

    def draw(self, batch_size: int) -> Tensor:
        """What the next sample is made from: uniform numbers, float64 [P, B] on the CPU.

        Raises:
            ValueError: as `sample` does.
        """
        if batch_size < 1:
            raise ValueError(f"batch_size is {batch_size}; expected at least 1")
        lacking = self.missing()
        if lacking:
            raise ValueError(f"replay cannot be sampled yet: {lacking}")
        self._samples += 1
        return torch.from_numpy(_C.philox_uniform(self._keys, REPLAY_STREAM, self._samples - 1, batch_size))

    def windows_at(self, draws: Tensor) -> ReplaySample:
        """The sample that uniform numbers [P, B] on the buffer's device point to; nothing here waits for the device."""
        P = self.members
        starts = self._start.view(P, -1)  # [P, E*K]
        held = starts >= 0
        mass = held.double()
        if self.prioritised:
            mass *= (self._priority.view(P, -1) + PRIORITY_FLOOR) ** self.alpha
        edges = mass.cumsum(1)
        total = edges[:, -1:]
        # strictly below the total even after rounding, so that the slot found has mass
        point = torch.minimum(draws * total, torch.nextafter(total, torch.zeros_like(total)))
        slot = torch.searchsorted(edges, point, right=True)  # [P, B]
        start = starts.gather(1, slot)
        weight = torch.ones_like(draws)
        if self.prioritised:
            probability = mass.gather(1, slot) / total
            weight = (held.sum(1, keepdim=True) * probability) ** -self.beta
            weight /= weight.amax(1, keepdim=True)

        windows: ReplaySteps = self._loops.replay_windows(
            self._stores, slot, start, ring=self.ring, stride=self.stride, seq_len=self.seq_len
        )
        return ReplaySample(
            obs=windows.obs,
            h0=windows.h,
            c0=windows.c,
            action=windows.action,
            reward=windows.reward,
            terminated=windows.terminated,
            reset=windows.reset,
            mask=windows.mask,
            weight=weight.float(),
            legal=windows.legal,
            slot=slot,
            start=start,
        )

    def update_priorities(self, sample: ReplaySample, priority: Tensor, good: Tensor | None = None) -> None:
        """New priorities [P, B] for the windows of `sample`; one that was overwritten since keeps the new occupant's.

        A window drawn twice takes one of its values.

        Args:
            sample: the windows.
            priority: [P, B].
            good: a bool [] on the buffer's device; where it is False nothing is changed. With it nothing is checked
                here, so that nobody waits for the device.

        Raises:
            ValueError: the shape is another one or, without `good`, values are negative or not finite; the members
                are named, and nothing has been changed.
        """
        if tuple(priority.shape) != tuple(sample.slot.shape):
            raise ValueError(f"priority has shape {list(priority.shape)}; expected {list(sample.slot.shape)}")
        if good is None:
            # a few hundred numbers: NumPy, on the same memory, has a fraction of torch's cost per call
            value = priority.detach().double().cpu().numpy()
            fine = np.isfinite(value) & (value >= 0)
            if not fine.all():
                bad = np.flatnonzero(~fine.all(1)).tolist()
                raise ValueError(f"priority of member {bad} is negative or not finite; expected numbers of at least 0")
            if self.device.type == "cpu":
                members = np.arange(self.members)[:, None]
                index = sample.slot.numpy() + members * (self._slots * self.num_envs)
                current = self._start.numpy()[index] == sample.start.numpy()
                self._priority.numpy()[index[current]] = value[current]
                self._max_priority = torch.from_numpy(np.maximum(self._max_priority.numpy(), value.max(1)))
                return
            good = torch.ones((), dtype=torch.bool, device=self.device)
        self._write_priorities(sample, priority.detach().double(), good)

    def _write_priorities(self, sample: ReplaySample, value: Tensor, good: Tensor) -> None:
        members = torch.arange(self.members, device=self.device).unsqueeze(1)
        index = sample.slot + members * (self._slots * self.num_envs)
        keep = good & (self._start[index] == sample.start)
        self._priority[index] = torch.where(keep, value, self._priority[index])
        highest = torch.where(good, value.amax(1), 0.0)
        torch.maximum(self._max_priority, highest, out=self._max_priority)

    # -- checkpoints ---------------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Everything needed to go on bit for bit, without steps never written. Tensors may be shared, not copied."""
        filled = int(self._count.amax().clamp(max=self.ring))
        data = {name: v.view(-1, self.ring, *v.shape[1:])[:, :filled].contiguous() for name, v in self._data.items()}
        return {
            "data": data,
            **self._tables(),
            "samples": self._samples,
            "seeds": list(self.seeds),
            "layout": self._layout(),
        }

    def _tables(self) -> dict[str, Tensor]:
        names = ("h", "c", "priority", "start", "count", "closed", "max_priority")
        return {name: getattr(self, f"_{name}") for name in names}

    def _layout(self) -> dict[str, int]:
        names = ("members", "num_envs", "ring", "stride", "seq_len", "obs_size", "n_actions", "hidden_size")
        return {name: int(getattr(self, name)) for name in names}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Takes over what `state_dict` of a buffer with the same arguments returned.

        Raises:
            ValueError: something is missing or differs; it is named, and nothing has been changed.
        """
        mine = self.state_dict()
        if set(state) != set(mine) or set(state["data"]) != set(self._data):
            raise ValueError(f"replay state holds {sorted(state)}; expected {sorted(mine)}")
        for name, value in self._layout().items():
            if state["layout"].get(name) != value:
                raise ValueError(f"replay state has {name} {state['layout'].get(name)}; expected {value}")
        buffers = self._tables()
        for name, buffer in buffers.items():
            if state[name].shape != buffer.shape:
                raise ValueError(
                    f"replay state: {name} has shape {list(state[name].shape)}; expected {list(buffer.shape)}"
                )
        for name, buffer in buffers.items():
            buffer.copy_(state[name])
        for name, saved in state["data"].items():
            store = self._data[name].view(-1, self.ring, *self._data[name].shape[1:])
            store[:, : saved.shape[1]] = saved
        self._samples = int(state["samples"])
        self.seeds = [int(s) for s in state["seeds"]]
        self._keys = np.asarray(self.seeds, dtype=np.uint64)


def _stride(stride: int | None, seq_len: int) -> int:
    every = max(1, seq_len // 2) if stride is None else stride
    if isinstance(every, bool) or not isinstance(every, int) or not 1 <= every <= seq_len:
        raise ValueError(f"stride is {stride!r}; expected 1..seq_len = 1..{seq_len}, or None")
    return every
