"""What the operators take and return: named tuples of tensors, and the settings of a TD target.

These symbols have the same meaning and the same order everywhere: P members, E environments per member, B sequences per
member, S transitions per sequence (which has S + 1 observations), D LSTM input features, H LSTM hidden size, F head
hidden size, A actions.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor


class RecurrentQParams(NamedTuple):
    """Weights of P recurrent Q-networks: an LSTM and a head, which may be dueling (Wang et al. 2016).

    All tensors have one floating dtype: float32 for the compiled kernels, or float64 for the twins alone. The LSTM's
    weights map one to one to those of ``torch.nn.LSTM``: the gates come in the order i, f, g, o, and
    ``bias = bias_ih + bias_hh``. ``w_fc`` and ``b_fc`` are given together or not at all, and so are ``w_val`` and
    ``b_val``. Without ``w_fc`` the streams read the LSTM's output, and F equals H.

    Attributes:
        w_ih: ``[P, 4H, D]``, the LSTM's input weights.
        w_hh: ``[P, 4H, H]``, the LSTM's recurrent weights.
        bias: ``[P, 4H]``, the sum of the LSTM's two biases.
        w_fc: ``[P, F, H]``, the weights of the head's ReLU layer, or None without that layer.
        b_fc: ``[P, F]``, the bias of that layer, or None.
        w_adv: ``[P, A, F]``, the weights of the advantages (without a value stream: of the Q-values).
        b_adv: ``[P, A]``, their bias.
        w_val: ``[P, 1, F]``, the weights of the dueling value stream, or None without that stream.
        b_val: ``[P, 1]``, its bias, or None.
    """

    w_ih: Tensor
    w_hh: Tensor
    bias: Tensor
    w_fc: Tensor | None
    b_fc: Tensor | None
    w_adv: Tensor
    b_adv: Tensor
    w_val: Tensor | None = None
    b_val: Tensor | None = None


class SpatialWeights(NamedTuple):
    """Weights of P encoders over maps and other numbers, laid out as in ``torch.nn.Conv2d`` and ``torch.nn.Linear``.

    Every layer may have any number of units. The compiled kernel takes multiples of 16, and the twin takes all. In
    ``townlet.RecurrentSpatialQNetwork`` C0 is 16, C1 is 32, M is 128, and U is 32 in each of the three small layers,
    which read K = 2 + 2 * ``knots`` numbers of the position, 8 meters and 18 numbers of what the place affords.

    Attributes:
        conv0_w: ``[P, C0, planes, 3, 3]``, the weights of the first convolution.
        conv0_b: ``[P, C0]``.
        conv1_w: ``[P, C1, C0, 3, 3]``, the weights of the second convolution.
        conv1_b: ``[P, C1]``.
        window_w: ``[P, M, C1 * height * width]``, the weights of the layer over all pixels.
        window_b: ``[P, M]``.
        position_w: ``[P, U, K]``, the weights of the layer over the position.
        position_b: ``[P, U]``.
        meters_w: ``[P, U, 8]``, the weights of the layer over the meters.
        meters_b: ``[P, U]``.
        affordance_w: ``[P, U, 18]``, the weights of the layer over what the place affords.
        affordance_b: ``[P, U]``.
    """

    conv0_w: Tensor
    conv0_b: Tensor
    conv1_w: Tensor
    conv1_b: Tensor
    window_w: Tensor
    window_b: Tensor
    position_w: Tensor
    position_b: Tensor
    meters_w: Tensor
    meters_b: Tensor
    affordance_w: Tensor
    affordance_b: Tensor


class ActorParams(NamedTuple):
    """A whole network in the form that acting takes: dense layers, each with a ReLU behind it, then LSTM and head.

    Attributes:
        layers: pairs of a weight ``[P, out, in]`` and a bias ``[P, out]``, first layer first. Without any layer the
            LSTM reads the observation itself.
        recurrent: the LSTM's and the head's weights, in the same dtype.
    """

    layers: tuple[tuple[Tensor, Tensor], ...]
    recurrent: RecurrentQParams


class ActorSizes(NamedTuple):
    """Sizes that ``check_actor`` reads off the parameters of a network.

    Attributes:
        P: members.
        widths: the width of the observation, then the units of each layer; the last of them is D.
        H: LSTM hidden size.
        head: F where the head has a hidden layer, else 0.
        A: actions.
        dueling: whether there is a value stream.
    """

    P: int
    widths: tuple[int, ...]
    H: int
    head: int
    A: int
    dueling: bool


class ActOutput(NamedTuple):
    """What one acting step returns.

    Attributes:
        action: ``[P, E]`` int64, the actions chosen.
        q: ``[P, E, A]``, the Q-values of all actions, legal or not, in the dtype of the weights.
        h: ``[P, E, H]``, the hidden state after the step.
        c: ``[P, E, H]``, the cell state after the step.
    """

    action: Tensor
    q: Tensor
    h: Tensor
    c: Tensor


ACTING_STREAM = 1
"""Which of a member's Philox streams the epsilon-greedy choice draws from."""


class SequenceBatch(NamedTuple):
    """B replayed sequences for each of P members.

    Transition t is *valid* where ``mask[t]`` is set, unless observation t + 1 starts another episode (``reset[t + 1]``)
    although transition t did not terminate. At positions that are not valid, action, reward and terminated may hold
    anything, NaN included. Floating tensors have the dtype of the weights.

    Attributes:
        features_online: ``[P, B, S+1, D]``, the encoder's output under the online weights; must be finite.
        features_target: ``[P, B, S+1, D]``, the same observations under the target encoder; None without a target.
        h0: ``[P, B, H]``, the hidden state that was stored before observation 0. Both networks start from it.
        c0: ``[P, B, H]``, the cell state that was stored with it.
        action: ``[P, B, S]`` int64, in ``[0, A)`` at valid positions.
        reward: ``[P, B, S]``.
        terminated: ``[P, B, S]`` bool, the true end of an episode. A truncation is not one.
        reset: ``[P, B, S+1]`` bool, observation t is the first of an episode. The state is zeroed before it.
        mask: ``[P, B, S]`` bool, transition t is real.
        weight: ``[P, B]``, importance-sampling weights.
        legal: ``[P, B, S+1, A]`` bool, or None where all actions are legal. A row without a legal action counts as all
            legal.
    """

    features_online: Tensor
    features_target: Tensor | None
    h0: Tensor
    c0: Tensor
    action: Tensor
    reward: Tensor
    terminated: Tensor
    reset: Tensor
    mask: Tensor
    weight: Tensor
    legal: Tensor | None = None


class TDOutput(NamedTuple):
    """What one call of ``td_unroll`` returns, in the dtype of the weights. Only ``loss`` is differentiable.

    Attributes:
        loss: ``[P]``, the weighted mean over the member's valid transitions from step ``burn_in`` on.
        td_error: ``[P, B, S]``, y - Q(s_t, a_t); 0 in burn-in and where the transition is not valid.
        priority: ``[P, B]``, eta * max abs(td_error) + (1 - eta) * mean abs(td_error).
        q_taken: ``[P, B, S]``, Q(s_t, a_t); 0 where the transition is not valid.
        h_final: ``[P, B, H]``, the online network's hidden state after observation S.
        c_final: ``[P, B, H]``, its cell state.
    """

    loss: Tensor
    td_error: Tensor
    priority: Tensor
    q_taken: Tensor
    h_final: Tensor
    c_final: Tensor


@dataclass(frozen=True)
class TDSpec:
    """How ``td_unroll`` forms the TD target and the loss.

    Raises:
        ValueError: a field has a value outside its range; the message names the field. The call of ``td_unroll`` checks
            ``burn_in`` against S.
    """

    gamma: float | Tensor = 0.99
    """The discount per transition, in [0, 1]: a float for all members or a tensor ``[P]``."""
    n_step: int = 1
    """How many transitions the return takes before it bootstraps; at least 1, and it may exceed S."""
    burn_in: int = 0
    """L: the leading transitions that only warm the state up (R2D2, Kapturowski et al. 2019); 0 <= L < S."""
    double_q: bool = True
    """The online network chooses the successor's action, and the target network values it (van Hasselt et al. 2016)."""
    rescale_eps: float = 0.0
    """The epsilon of the invertible value rescaling h (Pohlen et al. 2018; R2D2 uses 1e-3). 0 switches h off."""
    loss: Literal["huber", "mse"] = "huber"
    """The loss of a TD error e: ``mse`` is e**2 / 2, and ``huber`` is ``torch.nn.functional.huber_loss``."""
    huber_delta: float = 1.0
    """The absolute TD error beyond which the Huber loss grows linearly."""
    eta: float = 0.9
    """The weight of the maximum against the mean of the absolute TD errors in the priority of a sequence (R2D2)."""
    compute_dtype: torch.dtype = torch.float32
    """``torch.float32``, or ``torch.bfloat16`` operands of matrix products. Sums, gates and weights stay float32."""
    backend: Literal["auto", "kernel", "reference"] = "auto"
    """``auto`` runs the compiled kernel where one fits; elsewhere it runs the reference and says so once."""

    def __post_init__(self) -> None:
        def need(ok: bool, name: str, expected: str) -> None:
            if not ok:
                raise ValueError(f"TDSpec.{name} is {getattr(self, name)!r}; expected {expected}")

        if isinstance(self.gamma, Tensor):
            need(self.gamma.dim() == 1, "gamma", "a float or a tensor [P]")
            # the range of a tensor is not checked on an accelerator: that would wait for the device
            if self.gamma.device.type == "cpu" and not torch.compiler.is_compiling():
                need(bool(((self.gamma >= 0) & (self.gamma <= 1)).all()), "gamma", "values in [0, 1]")
        else:
            need(0.0 <= self.gamma <= 1.0, "gamma", "a value in [0, 1]")
        need(isinstance(self.n_step, int) and self.n_step >= 1, "n_step", "an int >= 1")
        need(isinstance(self.burn_in, int) and self.burn_in >= 0, "burn_in", "an int >= 0")
        need(0.0 <= self.rescale_eps < float("inf"), "rescale_eps", "a finite value >= 0")
        need(self.loss in ("huber", "mse"), "loss", "'huber' or 'mse'")
        need(0.0 < self.huber_delta < float("inf"), "huber_delta", "a finite value > 0")
        need(0.0 <= self.eta <= 1.0, "eta", "a value in [0, 1]")
        need(self.compute_dtype in (torch.float32, torch.bfloat16), "compute_dtype", "torch.float32 or torch.bfloat16")
        need(self.backend in ("auto", "kernel", "reference"), "backend", "'auto', 'kernel' or 'reference'")


class Sizes(NamedTuple):
    """The sizes that ``check_td_unroll`` reads off its arguments, by their symbols."""

    P: int
    B: int
    S: int
    D: int
    H: int
    F: int
    A: int


class ReplayStores(NamedTuple):
    """Everything that a replay buffer keeps of the steps of N = P * E streams, one stream behind the other.

    The order of these fields is the order in which the replay operators take the stores, and the order in which
    ``replay_write`` takes new steps (``ReplaySteps``). The ring of a stream holds ``ring`` steps: row
    ``s * ring + t % ring`` belongs to step t of stream s. A state is kept once every ``stride`` steps: row
    ``(s * ring + t % ring) // stride`` of ``h`` and ``c`` belongs to the window that starts at step t.

    Attributes:
        obs: ``[N * ring, obs_size]`` float32.
        action: ``[N * ring]`` int32.
        reward: ``[N * ring]`` float32.
        terminated: ``[N * ring]`` bool.
        reset: ``[N * ring]`` bool.
        mask: ``[N * ring]`` bool.
        legal: ``[N * ring, A]`` bool, or None where the buffer keeps no legal actions.
        h: ``[N * ring / stride, H]`` float32, the hidden state before the first observation of each window.
        c: ``[N * ring / stride, H]`` float32, the cell state there.
    """

    obs: Tensor
    action: Tensor
    reward: Tensor
    terminated: Tensor
    reset: Tensor
    mask: Tensor
    legal: Tensor | None
    h: Tensor
    c: Tensor


class ReplayTables(NamedTuple):
    """What a replay buffer knows of its streams and windows, in the order in which ``replay_write`` takes it.

    Attributes:
        start: ``[N * ring / stride]`` int64, the step at which the slot's window starts, or -1 without a whole window.
        priority: ``[N * ring / stride]`` float64, the priority of that window.
        written: ``[N]`` int64 on the CPU, how many steps were ever written to each stream. The schema says ``count``,
            which is a method of every tuple.
        closed: ``[N]`` bool on the CPU, the next step of the stream must open an episode.
        max_priority: ``[P]`` float64, the priority that new windows of a member get.
    """

    start: Tensor
    priority: Tensor
    written: Tensor
    closed: Tensor
    max_priority: Tensor


class ReplaySteps(NamedTuple):
    """Steps to be written: n of them for each of m streams. The fields are those of ``ReplayStores``, in their order.

    The leading dimensions may have any form that holds m * n rows, one stream behind the other.

    Attributes:
        obs: ``[m, n, obs_size]`` float32, finite.
        action: ``[m, n]`` int64.
        reward: ``[m, n]`` float32.
        terminated: ``[m, n]`` bool.
        reset: ``[m, n]`` bool.
        mask: ``[m, n]`` bool.
        legal: ``[m, n, A]`` bool, or None for all legal.
        h: ``[m, n, H]`` float32, the hidden state before each observation.
        c: ``[m, n, H]`` float32, the cell state before it.
    """

    obs: Tensor
    action: Tensor
    reward: Tensor
    terminated: Tensor
    reset: Tensor
    mask: Tensor
    legal: Tensor | None
    h: Tensor
    c: Tensor
