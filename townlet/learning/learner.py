"""One training step of a population: recurrent double Q-learning on replayed sequences.

This is DRQN (Hausknecht & Stone 2015) with R2D2's stored states, burn-in and n-step targets (Kapturowski et al. 2019),
double Q-learning (van Hasselt et al. 2016), dueling heads (Wang et al. 2016), prioritised replay (Schaul et al. 2016)
and Adam (Kingma & Ba 2015). Everything between features and loss is one call of the fused operator.

Symbols: P members, B sequences per member, S transitions per sequence, L burn-in.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from .. import ops
from ..ops.types import SequenceBatch, TDOutput, TDSpec
from ..support import devices
from .cuda_graph import CudaRecorder, Replayed
from .members import per_member
from .population import VectorizedPopulation
from .replay import SequentialReplayBuffer

TDUnroll = Callable[..., TDOutput]


class Learner:
    """Trains a population from its replay buffer.

    Args:
        population: the P members to train.
        replay: their replay buffer, on the same device.
        spec: how targets and loss are formed. Its gamma and its compute_dtype have to be the population's.
        batch_size: B, the windows per member in one update.
        sync_every: the number of updates from one sync of the target network to the next.
        tau: the weight of a soft sync, in (0, 1]; None for hard syncs.
        use_target: whether there is a target network. Without one, the bootstrap values are the online network's,
            detached.
        stored_state: whether sequences begin from the state that was acted with; with False they begin from zero.
        td_unroll: the operator, of which tests hand in broken ones. None stands for `ops.td_unroll`, which then writes
            its gradients in place.
        graph: whether a GPU records the update as a CUDA graph after a few calls, and replays it from then on.

    Attributes:
        updates: the number of updates so far.

    Raises:
        ValueError: an argument does not fit the others; the message names it.
    """

    def __init__(
        self,
        population: VectorizedPopulation,
        replay: SequentialReplayBuffer,
        spec: TDSpec,
        *,
        batch_size: int,
        sync_every: int,
        tau: float | None = None,
        use_target: bool = True,
        stored_state: bool = True,
        td_unroll: TDUnroll | None = None,
        graph: bool = False,
    ):
        for name, value in (("batch_size", batch_size), ("sync_every", sync_every)):
            if value < 1:
                raise ValueError(f"{name} is {value}; expected at least 1")
        if tau is not None and not 0.0 < tau <= 1.0:
            raise ValueError(f"tau is {tau}; expected a value in (0, 1] or None")
        if replay.members != population.members:
            raise ValueError(f"replay has {replay.members} members; expected the population's {population.members}")
        if spec.burn_in >= replay.seq_len:
            raise ValueError(f"spec.burn_in is {spec.burn_in}; expected less than replay's seq_len, {replay.seq_len}")
        if replay.device != population.device:
            raise ValueError(f"replay is on {replay.device}; expected {population.device}, the population's device")
        if not torch.equal(per_member("spec.gamma", spec.gamma, population.members), population.gamma.cpu()):
            raise ValueError(
                f"spec.gamma is {spec.gamma}; expected the population's gamma, {population.gamma.tolist()}"
            )
        if spec.compute_dtype != population.compute_dtype:
            raise ValueError(
                f"spec.compute_dtype is {spec.compute_dtype}; expected the population's, {population.compute_dtype}"
            )
        self.population = population
        self.replay = replay
        self.spec = replace(spec, gamma=population.gamma)  # on the population's device
        self.batch_size = batch_size
        self.sync_every = sync_every
        self.tau = tau
        self.use_target = use_target
        self.stored_state = stored_state
        self.td_unroll = td_unroll or partial(ops.td_unroll, grads=population.recurrent_grads)
        self.updates = 0
        if graph and population.device.type != "cuda":
            raise ValueError(f"graph is True; expected False, since the population is on {population.device}")
        self.replayed = Replayed(CudaRecorder(population.device)) if graph else None
        self._draws = torch.empty(population.members, batch_size, dtype=torch.float64, device=population.device)
        self._numbers: tuple[Any, ...] = ()  # the numbers in a recording of the update that the user may change

    def update(self) -> dict[str, Tensor]:
        """Update every member once.

        Returns:
            Metrics by name, ``[P]`` float32 each. `loss` is the loss. `td_error` and `td_error_max` are the mean and
            the largest absolute TD error. `q` is the mean Q-value of the actions taken, and `target` the mean TD
            target. `grad_norm` is the gradient's norm before clipping, and `clipped` is 1 where it was clipped.
            `priority` is the mean over the batch. `valid` is the share of transitions after burn-in that were trained
            on.

        Raises:
            ValueError: replay does not hold a window yet, or observations, loss or gradients of members are not
                finite. The message names the members, and no parameter has been touched. (Where the population defers
                its checks, its `check` raises the second error.)
        """
        draws = devices.upload(self.replay.draw(self.batch_size), self.replay.device)
        syncs = self.use_target and (self.updates + 1) % self.sync_every == 0
        if self.replayed is None:
            metrics = self._step(draws, syncs)
        else:
            metrics = self._replay(draws, syncs, self.replayed)
        self.updates += 1
        return metrics

    def _replay(self, draws: Tensor, syncs: bool, replayed: Replayed) -> dict[str, Tensor]:
        population, replay = self.population, self.replay
        numbers = (replay.alpha, replay.beta, population.lr, population.clip_norm, self.td_unroll)
        if any(a is not b for a, b in zip(numbers, self._numbers, strict=False)):
            replayed.forget()
        self._numbers = numbers
        self._draws.copy_(draws)
        metrics = replayed.run(syncs, lambda: self._step(self._draws, syncs))
        flat = [population.online_flat, population.target_flat, population.adam_m, population.adam_v]
        if population.average_flat is not None:
            flat.append(population.average_flat)
        torch.autograd.graph.increment_version(flat)  # a replayed graph writes without counting versions
        return metrics

    def _step(self, draws: Tensor, syncs: bool) -> dict[str, Tensor]:
        """Everything of an update that the device does, from the draws on."""
        population, network = self.population, self.population.network
        sample = self.replay.windows_at(draws)
        good = population.finite("a replayed observation", sample.obs)

        features_online = network.encode(population.online, sample.obs)
        features_target = None
        if self.use_target:
            with torch.no_grad():
                features_target = network.encode(population.target_network, sample.obs)

        batch = SequenceBatch(
            features_online,
            features_target,
            sample.h0 if self.stored_state else torch.zeros_like(sample.h0),
            sample.c0 if self.stored_state else torch.zeros_like(sample.c0),
            sample.action,
            sample.reward,
            sample.terminated,
            sample.reset,
            sample.mask,
            sample.weight,
            sample.legal,
        )
        online = population.recurrent(population.online)
        out = self.td_unroll(online, population.packed_target if self.use_target else None, batch, self.spec)
        good = population.finite("loss", out.loss, good)

        population.backward(out.loss)
        grad_norm = population.adam_step(good)
        if good is not None:
            good = good & grad_norm.isfinite().all()
        self.replay.update_priorities(sample, out.priority, good)
        if syncs:
            if self.tau is None:
                population.sync_target("hard")
            else:
                population.sync_target("soft", self.tau)
        return self._metrics(batch, out, grad_norm)

    def _metrics(self, batch: SequenceBatch, out: TDOutput, grad_norm: Tensor) -> dict[str, Tensor]:
        L, clip = self.spec.burn_in, self.population.clip_norm
        valid = batch.mask & (batch.terminated | ~batch.reset[:, :, 1:])
        trained = valid[:, :, L:].sum((1, 2))
        some, error = trained.clamp(min=1), out.td_error.abs()
        q, q_burn_in = out.q_taken.sum((1, 2)), out.q_taken[:, :, :L].sum((1, 2))
        return {
            "loss": out.loss.detach(),
            "td_error": error.sum((1, 2)) / some,
            "td_error_max": error.amax((1, 2)),
            "q": q / valid.sum((1, 2)).clamp(min=1),
            "target": (q - q_burn_in + out.td_error.sum((1, 2))) / some,  # q_taken + td_error, both 0 where not valid
            "grad_norm": grad_norm,
            "clipped": torch.zeros_like(grad_norm) if clip is None else (grad_norm > clip).float(),
            "priority": out.priority.mean(1),
            "valid": trained / valid[:, :, L:][0].numel(),
        }

    def state_dict(self) -> dict[str, Any]:
        """The learner's own counter. Population and replay have a state of their own."""
        return {"updates": self.updates}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over what `state_dict` returned.

        Raises:
            ValueError: the state has other keys.
        """
        if set(state) != {"updates"}:
            raise ValueError(f"learner state holds {sorted(state)}; expected ['updates']")
        self.updates = int(state["updates"])
