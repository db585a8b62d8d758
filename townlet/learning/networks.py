"""Recurrent Q-networks for a whole population: functions of parameters that carry a leading member axis P.

A network object holds sizes only. Its parameters are a plain dict of tensors [P, ...], made by `init` and handed to
every call, so that online weights, target weights and views into a population's flat buffer all go through the same
code. Every layer serves all P members in one batched product.

Symbols: P members, D LSTM input features, H LSTM units, F units of the head's ReLU layer, A actions.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor

from ..ops.spatial import spatial_encode
from ..ops.types import RecurrentQParams, SpatialWeights
from .members import check_seeds

if TYPE_CHECKING:
    from ..envs.convolutions import Convolution
    from ..envs.images import ImageLayout

Params = Mapping[str, Tensor]

SHUT = -1e4
"""A gate bias whose sigmoid is exactly 0 in float32."""


class RecurrentNetwork(Protocol):
    """What population, learner and evaluation need of a network; `RecurrentQNetwork` explains each name."""

    obs_size: int
    n_actions: int
    feature_size: int
    hidden_size: int

    def shapes(self) -> dict[str, tuple[int, ...]]: ...

    def init(self, seeds: Sequence[int], chrono_span: int | None = None) -> dict[str, Tensor]: ...

    def encode(self, params: Params, obs: Tensor) -> Tensor: ...

    def layers(self, params: Params) -> tuple[tuple[Tensor, Tensor], ...] | None: ...

    def recurrent(self, params: Params) -> RecurrentQParams: ...

    def q_values(self, params: Params, h: Tensor) -> Tensor: ...


def cut_memory(p: RecurrentQParams) -> RecurrentQParams:
    """The same network without memory: no recurrent weights and a forget gate that is shut.

    Its unroll equals zeroing (h, c) before every step, whatever state it is handed, yet it keeps the meaning of
    `reset` (where episodes start) for validity and bootstrapping. The weights it leaves out get no gradient.
    """
    i, f, g, o = p.bias.chunk(4, dim=1)
    return p._replace(w_hh=torch.zeros_like(p.w_hh), bias=torch.cat((i, torch.full_like(f, SHUT), g, o), dim=1))


def _linear(params: Params, name: str, x: Tensor) -> Tensor:
    """One affine layer for all members: x [P, N, in] -> [P, N, out]; weight [P, out, in] as in `torch.nn.Linear`."""
    weight, bias = params[f"{name}.weight"], params[f"{name}.bias"]
    return torch.baddbmm(bias.unsqueeze(1), x, weight.transpose(1, 2))


def _positive(**sizes: int) -> None:
    for name, value in sizes.items():
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise ValueError(f"{name} is {value!r}; expected an int >= 1")


class _LSTMWithHead(ABC):
    """The part both networks share: parameters and their initialisation, the LSTM's and the head's weights."""

    def __init__(
        self, obs_size: int, n_actions: int, feature_size: int, hidden_size: int, head_size: int | None, dueling: bool
    ):
        _positive(obs_size=obs_size, n_actions=n_actions, hidden_size=hidden_size)
        if head_size is not None:
            _positive(head_size=head_size)
        self.obs_size = obs_size
        self.n_actions = n_actions
        self.feature_size = feature_size
        self.hidden_size = hidden_size
        self.head_size = head_size
        self.dueling = dueling

    @abstractmethod
    def _encoder_shapes(self) -> dict[str, tuple[int, ...]]:
        """Weights of the encoder's layers: name -> shape without the member axis, outputs first."""

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Name -> shape of every parameter, without the leading member axis."""
        H, A = self.hidden_size, self.n_actions
        streams = self.head_size or H
        weights = dict(self._encoder_shapes())
        if self.head_size is not None:
            weights["head.fc"] = (self.head_size, H)
        weights["head.adv"] = (A, streams)
        if self.dueling:
            weights["head.val"] = (1, streams)
        shapes: dict[str, tuple[int, ...]] = {}
        for name, shape in weights.items():
            shapes[f"{name}.weight"] = shape
            shapes[f"{name}.bias"] = shape[:1]
        shapes["lstm.w_ih"] = (4 * H, self.feature_size)
        shapes["lstm.w_hh"] = (4 * H, H)
        shapes["lstm.bias"] = (4 * H,)
        return shapes

    def init(self, seeds: Sequence[int], chrono_span: int | None = None) -> dict[str, Tensor]:
        """Fresh parameters: name -> float32 [P, ...], where member p's values depend on `seeds[p]` only.

        Encoder and head: orthogonal (Saxe et al. 2014), gain sqrt(2) before a ReLU and 1 at the outputs, biases 0.
        LSTM: uniform in +-1/sqrt(H) as in `torch.nn.LSTM`, plus 1 on the forget gate's bias (Jozefowicz et al. 2015).
        With `chrono_span` T (Tallec & Ollivier 2018), in steps and at least 2, each unit's forget bias is log(u), u
        uniform in [1, T - 1], so that it begins by keeping what it holds for about u steps; its input bias is -log(u).

        Raises:
            ValueError: there are no seeds, one is not an int in [0, 2**63), or `chrono_span` is below 2.
        """
        check_seeds(seeds)
        if chrono_span is not None and not chrono_span >= 2:
            raise ValueError(f"chrono_span is {chrono_span}; expected at least 2, or None")
        members = [self._init_one(int(seed), chrono_span) for seed in seeds]
        return {name: torch.stack([m[name] for m in members]) for name in members[0]}

    def _init_one(self, seed: int, chrono_span: int | None) -> dict[str, Tensor]:
        generator = torch.Generator().manual_seed(seed)
        H = self.hidden_size
        params: dict[str, Tensor] = {}
        for name, shape in self.shapes().items():
            value = torch.zeros(shape)
            if name.startswith("lstm."):
                value.uniform_(-(H**-0.5), H**-0.5, generator=generator)
                if name == "lstm.bias":
                    i, f, _, _ = value.chunk(4)
                    if chrono_span is None:
                        f += 1.0
                    else:
                        i.copy_(-f.uniform_(1.0, chrono_span - 1.0, generator=generator).log_())
            elif name.endswith(".weight"):
                gain = 1.0 if name in ("head.adv.weight", "head.val.weight") else 2.0**0.5
                torch.nn.init.orthogonal_(value, gain=gain, generator=generator)
            params[name] = value
        return params

    def encode(self, params: Params, obs: Tensor) -> Tensor:
        """LSTM input features of observations: obs [P, ..., obs_size] -> [P, ..., D].

        Raises:
            ValueError: `obs` does not have the members' axis first and `obs_size` last.
        """
        P = params["lstm.w_ih"].shape[0]
        if obs.dim() < 2 or obs.shape[0] != P or obs.shape[-1] != self.obs_size:
            raise ValueError(
                f"obs has shape {list(obs.shape)}; expected [P, ..., obs_size] = [{P}, ..., {self.obs_size}]"
            )
        features = self._encode_rows(params, obs.reshape(P, -1, self.obs_size))
        return features.reshape(*obs.shape[:-1], self.feature_size)

    def layers(self, params: Params) -> tuple[tuple[Tensor, Tensor], ...] | None:
        """The encoder as (weight, bias) of dense layers with a ReLU behind each; None where it is something else."""
        return None

    @abstractmethod
    def _encode_rows(self, params: Params, x: Tensor) -> Tensor:
        """[P, N, obs_size] -> [P, N, D]."""

    def recurrent(self, params: Params) -> RecurrentQParams:
        """The LSTM's and the head's weights in the form the operators take; the same tensors, not copies."""
        return RecurrentQParams(
            params["lstm.w_ih"],
            params["lstm.w_hh"],
            params["lstm.bias"],
            params.get("head.fc.weight"),
            params.get("head.fc.bias"),
            params["head.adv.weight"],
            params["head.adv.bias"],
            params.get("head.val.weight"),
            params.get("head.val.bias"),
        )

    def q_values(self, params: Params, h: Tensor) -> Tensor:
        """Q-values of LSTM outputs: h [P, N, H] -> [P, N, A].

        Dueling (Wang et al. 2016): value + advantage - mean advantage, the mean over all A actions.
        """
        if self.head_size is not None:
            h = torch.relu(_linear(params, "head.fc", h))
        q = _linear(params, "head.adv", h)
        if self.dueling:
            q = q - q.mean(-1, keepdim=True) + _linear(params, "head.val", h)
        return q


class RecurrentQNetwork(_LSTMWithHead):
    """MLP encoder -> LSTM -> (dueling) head, for observations that are flat vectors.

    The recurrent Q-network of DRQN (Hausknecht & Stone 2015) with the head of R2D2 (Kapturowski et al. 2019).

    Args:
        obs_size: numbers in an observation.
        n_actions: A, at least 1.
        encoder: units of the encoder's ReLU layers; () feeds the observation straight to the LSTM (D = obs_size).
        hidden_size: H.
        head_size: F, units of the head's ReLU layer; None for streams that read the LSTM's output.
        dueling: separate value and advantage streams.

    Raises:
        ValueError: a size is below 1; the argument is named.
    """

    def __init__(
        self,
        obs_size: int,
        n_actions: int,
        *,
        encoder: Sequence[int] = (128,),
        hidden_size: int = 128,
        head_size: int | None = 128,
        dueling: bool = True,
    ):
        for i, units in enumerate(encoder):
            _positive(**{f"encoder[{i}]": units})
        self.encoder = tuple(encoder)
        super().__init__(obs_size, n_actions, (obs_size, *encoder)[-1], hidden_size, head_size, dueling)

    def _encoder_shapes(self) -> dict[str, tuple[int, ...]]:
        sizes = (self.obs_size, *self.encoder)
        return {f"encoder.{i}": (sizes[i + 1], sizes[i]) for i in range(len(self.encoder))}

    def layers(self, params: Params) -> tuple[tuple[Tensor, Tensor], ...]:
        names = (f"encoder.{i}" for i in range(len(self.encoder)))
        return tuple((params[f"{name}.weight"], params[f"{name}.bias"]) for name in names)

    def _encode_rows(self, params: Params, x: Tensor) -> Tensor:
        for i in range(len(self.encoder)):
            x = torch.relu(_linear(params, f"encoder.{i}", x))
        return x


class RecurrentConvQNetwork(_LSTMWithHead):
    """Convolutions over the observation's image, ReLU layers over them and everything else in it, LSTM, head.

    Symbols of the image become planes of 0 and 1, brightness is scaled (`ImageLayout`). The convolutions have no
    padding and a ReLU behind each; all members' run as one grouped convolution. Their output and the other numbers of
    the observation (direction, last action, ...) are concatenated and go through the encoder's layers.

    Args:
        obs_size, n_actions, hidden_size, head_size, dueling: as in `RecurrentQNetwork`.
        image: where in the observation the image lies.
        conv: the convolutions, first to last.
        encoder: units of the ReLU layers behind them; () hands their output and the other numbers to the LSTM.

    Raises:
        ValueError: a size is below 1, or a convolution is larger than what it sees; the argument is named.
    """

    def __init__(
        self,
        obs_size: int,
        n_actions: int,
        image: ImageLayout,
        conv: Sequence[Convolution],
        *,
        encoder: Sequence[int] = (128,),
        hidden_size: int = 128,
        head_size: int | None = 128,
        dueling: bool = True,
    ):
        for i, units in enumerate(encoder):
            _positive(**{f"encoder[{i}]": units})
        self.image, self.encoder, self.convolutions = image, tuple(encoder), tuple(conv)
        height, width, channels = image.height, image.width, image.planes
        for i, layer in enumerate(self.convolutions):
            if layer.kernel > min(height, width):
                raise ValueError(
                    f"conv[{i}] has a kernel of {layer.kernel}; expected at most {height} x {width}, what it sees"
                )
            height, width = ((side - layer.kernel) // layer.stride + 1 for side in (height, width))
            channels = layer.channels
        self._inputs = channels * height * width + obs_size - image.size  # of the first layer behind the convolutions
        super().__init__(obs_size, n_actions, (self._inputs, *encoder)[-1], hidden_size, head_size, dueling)

    def _encoder_shapes(self) -> dict[str, tuple[int, ...]]:
        channels = (self.image.planes, *(layer.channels for layer in self.convolutions))
        shapes: dict[str, tuple[int, ...]] = {
            f"conv.{i}": (channels[i + 1], channels[i], layer.kernel, layer.kernel)
            for i, layer in enumerate(self.convolutions)
        }
        sizes = (self._inputs, *self.encoder)
        return shapes | {f"encoder.{i}": (sizes[i + 1], sizes[i]) for i in range(len(self.encoder))}

    def _planes(self, numbers: Tensor) -> Tensor:
        """The image [P, N, numbers] as maps for a grouped convolution, [N, P * planes, H, W] with channels last."""
        im, (P, N, _) = self.image, numbers.shape
        if im.channels_first:
            x = numbers.view(P, N, im.channels, im.height, im.width).permute(1, 3, 4, 0, 2)
        else:
            x = numbers.view(P, N, im.height, im.width, im.channels).permute(1, 2, 3, 0, 4)
        if im.symbols is None:
            x = (x - im.low) * im.scale
        else:
            # counted on the image's own device: numbers brought from the CPU would end a CUDA graph's capture
            values = [torch.arange(n, device=x.device) for n in im.symbols]
            x = torch.cat([x[..., c : c + 1] == value for c, value in enumerate(values)], -1).to(x.dtype)
        return x.reshape(N, im.height, im.width, P * im.planes).permute(0, 3, 1, 2)

    def _encode_rows(self, params: Params, x: Tensor) -> Tensor:
        (P, N, _), end = x.shape, self.image.start + self.image.size
        y = self._planes(x[..., self.image.start : end].contiguous())
        for i, layer in enumerate(self.convolutions):
            weight, bias = params[f"conv.{i}.weight"].flatten(0, 1), params[f"conv.{i}.bias"].flatten()
            y = torch.relu(torch.conv2d(y, weight, bias, stride=layer.stride, groups=P))
        maps = y.reshape(N, P, -1).transpose(0, 1)
        x = torch.cat([maps, x[..., : self.image.start], x[..., end:]], dim=-1)
        for i in range(len(self.encoder)):
            x = torch.relu(_linear(params, f"encoder.{i}", x))
        return x


class RecurrentSpatialQNetwork(_LSTMWithHead):
    """Convolutions over the Town's window, small layers for the rest of its observation, LSTM 256, head 128.

    The flat observation is: `planes` maps of height x width (a map at a time, rows first) | x, y, and 2 * `knots`
    weights of places | 8 meters | building underfoot (15), sin and cos of the hour, progress. The maps go through two
    3x3 convolutions (16 and 32 channels, padding 1, ReLU) and a ReLU layer of 128; the 2 + 2 * `knots` numbers of the
    position and the 8 meters through 32 units each; the last 18 numbers, what the place affords now, through 32.
    D = 128 + 32 + 32 + 32 = 224.

    Args:
        planes, height, width: the window's maps; `from_town` reads them off an environment.
        knots: of the position, along each axis (`TownArgs.knots`).
        n_actions, hidden_size, head_size, dueling: as in `RecurrentQNetwork`.

    Raises:
        ValueError: a size is below 1; the argument is named.
    """

    METERS, AFFORDANCE = 8, 18

    def __init__(
        self,
        planes: int,
        height: int,
        width: int,
        *,
        knots: int = 0,
        n_actions: int = 6,
        hidden_size: int = 256,
        head_size: int | None = 128,
        dueling: bool = True,
    ):
        _positive(planes=planes, height=height, width=width)
        self.planes, self.height, self.width, self.position = planes, height, width, 2 + 2 * knots
        obs_size = planes * height * width + self.position + self.METERS + self.AFFORDANCE
        super().__init__(obs_size, n_actions, 128 + 32 + 32 + 32, hidden_size, head_size, dueling)

    @classmethod
    def from_town(cls, town: Any, **sizes: Any) -> RecurrentSpatialQNetwork:
        """The network for the observations of a Town.

        Args:
            town: a `TownArgs`, or an environment made with them (its `args`).
            sizes: go to the constructor (hidden_size, head_size, dueling).

        Raises:
            ValueError: `town` is neither.
        """
        args = getattr(town, "args", town)
        if not hasattr(args, "observation"):
            raise ValueError(f"town is {town!r}; expected a TownArgs or a Town environment")
        return cls(*args.observation.map_shape, knots=args.knots, **sizes)

    def _encoder_shapes(self) -> dict[str, tuple[int, ...]]:
        return {
            "conv.0": (16, self.planes, 3, 3),
            "conv.1": (32, 16, 3, 3),
            "window": (128, 32 * self.height * self.width),
            "position": (32, self.position),
            "meters": (32, self.METERS),
            "affordance": (32, self.AFFORDANCE),
        }

    def _encode_rows(self, params: Params, x: Tensor) -> Tensor:
        names = ("conv.0", "conv.1", "window", "position", "meters", "affordance")
        weights = SpatialWeights(*(params[f"{name}.{part}"] for name in names for part in ("weight", "bias")))
        return spatial_encode(x, weights, self.height, self.width)
