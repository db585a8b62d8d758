"""Modules around the operators."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from . import ops

__all__ = ["ResetLSTM"]


class ResetLSTM(nn.Module):
    """An LSTM that restarts inside a sequence, for P independent members at once: what `torch.nn.LSTM` lacks.

    input_size D, hidden_size H, members P. One layer, one direction; weights are stacked over members and map one to
    one to `torch.nn.LSTM` (`bias` is its bias_ih + bias_hh). Initialised as `torch.nn.LSTM` is: uniform in
    +-1/sqrt(H). Errors: ValueError for sizes that are not positive ints, and for `num_layers` other than 1.
    """

    def __init__(self, input_size: int, hidden_size: int, *, members: int = 1, num_layers: int = 1) -> None:
        super().__init__()
        for name, value in (("input_size", input_size), ("hidden_size", hidden_size), ("members", members)):
            if not isinstance(value, int) or value < 1:
                raise ValueError(f"{name} is {value!r}; expected a positive int")
        if num_layers != 1:
            raise ValueError(f"num_layers is {num_layers!r}; stacked layers are not supported, expected 1")
        self.input_size, self.hidden_size, self.members = input_size, hidden_size, members
        bound = 1 / math.sqrt(hidden_size)

        def weight(*shape: int) -> nn.Parameter:
            return nn.Parameter(torch.empty(members, 4 * hidden_size, *shape).uniform_(-bound, bound))

        self.w_ih, self.w_hh = weight(input_size), weight(hidden_size)
        self.bias = nn.Parameter(torch.empty(members, 4 * hidden_size, 2).uniform_(-bound, bound).sum(-1))

    @classmethod
    def from_torch(cls, lstm: nn.LSTM) -> ResetLSTM:
        """A ResetLSTM of one member with the weights of a one-layer, one-directional `torch.nn.LSTM`."""
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
        """x [P, B, T, D] -> (y [P, B, T, H], (h_T, c_T) each [P, B, H]); for one member P may be left out everywhere.

        state: (h, c) before step 0, zeros when None. reset: bool [P, B, T]; where set, the state is zeroed before the
        step. Errors: ValueError naming the argument whose shape does not fit.
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
        return f"{self.input_size}, {self.hidden_size}, members={self.members}"
