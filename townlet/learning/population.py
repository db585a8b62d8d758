"""P recurrent Q-learning agents trained side by side: weights, target weights, Adam, and the state they act with.

All numbers of one kind lie in one flat float32 buffer ``[P, N]``, whose rows are the members. Named parameters are leaf
views into the online buffer, and their gradients are views into the gradient buffer. So clipping, Adam and target sync
are a handful of operations on whole buffers, whatever the network's layers are.

Symbols: P members, E environments per member, N numbers per member, H LSTM units, A actions.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .. import ops
from ..ops import reference
from ..ops.types import ActorParams, RecurrentQParams
from ..support import devices
from .members import check_seeds, per_member, refuse, require_finite, sums
from .networks import RecurrentNetwork, cut_memory

_ALIGN = 16  # floats, so that each parameter starts on a cache line


class VectorizedPopulation:
    """P members that share a network's architecture and nothing else, each of which acts in E environments of its own.

    A member alone follows the same course as among others, up to the rounding of batched products: initial weights and
    exploration depend on `seeds[p]` only, and clipping and Adam work per member.

    Args:
        network: sizes and functions (`RecurrentQNetwork`, `RecurrentSpatialQNetwork` or alike).
        seeds: one int per member; its length is P.
        num_envs: E.
        gamma: the discount per step in [0, 1], one number or one per member. The learner's TDSpec uses the same value.
        lr: Adam's step size, one number or one per member.
        adam_betas: Adam's decay rates (Kingma & Ba 2015).
        adam_eps: the offset of Adam's denominator.
        clip_norm: the largest global gradient norm of a member, one number or one per member; None for no clipping.
        ema_decay: the share of its old value that the running average of the weights keeps at each step, in [0, 1); 0
            for no average.
        chrono_span: as in `RecurrentQNetwork.init`. It is unused without memory, whose forget gate is shut.
        memory: False makes the memoryless control, in which h and c are zero before every step, in acting and in
            training.
        compute_dtype: the dtype of the learner's TDSpec, for which the target is packed.
        device: where weights, optimiser and acting state live.
        deferred: whether values that are not finite are noted on the device and reported by `check`, so that an update
            waits for nothing; an update that meets one changes no number. False raises at once. None stands for True on
            a GPU and False on the CPU.

    Attributes:
        online: name -> leaf parameter ``[P, ...]`` with `.grad` preset.
        target_network: name -> target weights ``[P, ...]``.
        averaged: name -> the weights to evaluate ``[P, ...]``. They are an exponential running average (Polyak &
            Juditsky 1992, in the form of Kingma & Ba 2015, section 7.2), which fluctuates less than the newest weights.
            Step n keeps min(ema_decay, n / (n + 9)) of it, so that early averages do not trail behind. Where ema_decay
            is 0, it is `online` itself.
        online_flat: the online weights, ``[P, N]`` float32.
        target_flat: the target weights, ``[P, N]`` float32.
        grad_flat: the gradients, ``[P, N]`` float32.
        adam_m: Adam's first moments, ``[P, N]`` float32.
        adam_v: Adam's second moments, ``[P, N]`` float32.
        average_flat: the averaged weights, ``[P, N]`` float32; None where ema_decay is 0.
        recurrent_grads: where in `grad_flat` the operator may leave the gradients of the LSTM and the head. None
            without memory, where the operator sees other weights than the parameters.
        packed_target: the target's weights in the form that `td_unroll` takes, which `sync_target` brings up to date.
        lr: ``[P]`` float32, as are `gamma` and `clip_norm`. New values may be written into the tensors between updates;
            a CUDA graph reads no other tensors.
        act_count: how often `act` was called.

    Raises:
        ValueError: an argument is out of its range; the message names it.
    """

    def __init__(
        self,
        network: RecurrentNetwork,
        seeds: Sequence[int],
        *,
        num_envs: int,
        gamma: float | Sequence[float] | Tensor = 0.99,
        lr: float | Sequence[float] | Tensor = 1e-3,
        adam_betas: tuple[float, float] = (0.9, 0.999),
        adam_eps: float = 1e-5,
        clip_norm: float | Sequence[float] | Tensor | None = 10.0,
        ema_decay: float = 0.0,
        chrono_span: int | None = None,
        memory: bool = True,
        compute_dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
        deferred: bool | None = None,
    ):
        check_seeds(seeds)
        if num_envs < 1:
            raise ValueError(f"num_envs is {num_envs}; expected at least 1")
        self.network = network
        self.seeds = [int(s) for s in seeds]
        self.members = len(self.seeds)
        self.num_envs = num_envs
        self.memory = memory
        self.compute_dtype = compute_dtype
        self.device = devices.resolve(str(device))
        self.deferred = self.device.type != "cpu" if deferred is None else deferred
        self.gamma = per_member("gamma", gamma, self.members)
        self.lr = per_member("lr", lr, self.members)
        self.clip_norm = None if clip_norm is None else per_member("clip_norm", clip_norm, self.members)
        self.adam_betas, self.adam_eps, self.ema_decay = adam_betas, adam_eps, ema_decay
        if not bool(((self.gamma >= 0) & (self.gamma <= 1)).all()):
            raise ValueError(f"gamma is {gamma}; expected values in [0, 1]")
        if not bool(((self.lr > 0) & self.lr.isfinite()).all()):
            raise ValueError(f"lr is {lr}; expected positive values")
        if self.clip_norm is not None and not bool((self.clip_norm > 0).all()):
            raise ValueError(f"clip_norm is {clip_norm}; expected positive values or None")
        if not 0.0 <= ema_decay < 1.0:
            raise ValueError(f"ema_decay is {ema_decay}; expected a value in [0, 1)")
        self.gamma, self.lr = self.gamma.to(self.device), self.lr.to(self.device)
        if self.clip_norm is not None:
            self.clip_norm = self.clip_norm.to(self.device)

        initial = network.init(self.seeds, chrono_span if memory else None)
        self._slots: dict[str, tuple[int, tuple[int, ...]]] = {}  # name -> (offset in a row, shape [P, ...])
        offset = 0
        for name, value in initial.items():
            self._slots[name] = (offset, tuple(value.shape))
            offset += -(-value[0].numel() // _ALIGN) * _ALIGN
        flat = [torch.zeros(self.members, offset, device=self.device) for _ in range(5)]
        self.online_flat, self.target_flat, self.grad_flat, self.adam_m, self.adam_v = flat
        self.adam_steps: int | Tensor = 0
        if self.deferred:  # only the device knows whether a step is made, so it counts the steps
            self.adam_steps = torch.zeros((), dtype=torch.float64, device=self.device)
        self._trouble: dict[str, Tensor] = {}  # what was not finite -> which members [P]
        gradients = self._views(self.grad_flat)
        self._gradients = list(gradients.values())
        self.recurrent_grads = network.recurrent(gradients) if memory else None
        self.online: dict[str, Tensor] = {}
        for name, view in self._views(self.online_flat).items():
            view.copy_(initial[name])
            leaf = view.detach().requires_grad_()
            leaf.grad = gradients[name]
            self.online[name] = leaf
        self.target_network = self._views(self.target_flat)
        self.average_flat = self.online_flat.detach().clone() if ema_decay else None
        self.averaged = self.online if self.average_flat is None else self._views(self.average_flat)
        self.target_flat.copy_(self.online_flat)
        self.packed_target = self._packed()

        # the version of online_flat that was packed for acting; every write to it or to a view of it raises the version
        self._acting_version = -1
        self._keys = torch.tensor(self.seeds, dtype=torch.int64)
        self.act_count = 0
        self._h = torch.zeros(self.members, num_envs, network.hidden_size, device=self.device)
        self._c = torch.zeros_like(self._h)
        # the Q-values [P, E, A] and the legal actions of the last `act`
        self._acted: tuple[Tensor, Tensor | np.ndarray | None] | None = None

    def _views(self, flat: Tensor) -> dict[str, Tensor]:
        """The views ``[P, ...]`` into a flat buffer ``[P, N]``, by name."""
        views = {}
        for name, (offset, shape) in self._slots.items():
            numel = int(np.prod(shape[1:]))
            views[name] = flat[:, offset : offset + numel].view(shape)
        return views

    # -- acting ------------------------------------------------------------------------------------------------------

    @property
    def state(self) -> tuple[Tensor, Tensor]:
        """h and c, ``[P, E, H]`` float32 each, which the members carry before the next observation.

        Training never touches them.
        """
        return self._h, self._c

    @torch.no_grad()
    def act(
        self,
        obs: Tensor | np.ndarray,
        reset: Tensor | np.ndarray,
        legal: Tensor | np.ndarray | None = None,
        epsilon: float | Sequence[float] | Tensor = 0.0,
    ) -> Tensor:
        """Choose epsilon-greedy actions, and advance the carried state by exactly one step.

        Args:
            obs: ``[P, E, obs_size]`` float32.
            reset: ``[P, E]`` bool, whether the observation is the first of an episode. The state is zeroed before it.
            legal: ``[P, E, A]`` bool, or None for all legal. A row without a legal action counts as all legal.
            epsilon: the probability of a uniform draw over the legal actions: one number, ``[P]`` or ``[P, E]``.

        Returns:
            The actions ``[P, E]`` int64, on the population's device. Ties go to the lowest action. An environment's
            draws depend only on its member's seed, its own index and `act_count`.

        Raises:
            ValueError: a shape is wrong, or epsilon lies outside [0, 1]; the message names the argument.
        """
        P, E = self.members, self.num_envs
        x = self._here(obs, torch.float32)
        if x.shape[:2] != (P, E):
            raise ValueError(f"obs has shape {list(x.shape)}; expected [P, E, obs_size] = [{P}, {E}, ...]")
        if self._acting_version != self.online_flat._version:  # the weights were written since they were packed
            layers = self.network.layers(self.online)
            self._encodes = layers is not None
            self._acting = ops.pack_actor(ActorParams(layers or (), self.network.recurrent(self.online)))
            self._acting_version = self.online_flat._version
        out = ops.act(
            self._acting,
            x if self._encodes else self.network.encode(self.online, x),
            self._h,
            self._c,
            self._here(reset, torch.bool),
            None if legal is None else self._here(legal, torch.bool),
            self._explore_probability(epsilon),
            self._keys,
            self.act_count,
        )
        self._acted = out.q, legal
        if self.memory:  # without memory the state stays zero
            self._h, self._c = out.h, out.c
        self.act_count += 1
        return out.action

    def _here(self, value: Tensor | np.ndarray, dtype: torch.dtype) -> Tensor:
        return devices.upload(torch.as_tensor(value, dtype=dtype), self.device)

    def _explore_probability(self, epsilon: float | Sequence[float] | Tensor) -> Tensor:
        """``epsilon`` as ``[P, E]`` float64."""
        P, E = self.members, self.num_envs
        out = torch.as_tensor(epsilon, dtype=torch.float64)
        if tuple(out.shape) not in ((), (P,), (P, E)):
            raise ValueError(
                f"epsilon has shape {list(out.shape)}; expected a number, [P] = [{P}] or [P, E] = [{P}, {E}]"
            )
        return (out.unsqueeze(-1) if out.dim() == 1 else out).expand(P, E)

    def acting_metrics(self) -> dict[str, Tensor]:
        """What the last `act` looked like, as means over the environments.

        Returns:
            ``[P]`` float32 each: `q_max`, the largest Q-value among legal actions; `h_norm` and `c_norm`, the Euclidean
            norms of the carried h and c. Empty before the first `act`.
        """
        if self._acted is None:
            return {}
        q, legal = self._acted
        if legal is not None:
            legal = self._here(legal, torch.bool)
            q = q.masked_fill(~legal & legal.any(-1, keepdim=True), -math.inf)
        norms = {"h_norm": self._h.norm(dim=-1).mean(1), "c_norm": self._c.norm(dim=-1).mean(1)}
        return {"q_max": q.amax(-1).mean(1), **norms}

    def reset_state(self) -> None:
        """Set the carried h and c to zero in every environment."""
        self._h = torch.zeros_like(self._h)
        self._c = torch.zeros_like(self._c)

    # -- learning ----------------------------------------------------------------------------------------------------

    def recurrent(self, params: Mapping[str, Tensor]) -> RecurrentQParams:
        """The weights of the LSTM and the head as training sees them: without memory where the population has none.

        Args:
            params: name -> ``[P, ...]``.
        """
        weights = self.network.recurrent(params)
        return weights if self.memory else cut_memory(weights)

    def backward(self, loss: Tensor) -> None:
        """Write the gradients of a loss into `grad_flat`, over what was there.

        A parameter that the loss does not reach gets 0.

        Args:
            loss: ``[P]`` float32; the gradients are those of its sum.
        """
        gradients = torch.autograd.grad(loss.sum(), list(self.online.values()), allow_unused=True)
        to, new = [], []
        for home, g in zip(self._gradients, gradients, strict=True):
            if g is None:
                home.zero_()
            elif self.device.type != "cpu" or g.data_ptr() != home.data_ptr():  # else it is there already
                to.append(home)
                new.append(g)
        if to:
            torch._foreach_copy_(to, new)

    @torch.no_grad()
    def adam_step(self, good: Tensor | None = None) -> Tensor:
        """Clip each member's gradient by its global norm, and take one Adam step (Kingma & Ba 2015) for all members.

        The running average of the weights takes the step too.

        Args:
            good: what `finite` returned so far; where it is False, nothing is changed.

        Returns:
            The gradient norms before clipping, ``[P]`` float32.

        Raises:
            ValueError: members have a gradient that is not finite. The message names them, and nothing has been
                changed.
        """
        state = (self.online_flat, self.adam_m, self.adam_v, self.grad_flat, self.lr, self.clip_norm)
        if isinstance(self.adam_steps, int):
            norm = ops.adam_step(*state, self.adam_betas, self.adam_eps, self.adam_steps + 1)
        else:
            norm = reference.adam_step(*state, self.adam_betas, self.adam_eps, self.adam_steps + 1, good)
        good = self.finite("gradient", norm, good)
        self.adam_steps += 1 if good is None else good
        if self.average_flat is not None:
            kept = torch.as_tensor(self.adam_steps / (self.adam_steps + 9)).clamp(max=self.ema_decay)
            moved = 1.0 - kept if good is None else (1.0 - kept) * good
            self.average_flat.lerp_(self.online_flat, moved.to(self.average_flat.dtype))
        return norm

    def finite(self, what: str, value: Tensor, so_far: Tensor | None = None) -> Tensor | None:
        """Check whether values are finite, at once or for `check` to report.

        Args:
            what: the name of the values, for the error.
            value: ``[P, ...]``.
            so_far: what this method returned for the values before these; the answer holds for all of them.

        Returns:
            Where checks are deferred, the answer as a scalar bool on the device; else None.

        Raises:
            ValueError: checks are not deferred, and members hold values that are not finite; the message names them.
        """
        if not self.deferred:
            require_finite(what, value)
            return None
        bad = ~sums(value).isfinite()
        if what not in self._trouble:
            self._trouble[what] = torch.zeros_like(bad)
        self._trouble[what] |= bad
        return ~bad.any() if so_far is None else so_far & ~bad.any()

    def check(self) -> None:
        """Wait for the device, and report what it noted.

        Raises:
            ValueError: values of members were not finite since the last call; the message names the members.
        """
        found = {what: bad.clone() for what, bad in self._trouble.items()}
        for bad in self._trouble.values():
            bad.zero_()
        for what, bad in found.items():  # in the order of the update, since what came first caused the rest
            refuse(what, bad)

    @torch.no_grad()
    def sync_target(self, mode: str = "hard", tau: float = 1.0) -> None:
        """Move the target network towards the online network.

        Args:
            mode: "hard" copies the online weights; "soft" adds tau (online - target) to the target weights.
            tau: the weight of a soft sync, in (0, 1].

        Raises:
            ValueError: the mode is another one, or tau lies outside (0, 1].
        """
        if mode == "hard":
            self.target_flat.copy_(self.online_flat)
        elif mode == "soft":
            if not 0.0 < tau <= 1.0:
                raise ValueError(f"tau is {tau}; expected a value in (0, 1]")
            self.target_flat.lerp_(self.online_flat, tau)
        else:
            raise ValueError(f"mode is {mode!r}; expected 'hard' or 'soft'")
        self._pack_target()

    @torch.no_grad()
    def copy_members(self, members: Sequence[int], parents: Sequence[int]) -> None:
        """Make members copies of other members: of their weights, average, target and moments.

        The state that the copies act with is zeroed.

        Args:
            members: the members to overwrite.
            parents: for each of them the member to copy.

        Raises:
            ValueError: the two differ in length, or a parent would itself be overwritten.
        """
        if set(members) & set(parents) or len(members) != len(parents):
            raise ValueError(f"parents is {list(parents)}; expected one for each of {list(members)}, none among them")
        to, of = (torch.tensor(p, dtype=torch.int64, device=self.device) for p in (members, parents))
        for flat in self._buffers().values():
            flat[to] = flat[of]
        keep = torch.ones(self.members, 1, 1, device=self.device).index_fill_(0, to, 0.0)
        self._h, self._c = self._h * keep, self._c * keep
        self._pack_target()

    def _packed(self) -> ops.PackedParams:
        """The target's weights in the form that `td_unroll` takes."""
        return ops.pack(self.recurrent(self.target_network), self.compute_dtype, copy=False)

    def _pack_target(self) -> None:
        if not self.deferred:
            self.packed_target = self._packed()
            return
        # a CUDA graph of the update reads these tensors, so they are written in place
        packed, target = ((*p.params, p.panels) for p in (self.packed_target, self._packed()))
        for held, fresh in zip(packed, target, strict=True):
            if held is not None and fresh is not None:
                held.copy_(fresh)

    # -- checkpoints -------------------------------------------------------------------------------------------------

    def _buffers(self) -> dict[str, Tensor]:
        """The flat buffers that a checkpoint holds, by their keys in it."""
        flat = {"online": self.online_flat, "target": self.target_flat, "adam_m": self.adam_m, "adam_v": self.adam_v}
        return flat if self.average_flat is None else {**flat, "average": self.average_flat}

    def state_dict(self) -> dict[str, Any]:
        """Copies of what a bit-exact continuation needs: weights, target, Adam, acting state and counters."""
        out: dict[str, Any] = {
            key: {name: v.clone() for name, v in self._views(flat).items()} for key, flat in self._buffers().items()
        }
        out |= {"h": self._h.clone(), "c": self._c.clone(), "lr": self.lr.clone(), "gamma": self.gamma.clone()}
        out |= {"adam_steps": int(self.adam_steps), "act_count": self.act_count, "seeds": list(self.seeds)}
        return out

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over what `state_dict` returned.

        Raises:
            ValueError: something is missing, unknown or of another shape. The message names it, and nothing has been
                changed.
        """
        expected = set(self.state_dict())
        if set(state) != expected:
            raise ValueError(f"population state holds {sorted(state)}; expected {sorted(expected)}")
        flat = self._buffers()
        for key in flat:
            got = {name: list(v.shape) for name, v in state[key].items()}
            want = {name: list(shape) for name, (_, shape) in self._slots.items()}
            for name in sorted(set(got) | set(want)):
                if got.get(name) != want.get(name):
                    raise ValueError(
                        f"population state: {key}.{name} has shape {got.get(name)}; expected {want.get(name)}"
                    )
        for name in ("h", "c", "lr", "gamma"):
            mine = {"h": self._h, "c": self._c, "lr": self.lr, "gamma": self.gamma}[name]
            if state[name].shape != mine.shape:
                raise ValueError(
                    f"population state: {name} has shape {list(state[name].shape)}; expected {list(mine.shape)}"
                )
        if len(state["seeds"]) != self.members:
            raise ValueError(
                f"population state has {len(state['seeds'])} seeds; expected one per member, {self.members}"
            )
        for key, buffer in flat.items():
            for name, view in self._views(buffer).items():
                view.copy_(state[key][name])
        for mine, saved in ((self._h, "h"), (self._c, "c"), (self.lr, "lr"), (self.gamma, "gamma")):
            mine.copy_(state[saved])
        if isinstance(self.adam_steps, int):
            self.adam_steps = int(state["adam_steps"])
        else:
            self.adam_steps.fill_(int(state["adam_steps"]))
        self.act_count = int(state["act_count"])
        self.seeds = [int(s) for s in state["seeds"]]
        self._keys = torch.tensor(self.seeds, dtype=torch.int64)
        self._pack_target()
