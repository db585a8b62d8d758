"""Sequence replay: each environment's observations and actions are one stream, which is cut into windows when sampled.

Every environment of every member has a ring of T steps. Step t of a stream holds observation t, whether it opens an
episode, the action taken on it and what the world returned. Windows of S transitions (S + 1 observations) start every
`stride` steps and run across the ends of episodes, which `reset` and `mask` show to the learner. So an episode of any
length is trained on whole, in proportion to its length and without padding. The recurrent state is stored only before
the first observation of a window (R2D2, Kapturowski et al. 2019). `sampling` draws the windows.

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
from .sampling import ReplaySample, draw_windows

log = logging.getLogger(__name__)

REPLAY_STREAM = 2
"""The number of the Philox stream, among a member's, that windows are drawn from."""

_GIVEN = {"obs": torch.float32, "action": torch.int64, "reward": torch.float32}  # the other fields are flags


class ReplaySize(NamedTuple):
    """What a buffer of given arguments holds.

    Attributes:
        ring: T, the steps per environment.
        windows: K * E, the window slots per member.
        nbytes: the memory of all members, in bytes.
    """

    ring: int
    windows: int
    nbytes: int


class SequentialReplayBuffer:
    """Streams of P x E environments in preallocated rings, sampled as windows of S + 1 observations.

    The memory needed is logged before it is allocated; `measure` tells it beforehand.

    Args:
        members: P.
        num_envs: E.
        capacity: transitions per member. T is capacity // E, rounded down to a multiple of `stride`.
        obs_size: how many numbers an observation has.
        n_actions: A, at least 1.
        hidden_size: H.
        seq_len: S.
        seeds: one int per member. A member's draws depend on its seed and the number of samples drawn, but not on P.
        stride: the steps between window starts, in 1..S; None for half a window. With burn-in L, a stride of at most
            S - L trains on every transition.
        prioritised: whether windows are drawn in proportion to priority**alpha instead of uniformly.
        alpha: the exponent of the priority, in [0, 1].
        beta: the exponent of the importance weights, in [0, 1]. It may be written between samples, to anneal it.
        store_legal: whether masks of legal actions are kept; with False samples carry None.
        device: where steps, priorities and samples live. On a GPU, torch's own operations take the place of the
            compiled ones, and neither sampling nor new priorities wait for it.

    Raises:
        ValueError: an argument is out of its range, or the capacity does not hold one window per environment. The
            message names the argument.
        MemoryError: the device does not have that much memory; the message gives the sizes.
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
            raise MemoryError(f"{what}; expected at most the {memory / 2**20:,.1f} MiB of {where} (lower capacity)")
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
        self._start = zeros(states, dtype=torch.int64) - 1  # the slot's window, by its first step; -1 for none
        self._max_priority = zeros(members, dtype=torch.float64) + 1
        # these two follow from the calls alone, so they are on the CPU and can be read without waiting for a device
        self._count = torch.zeros(streams, dtype=torch.int64)  # steps ever written to each stream
        self._closed = torch.zeros(streams, dtype=torch.bool)  # whether the next step must open an episode
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
        """The ring length, the window slots and the bytes of a buffer, which is not allocated.

        The arguments are those of the class.

        Raises:
            ValueError: an argument is out of its range; the message names it.
        """
        sizes = (("members", members), ("num_envs", num_envs), ("capacity", capacity), ("obs_size", obs_size))
        for name, value in (*sizes, ("n_actions", n_actions), ("hidden_size", hidden_size), ("seq_len", seq_len)):
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ValueError(f"{name} is {value!r}; expected an int of at least 1")
        every = _stride(stride, seq_len)
        ring = capacity // num_envs // every * every
        if ring < seq_len + 1:
            least = num_envs * (-(-(seq_len + 1) // every) * every)
            raise ValueError(
                f"capacity is {capacity}, which gives {num_envs} environments {ring} steps each (a multiple of stride "
                f"{every}), but a window takes {seq_len + 1}; expected at least {least}"
            )
        windows = num_envs * (ring // every)
        per_step = 4 * obs_size + 4 + 4 + 3 + (n_actions if store_legal else 0)
        per_window = 2 * 4 * hidden_size + 8 + 8
        return ReplaySize(ring, windows, members * (num_envs * ring * per_step + windows * per_window))

    def __len__(self) -> int:
        """The steps held per member, of the member that holds fewest."""
        return int(self._count.clamp(max=self.ring).view(self.members, -1).sum(1).min())

    @property
    def windows(self) -> Tensor:
        """How many complete windows each member holds, ``[P]`` int64."""
        count = self._count.numpy()
        first = np.maximum(count - self.ring, 0)  # the first step still held
        last = count - 1 - self.seq_len  # the last step at which a complete window starts
        held = np.maximum(last // self.stride - (first - 1) // self.stride, 0)
        return torch.from_numpy(held.reshape(self.members, -1).sum(1))

    @property
    def ready(self) -> bool:
        """Whether every member holds a window."""
        return bool((self.windows > 0).all())

    def missing(self) -> str:
        """What is missing before `sample` can be called, in words; "" where nothing is."""
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
        """Append one time step to all streams: what was seen, and what came of the action taken on it.

        Args:
            obs: ``[P, E, obs_size]`` float32, finite.
            reset: ``[P, E]`` bool, whether the observation is the first of an episode.
            legal: ``[P, E, A]`` bool, or None for all legal.
            h: ``[P, E, H]`` float32, with `c` the state that was acted with, before the observation.
            c: ``[P, E, H]`` float32.
            action: ``[P, E]`` int.
            reward: ``[P, E]`` float.
            terminated: ``[P, E]`` bool, whether the episode truly ended, rather than being truncated.
            mask: ``[P, E]`` bool, False where the observation was an episode's final one, so that the step only reset
                the world (NEXT_STEP autoreset; `add_final` stores what the other modes show).

        Raises:
            ValueError: an argument does not fit. The message names it, and nothing has been stored.
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
        """Append the final observations of episodes whose next ones have begun.

        This is for worlds that show both in one step. Call it right after the `add` of the transition that led to them.
        Only the streams of those episodes grow. Nobody acts on these rows, so they are masked.

        Args:
            ended: ``[P, E]`` bool, true for n streams.
            obs: ``[n, obs_size]`` float32, finite, member by member.
            legal: ``[n, A]`` bool, or None for all legal.
            h: ``[P, E, H]`` float32, with `c` the state before these observations.
            c: ``[P, E, H]`` float32.

        Raises:
            ValueError: an argument does not fit. The message names it, and nothing has been stored.
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
        """Append a whole episode from elsewhere to one stream. Windows run across episodes that are shorter than they.

        The same stream may receive live steps later, if they begin with an episode's first observation. A live episode
        that an added one interrupts loses its last transition, which is masked.

        Args:
            member: the member that gets the episode.
            obs: ``[n+1, obs_size]`` float32, the final observation included.
            action: ``[n]`` int.
            reward: ``[n]`` float.
            terminated: whether the episode truly ended with the last action, or was cut.
            env: the member's stream; None for the one that has received least.
            legal: ``[n+1, A]`` bool, or None for all legal.
            h: ``[n+1, H]`` float32, with `c` the states before each observation; None for zeros. With zeros, use
                burn-in where windows start in the middle of episodes.
            c: ``[n+1, H]`` float32, or None.

        Raises:
            ValueError: an argument does not fit. The message names it, and nothing has been stored.
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
        """Append a zero for the final observation, on which no action was taken."""
        return {name: torch.cat((v, torch.zeros_like(v[:1]))) for name, v in data.items()}

    def _check(self, steps: Mapping[str, Any], lead: tuple[int, ...]) -> dict[str, Tensor]:
        """`steps` as tensors of the stored types and shapes ``[*lead, ...]``; ValueError names what does not fit."""
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
        """Append steps to streams.

        Args:
            first: the first stream.
            streams: how many streams there are, from the first on.
            n: how many steps each of them gets.
            data: fields ``[streams, n, ...]`` or alike, as `_check` returns them.
            closes: whether the next step of these streams must open an episode.
        """
        tables = ReplayTables(self._start, self._priority, self._count, self._closed, self._max_priority)
        sizes = {"n": n, "ring": self.ring, "stride": self.stride, "seq_len": self.seq_len}
        steps = ReplaySteps._make(data.get(name) for name in ReplaySteps._fields)
        self._loops.replay_write(self._stores, tables, steps, first=first, streams=streams, **sizes, closes=closes)

    # -- sampling ------------------------------------------------------------------------------------------------------

    def sample(self, batch_size: int) -> ReplaySample:
        """Draw windows for every member, with replacement, as `sampling.draw_windows` does.

        Args:
            batch_size: B, the windows per member.

        Raises:
            ValueError: a member does not hold a complete window yet (the message says what is missing), or batch_size
                is below 1.
        """
        return self.windows_at(devices.upload(self.draw(batch_size), self.device))

    def draw(self, batch_size: int) -> Tensor:
        """The uniform numbers that decide the next sample.

        Args:
            batch_size: B, the windows per member.

        Returns:
            ``[P, B]`` float64 in [0, 1), on the CPU.

        Raises:
            ValueError: a member does not hold a complete window yet, or batch_size is below 1.
        """
        if batch_size < 1:
            raise ValueError(f"batch_size is {batch_size}; expected at least 1")
        lacking = self.missing()
        if lacking:
            raise ValueError(f"replay cannot be sampled yet: {lacking}")
        self._samples += 1
        return torch.from_numpy(_C.philox_uniform(self._keys, REPLAY_STREAM, self._samples - 1, batch_size))

    def windows_at(self, draws: Tensor) -> ReplaySample:
        """The sample that uniform numbers point to. Nothing here waits for the device.

        Args:
            draws: ``[P, B]`` float64 in [0, 1), on the buffer's device.
        """
        starts, priority = (table.view(self.members, -1) for table in (self._start, self._priority))
        slot, start, weight = draw_windows(
            starts, priority if self.prioritised else None, draws, alpha=self.alpha, beta=self.beta
        )
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
        """Give the windows of a sample new priorities.

        A slot that another window took since then keeps that window's priority. A window that was drawn twice takes one
        of its values.

        Args:
            sample: the windows.
            priority: ``[P, B]``, one value for each.
            good: a scalar bool on the buffer's device; where it is False, nothing is changed. With it, nothing is
                checked here, so that nobody waits for the device.

        Raises:
            ValueError: the shape is another one or, without `good`, values are negative or not finite. The message
                names the members, and nothing has been changed.
        """
        if tuple(priority.shape) != tuple(sample.slot.shape):
            raise ValueError(f"priority has shape {list(priority.shape)}; expected {list(sample.slot.shape)}")
        if good is None:
            # these are a few hundred numbers, for which NumPy, on the same memory, costs a fraction of torch's calls
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
        """Everything that a bit-exact continuation needs, without the steps that were never written.

        Tensors may be the buffer's own rather than copies.
        """
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
        """Take over what `state_dict` of a buffer with the same arguments returned.

        Raises:
            ValueError: something is missing or differs. The message names it, and nothing has been changed.
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
