"""Random updates to time, the operations they take, and the check against the twin that precedes any timing.

Symbols: P members, B sequences, S transitions, D features, H LSTM units, A actions.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, Final, Literal, NamedTuple

import torch
from torch import Tensor

from .. import ops
from ..ops import RecurrentQParams, SequenceBatch, TDOutput, TDSpec, reference

TF32: Final = "TF32"
"""Float32 operands that a GPU rounds to 11 significant bits before it multiplies them. It is no dtype of torch's."""

Precision = torch.dtype | Literal["TF32"]

TOLERANCE: Mapping[Precision, float] = {torch.float32: 2e-5, TF32: 4e-3, torch.bfloat16: 3e-2}
"""The largest error allowed, relative to the largest value of the tensor compared.

Errors of 3e-6, 1.1e-3 and 9e-3 were seen. The second was seen on a CPU, with an LSTM whose operands were cut off after
11 bits; with operands rounded to nearest it was 4e-4. No GPU has run it yet.
"""

Gradients = Sequence[Tensor]
"""The loss ``[P]``, then the gradients of w_ih ``[P, 4H, D]``, w_hh ``[P, 4H, H]``, bias ``[P, 4H]``, w_q ``[P, A, H]``
and b_q ``[P, A]``."""
NAMES = ("loss", "w_ih", "w_hh", "bias", "w_q", "b_q")


class WrongResult(ValueError):
    """A candidate that was about to be timed does not compute the right result."""


class Shape(NamedTuple):
    """Sizes of one update."""

    B: int
    S: int
    D: int
    H: int
    P: int = 1
    A: int = 6

    def __str__(self) -> str:
        members = f"P={self.P}, " if self.P > 1 else ""
        return f"{members}({self.B}, {self.S}, {self.D}, {self.H})"

    @property
    def flops(self) -> float:
        """The multiplications and additions of a full update.

        The unrolls of both networks take 2 * 8H(D + H) for each observation. For each transition, going back through
        time takes 8H^2, and the weights' gradients take 8H(D + H). Gates, head and gradients to features are not
        counted.
        """
        B, S, D, H, P, _ = self
        return float(P * B * (2 * 8 * H * (D + H) * (S + 1) + (8 * H * H + 8 * H * (D + H)) * S))


class Problem(NamedTuple):
    """One update with a linear head, double Q-learning, one-step targets and the Huber loss. Every transition is real.

    Attributes:
        shape: its sizes.
        online: the online network.
        target: the target network.
        batch: the sequences.
        spec: the settings of the operator.
    """

    shape: Shape
    online: RecurrentQParams
    target: RecurrentQParams
    batch: SequenceBatch
    spec: TDSpec

    @property
    def weights(self) -> list[Tensor]:
        """The tensors whose gradients are computed, in the order of NAMES[1:]."""
        return [w for w in self.online if w is not None]

    def on(self, device: torch.device) -> Problem:
        """The same numbers on another device."""

        def there(v: Tensor | None) -> Tensor | None:
            return None if v is None else v.detach().to(device).requires_grad_(v.requires_grad)

        online, target = (RecurrentQParams._make(map(there, part)) for part in (self.online, self.target))
        return self._replace(online=online, target=target, batch=SequenceBatch._make(map(there, self.batch)))


def draw(shape: Shape, *, resets: float = 0.0, compute_dtype: torch.dtype = torch.float32, seed: int = 0) -> Problem:
    """Draw a random update in float32.

    The target network differs a little from the online one, as after a sync. Where rounding to bfloat16 makes another
    action the greedy one, that action's value is therefore about the same, and results stay comparable.

    Args:
        shape: the sizes.
        resets: the share of observations that begin an episode. The transition before such an observation terminates.
        compute_dtype: the dtype of the operands.
        seed: the seed of all numbers.
    """
    B, S, D, H, P, A = shape
    g = torch.Generator().manual_seed(seed)

    def uniform(*size: int, scale: float = 1.0) -> Tensor:
        return (torch.rand(*size, generator=g) * 2 - 1) * scale

    k = H**-0.5
    sizes = ((P, 4 * H, D), (P, 4 * H, H), (P, 4 * H), (P, A, H), (P, A))
    weights = [uniform(*size, scale=k) for size in sizes]
    older = [w + uniform(*w.shape, scale=0.1 * k) for w in weights]

    def network(w_ih: Tensor, w_hh: Tensor, bias: Tensor, w_q: Tensor, b_q: Tensor) -> RecurrentQParams:
        return RecurrentQParams(w_ih, w_hh, bias, None, None, w_q, b_q)

    features = uniform(P, B, S + 1, D)
    reset = torch.rand(P, B, S + 1, generator=g) < resets
    batch = SequenceBatch(
        features_online=features,
        features_target=features + uniform(P, B, S + 1, D, scale=0.1),
        h0=uniform(P, B, H, scale=0.5),
        c0=uniform(P, B, H, scale=0.5),
        action=torch.randint(A, (P, B, S), generator=g),
        reward=uniform(P, B, S),
        terminated=reset[:, :, 1:].clone(),
        reset=reset,
        mask=torch.ones(P, B, S, dtype=torch.bool),
        weight=torch.ones(P, B),
    )
    online = network(*(w.requires_grad_() for w in weights))
    return Problem(shape, online, network(*older), batch, TDSpec(gamma=0.99, compute_dtype=compute_dtype))


def ours(problem: Problem, td_unroll: Callable[..., TDOutput] | None = None) -> Callable[[], Gradients]:
    """The fused operator on a problem, called as a learner calls it.

    The target is packed beforehand, and gradients are written into buffers that are kept.

    Args:
        problem: the update.
        td_unroll: another operator in place of the fused one; tests pass broken ones.

    Returns:
        A callable without arguments that returns the gradients.
    """
    weights = problem.weights
    packed = ops.pack(problem.target, problem.spec.compute_dtype)
    buffers = RecurrentQParams._make(None if w is None else torch.empty_like(w) for w in problem.online)
    update_of = td_unroll or partial(ops.td_unroll, grads=buffers)

    def update() -> Gradients:
        loss = update_of(problem.online, packed, problem.batch, problem.spec).loss
        return [loss, *torch.autograd.grad(loss.sum(), weights)]

    return update


def expected(problem: Problem) -> Gradients:
    """The results of the float64 twin, which rounds no operand."""

    def double(values: Any) -> Any:
        return type(values)._make(v.detach().double() if v is not None and v.is_floating_point() else v for v in values)

    online, target, batch = double(problem.online), double(problem.target), double(problem.batch)
    leaves = [w.requires_grad_() for w in online if w is not None]
    out = reference.td_unroll(online, target, batch, TDSpec(gamma=problem.spec.gamma))
    return [out.loss.detach(), *torch.autograd.grad(out.loss.sum(), leaves)]


def check(name: str, got: Gradients, want: Gradients, precision: Precision = torch.float32) -> float:
    """Compare a candidate's results with the twin's.

    Args:
        name: what a message calls the candidate.
        got: the candidate's results.
        want: the twin's results.
        precision: what the candidate computes in, which decides the tolerance.

    Returns:
        The largest error, relative to the largest value of its tensor.

    Raises:
        WrongResult: the error is above ``TOLERANCE[precision]``. The message names the candidate and the tensor.
    """
    worst = 0.0
    for what, a, b in zip(NAMES, got, want, strict=True):
        if a.shape != b.shape:
            raise WrongResult(f"{name}: {what} has shape {list(a.shape)}; expected {list(b.shape)}; not timed")
        error = float((a.detach().double() - b).abs().max() / b.abs().max().clamp(min=1e-12))
        if not error <= TOLERANCE[precision]:
            raise WrongResult(
                f"{name}: {what} is off by {error:.1e} of its largest value; expected at most "
                f"{TOLERANCE[precision]:.0e}; not timed"
            )
        worst = max(worst, error)
    return worst


def judge(name: str, call: Callable[[], Gradients], want: Gradients, precision: Precision) -> float | str:
    """Check a peer, which may be wrong or fail without ending the benchmark.

    Args:
        name: what a message calls the peer.
        call: the peer.
        want: the twin's results.
        precision: what the peer computes in.

    Returns:
        The error of its result, or a sentence that says why the peer must not be timed.
    """
    try:
        return check(name, call(), want, precision)
    except WrongResult as error:
        return str(error)
    except (RuntimeError, TypeError) as error:  # cuDNN, Triton or the GPU's memory
        return f"{name}: {type(error).__name__}: {(str(error).splitlines() or [''])[0]}; not timed"
