"""Recurrent Q-networks for a whole population: functions of parameters that carry a leading member axis P.

A network object holds sizes only. Its parameters are a plain dict of tensors ``[P, ...]``, which `init` makes and
every call takes. So online weights, target weights and views into a population's flat buffer all go through the same
code. Every layer serves all P members in one batched product.

Symbols: P members, N rows of a member, D LSTM input features, H LSTM units, F units of the head's ReLU layer,
A actions.
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
    from ..envs.images import ImageLayout
    from ..support.convolutions import Convolution

Params = Mapping[str, Tensor]

SHUT = -1e4
"""A gate bias whose sigmoid is exactly 0 in float32."""


class RecurrentNetwork(Protocol):
    """What population, learner and evaluation need of a network. `RecurrentQNetwork` explains each name."""

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

    Its unroll equals zeroing h and c before every step, whatever state it is given. Yet `reset` still says where
    episodes start, for validity and bootstrapping. The weights that are left out get no gradient.
    """
    i, f, g, o = p.bias.chunk(4, dim=1)
    return p._replace(w_hh=torch.zeros_like(p.w_hh), bias=torch.cat((i, torch.full_like(f, SHUT), g, o), dim=1))


def _linear(params: Params, name: str, x: Tensor) -> Tensor:
    """One affine layer for all members: x ``[P, N, in]`` becomes ``[P, N, out]``.

    The weight is ``[P, out, in]``, as in `torch.nn.Linear`.
    """
    weight, bias = params[f"{name}.weight"], params[f"{name}.bias"]
    return torch.baddbmm(bias.unsqueeze(1), x, weight.transpose(1, 2))


def _positive(**sizes: int) -> None:
    """Refuse sizes that are not positive ints, by their names."""
    for name, value in sizes.items():
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise ValueError(f"{name} is {value!r}; expected an int of at least 1")


class _LSTMWithHead(ABC):
    """What all networks share: parameters and their initialisation, and the weights of the LSTM and the head."""

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
        """The weights of the encoder's layers: name -> shape without the member axis, outputs first."""

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """The shape of every parameter by name, without the leading member axis."""
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
        """Fresh parameters. Member p's values depend on `seeds[p]` only.

        Encoder and head are orthogonal (Saxe et al. 2014), with gain sqrt(2) before a ReLU and 1 at the outputs, and
        their biases are 0. The LSTM is uniform in +-1/sqrt(H) as in `torch.nn.LSTM`, plus 1 on the forget gate's bias
        (Jozefowicz et al. 2015). With a chrono span T (Tallec & Ollivier 2018), each unit's forget bias is log(u) and
        its input bias is -log(u), where u is uniform from 1 to T - 1. So the unit begins by keeping what it holds for
        about u steps.

        Args:
            seeds: one int per member.
            chrono_span: T in steps, at least 2; None for the forget bias of 1.

        Returns:
            Name -> ``[P, ...]`` float32 on the CPU.

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
        """The LSTM's input features of observations.

        Args:
            params: name -> ``[P, ...]``.
            obs: ``[P, ..., obs_size]`` float32.

        Returns:
            ``[P, ..., D]`` float32.

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
        """The encoder's dense layers with a ReLU behind each, as weights ``[P, out, in]`` and biases ``[P, out]``.

        None where the encoder is something else.
        """
        return None

    @abstractmethod
    def _encode_rows(self, params: Params, x: Tensor) -> Tensor:
        """The features ``[P, N, D]`` of rows ``[P, N, obs_size]``."""

    def recurrent(self, params: Params) -> RecurrentQParams:
        """The weights of the LSTM and the head in the operators' form. They are the same tensors, not copies."""
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
        """The Q-values of LSTM outputs.

        With dueling (Wang et al. 2016) they are value + advantage - mean advantage, where the mean is over all A
        actions.

        Args:
            params: name -> ``[P, ...]``.
            h: ``[P, N, H]`` float32.

        Returns:
            ``[P, N, A]`` float32.
        """
        if self.head_size is not None:
            h = torch.relu(_linear(params, "head.fc", h))
        q = _linear(params, "head.adv", h)
        if self.dueling:
            q = q - q.mean(-1, keepdim=True) + _linear(params, "head.val", h)
        return q


class RecurrentQNetwork(_LSTMWithHead):
    """MLP encoder, LSTM and (dueling) head, for observations that are flat vectors.

    This is the recurrent Q-network of DRQN (Hausknecht & Stone 2015) with the head of R2D2 (Kapturowski et al. 2019).

    Args:
        obs_size: how many numbers an observation has.
        n_actions: A, at least 1.
        encoder: the units of the encoder's ReLU layers. With () the observation goes straight to the LSTM, and D is
            obs_size.
        hidden_size: H, the LSTM's units.
        head_size: F, the units of the head's ReLU layer; None for streams that read the LSTM's output.
        dueling: whether value and advantage are separate streams.

    Raises:
        ValueError: a size is below 1; the message names the argument.
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
    """Convolutions over the observation's image, ReLU layers over them and everything else, LSTM and head.

    Symbols of the image become planes of 0 and 1, and brightness is scaled (`ImageLayout`). The convolutions have no
    padding and a ReLU behind each. Those of all members run as one grouped convolution. Their output and the other
    numbers of the observation (direction, last action, ...) are concatenated and go through the encoder's layers.

    Args:
        obs_size: how many numbers an observation has.
        n_actions: A, at least 1.
        image: where in the observation the image lies.
        conv: the convolutions, first to last.
        encoder: the units of the ReLU layers behind the convolutions. With () their output and the other numbers go
            straight to the LSTM.
        hidden_size: as in `RecurrentQNetwork`.
        head_size: as in `RecurrentQNetwork`.
        dueling: as in `RecurrentQNetwork`.

    Raises:
        ValueError: a size is below 1, or a convolution is larger than what it sees; the message names the argument.
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
        self._inputs = channels * height * width + obs_size - image.size  # of the first dense layer
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
        """The image ``[P, N, numbers]`` as maps for a grouped convolution.

        They are ``[N, P * planes, height, width]``, in the memory format channels-last.
        """
        im, (P, N, _) = self.image, numbers.shape
        if im.channels_first:
            x = numbers.view(P, N, im.channels, im.height, im.width).permute(1, 3, 4, 0, 2)
        else:
            x = numbers.view(P, N, im.height, im.width, im.channels).permute(1, 2, 3, 0, 4)
        if im.symbols is None:
            x = (x - im.low) * im.scale
        else:
            # numbers made on the CPU would end a CUDA graph's capture, so the image's own device makes them
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
    """Convolutions over the Town's window, small layers for the rest of its observation, LSTM 256 and head 128.

    The flat observation has four parts: `planes` maps of height x width (a map at a time, rows first); x, y and
    2 * `knots` weights of places; 8 meters; and the building underfoot (15), sine and cosine of the hour, and progress.
    The maps go through two 3x3 convolutions (16 and 32 channels, padding 1, ReLU) and a ReLU layer of 128. The
    position, the meters and the last 18 numbers, which say what the place affords now, go through a ReLU layer of 32
    each. D = 128 + 32 + 32 + 32 = 224.

    Args:
        planes: how many maps the window has; `from_town` reads the window's sizes off an environment.
        height: the rows of a map.
        width: the columns of a map.
        knots: how many places the position has along each axis (`TownArgs.knots`).
        n_actions: A, at least 1.
        hidden_size: as in `RecurrentQNetwork`.
        head_size: as in `RecurrentQNetwork`.
        dueling: as in `RecurrentQNetwork`.

    Raises:
        ValueError: a size is below 1; the message names the argument.
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
            town: a `TownArgs`, or a Town environment, which has them as its `args`.
            sizes: more arguments of the constructor (hidden_size, head_size, dueling).

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
