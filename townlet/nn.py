"""PyTorch modules around the operators: ``ResetLSTM``."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from . import ops

__all__ = ["ResetLSTM"]


class ResetLSTM(nn.Module):
    """An LSTM that restarts inside a sequence, for P independent members at once.

    ``torch.nn.LSTM`` can do neither. This module has one layer and one direction (Hochreiter & Schmidhuber 1997, with
    the forget gate of Gers et al. 2000). The weights are stacked over members and map one to one to those of
    ``torch.nn.LSTM``. They are initialised as those are, uniformly in [-1/sqrt(H), 1/sqrt(H)].

    Args:
        input_size: D, the number of input features.
        hidden_size: H, the number of units.
        members: P, the number of independent LSTMs.
        num_layers: 1; layers cannot be stacked.

    Attributes:
        w_ih: ``[P, 4H, D]`` float32, with the gates in the order i, f, g, o.
        w_hh: ``[P, 4H, H]`` float32.
        bias: ``[P, 4H]`` float32, the sum of ``bias_ih`` and ``bias_hh``.

    Raises:
        ValueError: a size is not a positive int, or ``num_layers`` is not 1; the message names the argument.
    """

    def __init__(self, input_size: int, hidden_size: int, *, members: int = 1, num_layers: int = 1) -> None:
        super().__init__()
        for name, value in (("input_size", input_size), ("hidden_size", hidden_size), ("members", members)):
            if not isinstance(value, int) or value < 1:
                raise ValueError(f"{name} is {value!r}; expected a positive int")
        if num_layers != 1:
            raise ValueError(f"num_layers is {num_layers!r}; expected 1, since layers cannot be stacked")
        self.input_size, self.hidden_size, self.members = input_size, hidden_size, members
        bound = 1 / math.sqrt(hidden_size)

        def weight(*shape: int) -> nn.Parameter:
            return nn.Parameter(torch.empty(members, 4 * hidden_size, *shape).uniform_(-bound, bound))

        self.w_ih, self.w_hh = weight(input_size), weight(hidden_size)
        self.bias = nn.Parameter(torch.empty(members, 4 * hidden_size, 2).uniform_(-bound, bound).sum(-1))

    @classmethod
    def from_torch(cls, lstm: nn.LSTM) -> ResetLSTM:
        """A ResetLSTM of one member with the weights of a ``torch.nn.LSTM``.

        Args:
            lstm: the module whose weights are copied; it has one layer, one direction and no projection.

        Returns:
            A module that computes the same.

        Raises:
            ValueError: the module is of another kind; the message names the argument.
        """
        if lstm.num_layers != 1 or lstm.bidirectional or lstm.proj_size:
            raise ValueError(
                f"lstm has num_layers={lstm.num_layers}, bidirectional={lstm.bidirectional}, "
                f"proj_size={lstm.proj_size}; expected 1, False, 0"
            )
        own = cls(lstm.input_size, lstm.hidden_size)
        with torch.no_grad():
            weights = lstm.state_dict()
            own.w_ih[0], own.w_hh[0] = weights["weight_ih_l0"], weights["weight_hh_l0"]
            own.bias[0] = weights["bias_ih_l0"] + weights["bias_hh_l0"] if lstm.bias else 0.0
        return own

    def forward(
        self, x: Tensor, state: tuple[Tensor, Tensor] | None = None, reset: Tensor | None = None
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """Runs the LSTMs along B sequences for each member. For one member the axis P may be left out everywhere.

        Args:
            x: ``[P, B, T, D]``, the inputs, in the dtype of the weights.
            state: h and c before step 0, ``[P, B, H]`` each, in the dtype of the weights; None for zeros.
            reset: ``[P, B, T]`` bool, or None. Where it is set, the state is zeroed before the step.

        Returns:
            The outputs ``[P, B, T, H]``, and the pair of h and c after the last step, ``[P, B, H]`` each.

        Raises:
            ValueError: an argument does not fit; the message names it.
        """
        single = self.members == 1 and x.dim() == 3
        if single:
            x = x.unsqueeze(0)
            reset = None if reset is None else reset.unsqueeze(0)
            state = None if state is None else (state[0].unsqueeze(0), state[1].unsqueeze(0))
        if state is None:
            zeros = x.new_zeros(self.members, x.shape[1], self.hidden_size)
            state = (zeros, zeros)
        y, h, c = ops.lstm_unroll(x, state[0], state[1], self.w_ih, self.w_hh, self.bias, reset)
        return (y[0], (h[0], c[0])) if single else (y, (h, c))

    def extra_repr(self) -> str:
        """The sizes, as ``print`` shows them."""
        return f"{self.input_size}, {self.hidden_size}, members={self.members}"
