"""The whole learner update beside the same algorithm in plain PyTorch, and where ours spends its time.

Both sides draw the same windows from equal replay buffers, and before anything is timed they have to agree in loss and
in every updated weight. The peer is what a careful user would write: modules, two `torch.nn.LSTM` calls (three with
burn-in), vectorised n-step targets, autograd, `clip_grad_norm_` and the fused `torch.optim.Adam`; it collects no
metrics and checks nothing. `nn.LSTM` cannot reset inside a sequence, so the streams have none.

python benchmarks/update.py --rounds 40
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from townlet.envs.town import TownArgs
from townlet.learning.learner import Learner
from townlet.learning.networks import RecurrentQNetwork, RecurrentSpatialQNetwork
from townlet.learning.population import VectorizedPopulation
from townlet.learning.replay import SequentialReplayBuffer
from townlet.learning.sampling import ReplaySample
from townlet.ops import TDSpec

Network = RecurrentQNetwork | RecurrentSpatialQNetwork
GAMMA, LR, CLIP = 0.99, 1e-3, 10.0


@dataclass(frozen=True)
class Case:
    """One size of update. With ``tau`` None the target is synced hard every ``sync_every`` updates."""

    name: str
    P: int
    B: int
    S: int
    network: str  # spatial or mlp
    hidden_size: int
    head_size: int
    burn_in: int = 0
    n_step: int = 1
    rescale_eps: float = 0.0
    tau: float | None = None
    sync_every: int = 30
    envs: int = 32

    def flops(self, network: Network) -> float:
        """The multiplications and additions that no implementation of the update can leave out.

        Forward, they are those of both networks' encoders, LSTMs and heads over S + 1 observations. Back through the
        S - L transitions that are trained, they are those of the gradients of all weights, of the state, and of the
        features where there is an encoder below them. Activations and biases are not counted.
        """
        D, H, F, A = network.feature_size, network.hidden_size, network.head_size, network.n_actions
        head = 2 * (H * F + F * (A + 1))
        if self.network == "spatial":
            height, width = network.height, network.width
            taps = (3 * height - 2) * (3 * width - 2)  # weights of a 3x3 window that lie on the map, over all pixels
            layers = [network.planes * 16 * taps, 16 * 32 * taps, 32 * height * width * 128]
            layers.append(32 * (network.position + network.METERS + network.AFFORDANCE))
            inner = layers[1] + layers[2]  # the layers whose inputs are activations
        else:
            layers, inner = [network.obs_size * D], 0
        forward = 8 * H * (D + H) + head + 2 * sum(layers)
        backward = 8 * H * H + 8 * H * D + 8 * H * (D + H) + 2 * head + 2 * (sum(layers) + inner)
        return float(self.P * self.B * (2 * (self.S + 1) * forward + (self.S - self.burn_in) * backward))


CASES = (
    Case("spatial", 1, 16, 8, "spatial", 256, 128),
    Case("spatial, tau", 1, 16, 8, "spatial", 256, 128, tau=0.03, sync_every=1),
    Case("default", 1, 16, 40, "mlp", 96, 64, burn_in=5, n_step=3, rescale_eps=1e-3),
    Case("default, tau", 1, 16, 40, "mlp", 96, 64, burn_in=5, n_step=3, rescale_eps=1e-3, tau=0.03, sync_every=1),
    Case("default, P=8", 8, 16, 40, "mlp", 96, 64, burn_in=5, n_step=3, rescale_eps=1e-3),
)
"""The size of the bar, with double Q-learning and nothing else, and the sizes that `townlet train` has by default."""


# ---- ours --------------------------------------------------------------------------------------------------------


def network_of(case: Case) -> Network:
    town = TownArgs(knots=0 if case.network == "spatial" else 8)
    sizes = {"hidden_size": case.hidden_size, "head_size": case.head_size}
    if case.network == "spatial":
        return RecurrentSpatialQNetwork.from_town(town, **sizes)
    return RecurrentQNetwork(town.observation.size, 6, encoder=(128,), **sizes)


def filled_replay(case: Case, network: Network, device: str = "cpu") -> SequentialReplayBuffer:
    """A replay that holds streams of random steps, three windows long. No step begins an episode."""
    P, E, A = case.P, case.envs, network.n_actions
    replay = SequentialReplayBuffer(
        members=P, num_envs=E, capacity=E * 4 * case.S, obs_size=network.obs_size, n_actions=A,
        hidden_size=network.hidden_size, seq_len=case.S, seeds=list(range(P)), device=device,
    )  # fmt: skip
    g = torch.Generator().manual_seed(1)
    for _ in range(3 * case.S):
        legal = torch.rand(P, E, A, generator=g) < 0.8
        legal[..., -1] = True
        replay.add(
            obs=torch.rand(P, E, network.obs_size, generator=g),
            reset=torch.zeros(P, E, dtype=torch.bool),
            legal=legal,
            h=torch.rand(P, E, network.hidden_size, generator=g) - 0.5,
            c=torch.rand(P, E, network.hidden_size, generator=g) - 0.5,
            action=torch.randint(A, (P, E), generator=g),
            reward=torch.rand(P, E, generator=g),
            terminated=torch.rand(P, E, generator=g) < 0.02,
            mask=torch.rand(P, E, generator=g) < 0.98,
        )
    return replay


def make_learner(case: Case, device: str = "cpu", graph: bool = False) -> Learner:
    """Our learner. With ``graph`` its update is recorded as a CUDA graph."""
    network = network_of(case)
    population = VectorizedPopulation(
        network, list(range(case.P)), num_envs=case.envs, gamma=GAMMA, lr=LR, clip_norm=CLIP, device=device
    )
    g = torch.Generator().manual_seed(2)  # makes the target another network
    population.target_flat.mul_((1 + 0.1 * torch.rand(population.target_flat.shape, generator=g)).to(device))
    population.load_state_dict(population.state_dict())  # packs the target
    spec = TDSpec(gamma=GAMMA, n_step=case.n_step, burn_in=case.burn_in, rescale_eps=case.rescale_eps)
    replay = filled_replay(case, network, device)
    syncs: dict[str, Any] = {"sync_every": case.sync_every, "tau": case.tau}
    return Learner(population, replay, spec, batch_size=case.B, graph=graph, **syncs)


# ---- the same in plain PyTorch -----------------------------------------------------------------------------------


class PlainNetwork(nn.Module):
    """One member as modules: encoder, `nn.LSTM` and dueling head."""

    def __init__(self, network: Network):
        super().__init__()
        self.network = network
        self.spatial = isinstance(network, RecurrentSpatialQNetwork)
        D, H, F, A = network.feature_size, network.hidden_size, network.head_size, network.n_actions
        if self.spatial:
            self.maps = (network.planes, network.height, network.width)
            self.conv0 = nn.Conv2d(network.planes, 16, 3, padding=1)
            self.conv1 = nn.Conv2d(16, 32, 3, padding=1)
            self.window = nn.Linear(32 * network.height * network.width, 128)
            self.position, self.meters, self.affordance = nn.Linear(2, 32), nn.Linear(8, 32), nn.Linear(18, 32)
        else:
            self.encoder = nn.Linear(network.obs_size, D)
        self.lstm = nn.LSTM(D, H, batch_first=True)
        self.lstm.bias_hh_l0.requires_grad_(False)  # ours has one bias
        self.fc, self.adv, self.val = nn.Linear(H, F), nn.Linear(F, A), nn.Linear(F, 1)

    def encode(self, obs: Tensor) -> Tensor:
        if not self.spatial:
            return torch.relu(self.encoder(obs))
        x = obs.flatten(0, 1)
        planes, height, width = self.maps
        window, position, meters, affordance = x.split([planes * height * width, 2, 8, 18], dim=1)
        y = torch.relu(self.conv0(window.unflatten(1, self.maps)))
        y = torch.relu(self.conv1(y)).flatten(1)
        parts = [self.window(y), self.position(position), self.meters(meters), self.affordance(affordance)]
        return torch.relu(torch.cat(parts, 1)).unflatten(0, obs.shape[:2])

    def q_values(self, y: Tensor) -> Tensor:
        x = torch.relu(self.fc(y))
        adv = self.adv(x)
        return self.val(x) + adv - adv.mean(-1, keepdim=True)

    def forward(self, obs: Tensor, h0: Tensor, c0: Tensor, burn_in: int) -> Tensor:
        """The Q-values of the observations from ``burn_in`` on. No gradient enters the steps before."""
        state = (h0.unsqueeze(0), c0.unsqueeze(0))
        if burn_in:
            with torch.no_grad():
                _, state = self.lstm(self.encode(obs[:, :burn_in]), state)
        y, _ = self.lstm(self.encode(obs[:, burn_in:]), state)
        return self.q_values(y)

    def names(self) -> dict[str, str]:
        """Every parameter that both sides have, by our name."""
        rename = {"lstm.weight_ih_l0": "lstm.w_ih", "lstm.weight_hh_l0": "lstm.w_hh", "lstm.bias_ih_l0": "lstm.bias"}
        rename |= {f"{ours}.{k}": f"head.{ours}.{k}" for ours in ("fc", "adv", "val") for k in ("weight", "bias")}
        rename |= {f"conv{i}.{k}": f"conv.{i}.{k}" for i in (0, 1) for k in ("weight", "bias")}
        rename |= {f"encoder.{k}": f"encoder.0.{k}" for k in ("weight", "bias")}
        return {n: rename.get(n, n) for n, _ in self.named_parameters() if n != "lstm.bias_hh_l0"}

    @torch.no_grad()
    def take(self, params: dict[str, Tensor], member: int) -> None:
        own = dict(self.named_parameters())
        own["lstm.bias_hh_l0"].zero_()
        for mine, theirs in self.names().items():
            own[mine].copy_(params[theirs][member])


class PlainLearner:
    """The update of `Learner` in plain PyTorch, as a loop over members. ``replay`` gives samples as ours does."""

    def __init__(self, case: Case, learner: Learner, replay: Any):
        self.case = case
        network = learner.population.network
        self.online = [PlainNetwork(network) for _ in range(case.P)]
        self.target = [PlainNetwork(network) for _ in range(case.P)]
        for p in range(case.P):
            self.online[p].take(learner.population.online, p)
            self.target[p].take(learner.population.target_network, p)
            self.target[p].requires_grad_(False)
        self.trained = [[v for v in net.parameters() if v.requires_grad] for net in self.online]
        self.optimisers = [torch.optim.Adam(v, lr=LR, eps=1e-5, fused=True) for v in self.trained]
        self.replay = replay
        self.updates = 0

    def member_loss(self, p: int, s: ReplaySample) -> tuple[Tensor, Tensor]:
        """The loss and the priorities ``[B]`` of one member."""
        case, L = self.case, self.case.burn_in
        obs, h0, c0 = s.obs[p], s.h0[p], s.c0[p]
        q = self.online[p](obs, h0, c0, L)
        reward, terminated, valid = s.reward[p, :, L:], s.terminated[p, :, L:], s.mask[p, :, L:]
        with torch.no_grad():
            assert s.legal is not None
            y, _ = self.target[p].lstm(self.target[p].encode(obs), (h0.unsqueeze(0), c0.unsqueeze(0)))
            q_target = self.target[p].q_values(y[:, L:])
            best = q.masked_fill(~s.legal[p, :, L:], float("-inf")).argmax(-1, keepdim=True)
            value = hinv(q_target.gather(-1, best).squeeze(-1), case.rescale_eps)[:, 1:]
            discount = GAMMA * (~terminated).float()
            G = torch.addcmul(reward, discount, value)
            for _ in range(case.n_step - 1):  # one more step of reward each, where the successor is a valid transition
                later = torch.where(valid[:, 1:], G[:, 1:], value[:, :-1])
                G = torch.addcmul(reward, discount, torch.cat((later, value[:, -1:]), 1))
            target = h(G, case.rescale_eps)
        taken = q[:, :-1].gather(-1, s.action[p, :, L:].unsqueeze(-1)).squeeze(-1)
        error = (target - taken) * valid
        each = nn.functional.huber_loss(error, torch.zeros_like(error), reduction="none")
        loss = (s.weight[p].unsqueeze(1) * each).sum() / valid.sum()
        size = error.detach().abs()
        return loss, 0.9 * size.amax(1) + 0.1 * size.sum(1) / valid.sum(1).clamp(min=1)

    def update(self) -> Tensor:
        sample = self.replay.sample(self.case.B)
        losses, priorities = [], []
        for p in range(self.case.P):
            loss, priority = self.member_loss(p, sample)
            self.optimisers[p].zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(self.trained[p], CLIP)
            self.optimisers[p].step()
            losses.append(loss.detach())
            priorities.append(priority)
        self.replay.update_priorities(sample, torch.stack(priorities))
        self.updates += 1
        if self.updates % self.case.sync_every == 0:
            self.sync()
        return torch.stack(losses)

    @torch.no_grad()
    def sync(self) -> None:
        for online, target in zip(self.online, self.target, strict=True):
            mine, theirs = list(target.parameters()), list(online.parameters())
            if self.case.tau is None:
                torch._foreach_copy_(mine, theirs)
            else:
                torch._foreach_lerp_(mine, theirs, self.case.tau)


def h(x: Tensor, eps: float) -> Tensor:
    return x if eps == 0 else x.sign() * ((x.abs() + 1).sqrt() - 1) + eps * x


def hinv(x: Tensor, eps: float) -> Tensor:
    if eps == 0:
        return x
    u = x.abs() + 1 + eps
    return x.sign() * ((2 * u / (1 + (1 + 4 * eps * u).sqrt())).square() - 1)


# ---- agreement ---------------------------------------------------------------------------------------------------


def check(case: Case, updates: int = 3) -> dict[str, float]:
    """The largest deviations between both sides over a few updates.

    Adam divides by the gradient's size, so rounding decides how a weight moves whose gradient is near 0. The moved
    weights are therefore compared in the norm of the whole movement.

    Raises:
        SystemExit: a deviation is beyond its tolerance.
    """
    ours = make_learner(case)
    peer = PlainLearner(case, ours, filled_replay(case, ours.population.network))
    before = {name: v.detach().clone() for name, v in ours.population.online.items()}
    loss = 0.0
    for _ in range(updates):
        a, b = ours.update()["loss"], peer.update()
        loss = max(loss, float(((a - b) / b).abs().max()))
    off = moved = 0.0
    for p, net in enumerate(peer.online):
        own = dict(net.named_parameters())
        for mine, theirs in net.names().items():
            off += float((own[mine] - ours.population.online[theirs][p]).detach().square().sum())
            moved += float((own[mine] - before[theirs][p]).detach().square().sum())
    weights = (off / moved) ** 0.5
    if not (loss < 1e-5 and weights < 1e-4):  # observed 4e-7 and 9e-7
        raise SystemExit(
            f"{case.name}: both sides differ: loss by {loss:.1e}, movement of the weights by {weights:.1e}"
        )
    return {"loss": loss, "weights": weights}


# ---- time --------------------------------------------------------------------------------------------------------


class Phases:
    """Measures the seconds of each named part of ``learner.update()``, by wrapping what it calls."""

    PARTS = ("sample", "encode", "op", "backward", "encoder backward", "adam", "priorities", "sync", "metrics")

    def __init__(self, learner: Learner):
        self.spent = dict.fromkeys(self.PARTS, 0.0)
        population, replay = learner.population, learner.replay
        self._wrap("sample", replay, "draw")
        self._wrap("sample", replay, "windows_at")
        self._wrap("encode", population.network, "encode")
        self._wrap("op", learner, "td_unroll")
        self._split_backward(population)
        self._wrap("adam", population, "adam_step")
        self._wrap("priorities", replay, "update_priorities")
        self._wrap("sync", population, "sync_target")
        self._wrap("metrics", learner, "_metrics")

    def _split_backward(self, population: VectorizedPopulation) -> None:
        """Time ``population.backward`` in two halves: that of the operator, and that of the encoder after it."""
        encode, backward, grad = population.network.encode, population.backward, torch.autograd.grad
        features: list[Tensor] = []

        def keep(params: Any, obs: Tensor) -> Tensor:
            out = encode(params, obs)
            if out.requires_grad:
                features[:] = [out]
            return out

        def halves(loss: Tensor, leaves: list[Tensor], **kwargs: Any) -> tuple[Tensor | None, ...]:
            own = [name.startswith(("lstm.", "head.")) for name in population.online]
            recurrent = [v for v, is_own in zip(leaves, own, strict=True) if is_own]
            encoder = [v for v, is_own in zip(leaves, own, strict=True) if not is_own]
            *upper, d_features = grad(loss, [*recurrent, *features], retain_graph=True, **kwargs)
            start = time.perf_counter()
            lower = grad(features, encoder, d_features, **kwargs)
            self.spent["encoder backward"] += time.perf_counter() - start
            rest = {True: iter(upper), False: iter(lower)}
            return tuple(next(rest[is_own]) for is_own in own)

        def timed(loss: Tensor) -> None:
            start, before = time.perf_counter(), self.spent["encoder backward"]
            torch.autograd.grad = halves
            try:
                backward(loss)
            finally:
                torch.autograd.grad = grad
            self.spent["backward"] += time.perf_counter() - start - (self.spent["encoder backward"] - before)

        population.network.encode = keep
        population.backward = timed

    def _wrap(self, part: str, owner: Any, name: str) -> None:
        inner: Callable[..., Any] = getattr(owner, name)

        def timed(*args: Any, **kwargs: Any) -> Any:
            start = time.perf_counter()
            out = inner(*args, **kwargs)
            self.spent[part] += time.perf_counter() - start
            return out

        setattr(owner, name, timed)


WARM = 2
"""So many calls at the start of a block are not timed: the caches are still full of the other side's numbers."""


def block(call: Callable[[], Any], n: int) -> list[float]:
    """The milliseconds that each of n calls in a row takes."""
    times = []
    for _ in range(WARM + n):
        start = time.perf_counter()
        call()
        times.append((time.perf_counter() - start) * 1e3)
    return times[WARM:]


def measure(case: Case, rounds: int = 40, per_round: int = 8) -> dict[str, Any]:
    """The milliseconds per update of both sides, in alternating blocks, and of our parts (medians over rounds).

    "outside" is the share of ours that is neither the operator's forward call nor the encoders' forward and backward.
    """
    errors = check(case)
    ours = make_learner(case)
    peer = PlainLearner(case, ours, filled_replay(case, ours.population.network))
    times: dict[str, list[float]] = {"ours": [], "peer": []}
    for _ in range(rounds):
        times["ours"] += block(ours.update, per_round)
        times["peer"] += block(peer.update, per_round)
    del peer
    phases = Phases(ours)
    parts: dict[str, list[float]] = {name: [] for name in (*Phases.PARTS, "total")}
    for _ in range(rounds):
        block(ours.update, 1)
        phases.spent = dict.fromkeys(Phases.PARTS, 0.0)
        total = time.perf_counter()
        for _ in range(per_round):
            ours.update()
        parts["total"].append((time.perf_counter() - total) / per_round * 1e3)
        for name, value in phases.spent.items():
            parts[name].append(value / per_round * 1e3)
    middle = {name: statistics.median(v) for name, v in parts.items()}
    total = middle.pop("total")
    middle["other"] = total - sum(middle.values())
    inside = middle["encode"] + middle["op"] + middle["encoder backward"]
    return {
        "case": case.name,
        "errors": errors,
        "flops": case.flops(ours.population.network),
        "min": {k: min(v) for k, v in times.items()},
        "median": {k: statistics.median(v) for k, v in times.items()},
        "ratio": min(times["peer"]) / min(times["ours"]),
        "ratio_median": statistics.median(times["peer"]) / statistics.median(times["ours"]),
        "parts": middle,
        "outside": 1 - inside / total,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--only", default="", help="run only the cases whose name contains this text")
    options = parser.parse_args()
    torch.set_num_threads(1)
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    print(f"one pinned thread, {options.rounds} rounds; milliseconds per update")
    print(f"{'case':<14} {'ours min':>9} {'median':>7} {'plain min':>10} {'median':>7} {'ratio':>6} {'outside':>8}")
    for case in CASES:
        if options.only not in case.name:
            continue
        r = measure(case, options.rounds)
        low, mid = r["min"], r["median"]
        print(
            f"{case.name:<14} {low['ours']:>9.3f} {mid['ours']:>7.3f} {low['peer']:>10.3f} {mid['peer']:>7.3f} "
            f"{r['ratio']:>6.2f} {r['outside']:>8.1%}"
        )
        print("    " + ", ".join(f"{name} {value:.3f}" for name, value in r["parts"].items()))
        print(f"    deviations: loss {r['errors']['loss']:.0e}, weights {r['errors']['weights']:.0e}", flush=True)


if __name__ == "__main__":
    main()
