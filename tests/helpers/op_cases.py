"""Seeded cases for the operators' tests: random problems, hand-made networks, and the error metrics.

A `Case` names sizes and variants; `draw` turns it into a `Problem` (the four arguments of `td_unroll`) in float32,
and `Problem.to(torch.float64)` is its exact copy for the twin. Positions that are not valid always hold garbage: NaN
rewards and out-of-range actions, so that every comparison also shows that they are ignored.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from townlet import ops, reference
from townlet.ops import RecurrentQParams, SequenceBatch, TDOutput, TDSpec

TDUnroll = Callable[..., TDOutput]
GARBAGE_ACTION = 10**12


@dataclass(frozen=True)
class Case:
    """Sizes and variants of one call; the defaults switch everything on that can go together."""

    P: int = 2
    B: int = 3
    S: int = 7
    D: int = 5
    H: int = 6
    F: int | None = 4  # None: no hidden layer in the head
    A: int = 4
    dueling: bool = True
    target: bool = True
    double_q: bool = True
    n_step: int = 3
    burn_in: int = 2
    rescale_eps: float = 1e-3
    loss: Literal["huber", "mse"] = "huber"
    huber_delta: float = 0.7
    eta: float = 0.9
    member_gamma: bool = True  # one discount per member instead of a float
    resets: bool = True
    terminations: bool = True
    padding: bool = True
    legal: bool = True
    weights: bool = True
    seed: int = 0

    def __str__(self) -> str:
        """What differs from the defaults: the test's id."""
        default = Case()
        parts = [f"{k}={v}" for k, v in vars(self).items() if v != getattr(default, k)]
        return ",".join(parts) or "default"


class Problem(NamedTuple):
    """The arguments of one call of `td_unroll`."""

    online: RecurrentQParams
    target: RecurrentQParams | None
    batch: SequenceBatch
    spec: TDSpec

    def map(self, f: Callable[[Tensor], Tensor]) -> Problem:
        """f on every tensor, gamma included."""

        def each(v: Any) -> Any:
            return f(v) if isinstance(v, Tensor) else v

        return Problem(
            RecurrentQParams(*map(each, self.online)),
            None if self.target is None else RecurrentQParams(*map(each, self.target)),
            SequenceBatch(*map(each, self.batch)),
            replace(self.spec, gamma=each(self.spec.gamma)),
        )

    def to(self, dtype: torch.dtype) -> Problem:
        """The same numbers in another floating dtype."""
        return self.map(lambda v: v.detach().to(dtype) if v.is_floating_point() else v)

    def members(self, which: slice) -> Problem:
        """Some of the members only."""
        return self.map(lambda v: v[which].clone())

    def with_batch(self, **fields: Tensor | None) -> Problem:
        """Some fields of the batch replaced."""
        return self._replace(batch=self.batch._replace(**fields))

    def with_spec(self, **fields: Any) -> Problem:
        """Some fields of the spec replaced."""
        return self._replace(spec=replace(self.spec, **fields))


def valid(batch: SequenceBatch) -> Tensor:
    """[P, B, S]: the contract's "valid", written down a second time."""
    return batch.mask & ~(batch.reset[:, :, 1:] & ~batch.terminated)


def with_garbage(batch: SequenceBatch, g: torch.Generator) -> SequenceBatch:
    """NaN and infinite rewards, absurd actions and random terminations wherever a transition is not valid."""
    ok = valid(batch)
    bad = torch.tensor([float("nan"), float("inf"), -float("inf")], dtype=batch.reward.dtype)
    reward = bad[torch.randint(3, ok.shape, generator=g)]
    action = torch.tensor([-1, GARBAGE_ACTION, -GARBAGE_ACTION])[torch.randint(3, ok.shape, generator=g)]
    coin = torch.rand(ok.shape, generator=g) < 0.5
    return batch._replace(
        reward=torch.where(ok, batch.reward, reward),
        action=torch.where(ok, batch.action, action),
        terminated=torch.where(batch.mask, batch.terminated, coin),
    )


def draw_params(case: Case, g: torch.Generator) -> RecurrentQParams:
    """Normal weights of standard deviation 1/sqrt(fan in), and biases that matter."""

    def normal(*shape: int, scale: float = 1.0) -> Tensor:
        return torch.randn(shape, generator=g) * scale

    P, D, H, A = case.P, case.D, case.H, case.A
    F = H if case.F is None else case.F
    return RecurrentQParams(
        normal(P, 4 * H, D, scale=D**-0.5),
        normal(P, 4 * H, H, scale=H**-0.5),
        normal(P, 4 * H, scale=0.5),
        None if case.F is None else normal(P, F, H, scale=(2 / H) ** 0.5),
        None if case.F is None else normal(P, F, scale=0.3),
        normal(P, A, F, scale=F**-0.5),
        normal(P, A, scale=0.3),
        normal(P, 1, F, scale=F**-0.5) if case.dueling else None,
        normal(P, 1, scale=0.3) if case.dueling else None,
    )


def draw(case: Case) -> Problem:
    """The case's problem in float32; the same case gives the same numbers.

    With `padding` some sequences end in masked steps and some single steps are masked, and where B allows it one whole
    sequence is masked. With `legal` some rows allow nothing.
    """
    g = torch.Generator().manual_seed(case.seed)
    P, B, S, A = case.P, case.B, case.S, case.A

    def chance(p: float, *shape: int) -> Tensor:
        return torch.rand(shape, generator=g) < p

    online = draw_params(case, g)
    target = draw_params(case, g) if case.target else None
    features = torch.randn(P, B, S + 1, case.D, generator=g)
    h0, c0 = torch.tanh(torch.randn(2, P, B, case.H, generator=g))
    terminated = chance(0.12, P, B, S) & case.terminations
    reset = torch.zeros(P, B, S + 1, dtype=torch.bool)
    if case.resets:
        reset = chance(0.12, P, B, S + 1)
        reset[:, :, 1:] |= terminated & chance(0.7, P, B, S)  # most, not all: a terminated sequence may just end
    mask = torch.ones(P, B, S, dtype=torch.bool)
    if case.padding:
        mask = ~chance(0.1, P, B, S)
        length = torch.where(chance(0.3, P, B), torch.randint(S + 1, (P, B), generator=g), S)
        mask &= torch.arange(S) < length.unsqueeze(-1)
        if B > 2:
            mask[:, 1] = False
    legal = None
    if case.legal:
        legal = chance(0.6, P, B, S + 1, A) & ~chance(0.1, P, B, S + 1, 1)
    batch = SequenceBatch(
        features_online=features,
        features_target=features + 0.5 * torch.randn(features.shape, generator=g) if case.target else None,
        h0=h0,
        c0=c0,
        action=torch.randint(A, (P, B, S), generator=g),
        reward=torch.randn(P, B, S, generator=g),
        terminated=terminated,
        reset=reset,
        mask=mask,
        weight=torch.rand(P, B, generator=g) + 0.2 if case.weights else torch.ones(P, B),
        legal=legal,
    )
    spec = TDSpec(
        gamma=0.8 + 0.19 * torch.rand(P, generator=g) if case.member_gamma else 0.97,
        n_step=case.n_step,
        burn_in=case.burn_in,
        double_q=case.double_q,
        rescale_eps=case.rescale_eps,
        loss=case.loss,
        huber_delta=case.huber_delta,
        eta=case.eta,
    )
    return Problem(online, target, with_garbage(batch, g), spec)


def margin(problem: Problem) -> float:
    """How far the problem is from a discrete choice that rounding could turn: arg-max ties and ReLU kinks (in float64).

    The derivative jumps at a kink and the target jumps at a tie, so a comparison across precisions means something
    only away from both.
    """
    online, target, batch, spec = problem.to(torch.float64)
    P, B, T, _ = batch.features_online.shape

    def hidden_and_q(p: RecurrentQParams, x: Tensor) -> tuple[Tensor | None, Tensor]:
        y, _, _ = reference.lstm_unroll(x, batch.h0, batch.c0, p.w_ih, p.w_hh, p.bias, batch.reset)
        h = y.flatten(1, 2)
        z = None if p.w_fc is None else torch.baddbmm(p.b_fc.unsqueeze(1), h, p.w_fc.mT)
        return z, reference.head(p, h).view(P, B, T, -1)

    kink, q = hidden_and_q(online, batch.features_online)
    if target is not None and not spec.double_q:
        assert batch.features_target is not None
        q = hidden_and_q(target, batch.features_target)[1]
    if batch.legal is not None:
        q = q.masked_fill(~(batch.legal | ~batch.legal.any(-1, keepdim=True)), -float("inf"))
    gaps = [10 * kink.abs().min()] if kink is not None else []  # a kink is met only by its own unit: ten times less
    if q.shape[-1] > 1:
        top = q.topk(2).values
        gaps.append((top[..., 0] - top[..., 1]).min())
    return min((float(v) for v in gaps), default=float("inf"))


def draw_decided(case: Case, least: float = 1e-5) -> Problem:
    """The first of the case's redraws whose discrete choices stay put under float32 rounding (see `margin`)."""
    for attempt in range(50):
        problem = draw(replace(case, seed=case.seed + 1000 * attempt))
        if margin(problem) > least:
            return problem
    raise AssertionError(f"no draw of {case} keeps a margin of {least}")


def leaves(problem: Problem, features: bool = True) -> Problem:
    """Fresh leaf tensors, with gradients for the online parameters and (unless told) `features_online`."""
    fresh = problem.map(lambda v: v.detach().clone())
    for v in fresh.online:
        if v is not None:
            v.requires_grad_()
    fresh.batch.features_online.requires_grad_(features)
    return fresh


def evaluate(
    td_unroll: TDUnroll, problem: Problem, incoming: Tensor | None = None, features: bool = True
) -> dict[str, Tensor]:
    """Every output of a call by name, and `grad.<name>` of each differentiable input under `incoming` (ones)."""
    p = leaves(problem, features)
    out = td_unroll(*p)
    out.loss.backward(torch.ones_like(out.loss) if incoming is None else incoming.to(out.loss))
    result = {name: value.detach() for name, value in out._asdict().items()}
    named = {**p.online._asdict(), "features_online": p.batch.features_online}
    for name, v in named.items():
        if isinstance(v, Tensor) and v.requires_grad:
            result[f"grad.{name}"] = torch.zeros_like(v) if v.grad is None else v.grad
    return result


def kernel_td_unroll(online, target, batch, spec) -> TDOutput:
    """The compiled path or an error, never the fallback."""
    return ops.td_unroll(online, target, batch, replace(spec, backend="kernel"))


def assert_same_bits(got: dict[str, Tensor], want: dict[str, Tensor]) -> None:
    """The same names with equal tensors."""
    assert got.keys() == want.keys()
    for name in want:
        assert torch.equal(got[name], want[name]), name


def strided(v: Tensor) -> Tensor:
    """The same values, no axis contiguous."""
    wide = torch.empty(*v.shape[::-1], 2, dtype=v.dtype)
    view = wide[..., 0].permute(*range(v.dim())[::-1])
    view.copy_(v)
    return view


def wrong_shapes(v: Tensor) -> list[Tensor]:
    """One more at each axis, and one axis too many."""
    larger = [v.repeat_interleave(2, axis) for axis in range(v.dim())]
    return [*larger, v.unsqueeze(-1)]


class Deviation(NamedTuple):
    """How far `got` is from `want`."""

    scaled: float  # max |got - want| / max |want|
    angle: float  #  1 - cosine
    l2: float  #     |got - want| / |want|


def deviation(got: Tensor, want: Tensor) -> Deviation:
    """The three metrics in float64; where `want` is all zero they are 0 if `got` is too, else infinite."""
    got, want = got.detach().double().flatten(), want.detach().double().flatten()
    assert got.shape == want.shape
    if not bool(want.any()):
        worst = float("inf") if bool(got.any()) or bool(got.isnan().any()) else 0.0
        return Deviation(worst, worst, worst)
    diff = got - want
    cosine = torch.dot(got, want) / (got.norm() * want.norm()).clamp(min=1e-300)
    values = (diff.abs().max() / want.abs().max(), 1 - cosine, diff.norm() / want.norm())
    # NaN must not pass a comparison
    return Deviation(*(float("inf") if bool(v.isnan()) else float(v) for v in values))


# Networks whose values can be worked out by hand. With i and o saturated at 1 a cell is c = f c + tanh(x), h = tanh(c).
OPEN, SHUT = 40.0, -200.0


def hand_params(n: int, *, forget: float, scale: float, dtype: torch.dtype) -> RecurrentQParams:
    """One member with D = H = A = n, no hidden layer, no dueling, no recurrent weight: Q_a = scale * h_a."""
    eye, zero = torch.eye(n, dtype=dtype), torch.zeros(n, n, dtype=dtype)
    gate = torch.tensor([OPEN, forget, 0.0, OPEN], dtype=dtype).repeat_interleave(n)
    return RecurrentQParams(
        torch.cat([zero, zero, eye, zero]).unsqueeze(0),
        torch.zeros(1, 4 * n, n, dtype=dtype),
        gate.unsqueeze(0),
        None,
        None,
        scale * eye.unsqueeze(0),
        torch.zeros(1, n, dtype=dtype),
    )


def hand_batch(
    features_online: Tensor,
    features_target: Tensor | None,
    *,
    action: Sequence[Any],
    reward: Sequence[Any],
    **fields: Tensor,
) -> SequenceBatch:
    """A batch of one member from [B, S+1, D] features; nothing terminated, reset or masked unless `fields` says so."""
    B, T, n = features_online.shape
    dtype, S = features_online.dtype, T - 1
    batch = SequenceBatch(
        features_online=features_online.unsqueeze(0),
        features_target=None if features_target is None else features_target.unsqueeze(0),
        h0=torch.zeros(1, B, n, dtype=dtype),
        c0=torch.zeros(1, B, n, dtype=dtype),
        action=torch.tensor(action).view(1, B, S),
        reward=torch.tensor(reward, dtype=dtype).view(1, B, S),
        terminated=torch.zeros(1, B, S, dtype=torch.bool),
        reset=torch.zeros(1, B, T, dtype=torch.bool),
        mask=torch.ones(1, B, S, dtype=torch.bool),
        weight=torch.ones(1, B, dtype=dtype),
    )
    return batch._replace(**fields)


TABLE_SCALE = 20.0


def table(
    q_online: Any,
    q_target: Any,
    spec: TDSpec,
    *,
    action: Sequence[Any],
    reward: Sequence[Any],
    dtype: torch.dtype = torch.float64,
    **fields: Tensor,
) -> Problem:
    """A memoryless problem whose Q-values are the given tables [B, S+1, A], |Q| <= 15 (target None: q_target None).

    The forget gate is shut, so h = tanh(tanh(x)) and x = atanh(atanh(Q / 20)) gives Q = 20 h.
    """

    def features(q: Any) -> Tensor:
        return torch.atanh(torch.atanh(torch.tensor(q, dtype=torch.float64) / TABLE_SCALE)).to(dtype)

    x = features(q_online)
    params = hand_params(x.shape[-1], forget=SHUT, scale=TABLE_SCALE, dtype=dtype)
    target = None if q_target is None else RecurrentQParams(*(None if v is None else v.clone() for v in params))
    x_target = None if q_target is None else features(q_target)
    return Problem(params, target, hand_batch(x, x_target, action=action, reward=reward, **fields), spec)


def counter(
    step_online: Any,
    step_target: Any,
    spec: TDSpec,
    *,
    action: Sequence[Any],
    reward: Sequence[Any],
    dtype: torch.dtype = torch.float64,
    **fields: Tensor,
) -> Problem:
    """A problem that remembers: c_t = c_{t-1} + step_t and Q_a(t) = tanh(c_t[a]), with the given steps [B, S+1, A]."""

    def features(step: Any) -> Tensor:
        return torch.atanh(torch.tensor(step, dtype=torch.float64)).to(dtype)

    x = features(step_online)
    params = hand_params(x.shape[-1], forget=OPEN, scale=1.0, dtype=dtype)
    target = None if step_target is None else RecurrentQParams(*(None if v is None else v.clone() for v in params))
    x_target = None if step_target is None else features(step_target)
    return Problem(params, target, hand_batch(x, x_target, action=action, reward=reward, **fields), spec)


def close(got: Tensor, want: Any, tol: float) -> None:
    """Assert that `got` equals the hand-computed numbers within an absolute tolerance (NaN never does)."""
    expected = torch.tensor(want, dtype=torch.float64) if not isinstance(want, Tensor) else want.double()
    got = got.detach().double().reshape(expected.shape)
    assert bool(((got - expected).abs() <= tol).all()), f"got {got.tolist()}, expected {expected.tolist()}"
