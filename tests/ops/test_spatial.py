"""`spatial_encode` against its twin in float64: values, gradients, threads, company, errors."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from townlet.ops import reference
from townlet.ops.spatial import spatial_encode
from townlet.ops.types import SpatialWeights

SIZES = [  # P, N, planes, height, width, knots
    (1, 144, 2, 5, 5, 0),
    (2, 1, 1, 1, 1, 0),
    (3, 65, 3, 2, 7, 8),
    (2, 17, 16, 3, 3, 2),
    (1, 130, 2, 4, 1, 3),
]
Encode = Callable[[Tensor, SpatialWeights, int, int], Tensor]


def draw(
    P: int, N: int, planes: int, height: int, width: int, knots: int = 0, units: int = 16
) -> tuple[Tensor, SpatialWeights]:
    """Observations, and weights of layers with `units`, twice and three times as many units."""
    torch.manual_seed(0)
    outputs = (units, 2 * units, 3 * units, units, 2 * units, units)
    position = 2 + 2 * knots
    inputs = (planes, units, 2 * units * height * width, position, 8, 18)
    tensors = []
    for i, (n, k) in enumerate(zip(outputs, inputs, strict=True)):
        shape = (P, n, k, 3, 3) if i < 2 else (P, n, k)
        fan_in = k * 9 if i < 2 else k
        tensors += [torch.randn(shape) * fan_in**-0.5, torch.randn(P, n) * 0.3]
    return torch.randn(P, N, planes * height * width + position + 26), SpatialWeights(*tensors)


def results(encode: Encode, size: tuple[int, ...], dtype: torch.dtype, units: int = 16) -> list[Tensor]:
    """Features and the gradients of all weights."""
    obs, weights = draw(*size, units=units)
    own = SpatialWeights(*(w.to(dtype).requires_grad_() for w in weights))
    features = encode(obs.to(dtype), own, *size[3:5])
    return [features.detach(), *torch.autograd.grad(features, list(own), torch.randn(features.shape).to(dtype))]


def deviations(got: list[Tensor], expected: list[Tensor]) -> list[float]:
    """Relative L2 error of each tensor."""
    return [float((a.double() - b).norm() / b.norm()) for a, b in zip(got, expected, strict=True)]


TOLERANCE = 2e-6  # observed 3e-7


@pytest.mark.parametrize("size", SIZES)
def test_equals_the_twin_in_double_precision(size: tuple[int, ...]) -> None:
    expected = results(reference.spatial_encode, size, torch.float64)
    got = results(spatial_encode, size, torch.float32)
    assert max(deviations(got, expected)) < TOLERANCE


def test_the_kernel_is_what_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reference, "spatial_encode", None)
    results(spatial_encode, SIZES[0], torch.float32)
    with pytest.raises(TypeError):  # control: units that do not fill vectors go to the twin
        results(spatial_encode, SIZES[0], torch.float32, units=5)


def test_units_that_do_not_fill_vectors_go_to_the_twin() -> None:
    expected = results(reference.spatial_encode, SIZES[2], torch.float64, units=5)
    assert max(deviations(results(spatial_encode, SIZES[2], torch.float32, units=5), expected)) < TOLERANCE


def mutant(kind: str) -> Encode:
    """The twin with one thing wrong."""

    def encode(obs: Tensor, weights: SpatialWeights, height: int, width: int) -> Tensor:
        if kind == "maps by columns":
            n = weights.conv0_w.shape[2] * height * width
            maps = obs[..., :n].unflatten(-1, (-1, height, width)).transpose(-1, -2).flatten(-3)
            obs = torch.cat((maps, obs[..., n:]), -1)
        if kind == "kernels mirrored":
            weights = weights._replace(conv1_w=weights.conv1_w.flip(-1))
        if kind == "a bias forgotten":
            weights = weights._replace(conv1_b=weights.conv1_b * 0)
        if kind == "position and meters swapped":
            obs = torch.cat((obs[..., :-28], obs[..., -26:-18], obs[..., -28:-26], obs[..., -18:]), -1)
        if kind == "channels and pixels swapped":
            w = weights.window_w
            weights = weights._replace(window_w=w.unflatten(-1, (height * width, -1)).transpose(-1, -2).flatten(-2))
        return reference.spatial_encode(obs, weights, height, width)

    return encode


@pytest.mark.parametrize(
    "kind",
    ["maps by columns", "kernels mirrored", "a bias forgotten", "position and meters swapped",
     "channels and pixels swapped"],
)  # fmt: skip
def test_would_see_a_wrong_encoder(kind: str) -> None:
    expected = results(reference.spatial_encode, SIZES[0], torch.float64)
    off = deviations(results(mutant(kind), SIZES[0], torch.float64), expected)
    assert off[0] > 0.01
    assert sum(error > 0.01 for error in off[1:]) >= 2


def test_threads_and_company_leave_the_bits_alone() -> None:
    size = (3, 150, 2, 5, 5)
    before, runs = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            runs.append(results(spatial_encode, size, torch.float32))
    finally:
        torch.set_num_threads(before)
    for other in runs[1:]:
        assert all(torch.equal(a, b) for a, b in zip(runs[0], other, strict=True))
    obs, weights = draw(*size)
    with torch.no_grad():
        for p in range(3):
            alone = spatial_encode(obs[p : p + 1], SpatialWeights(*(w[p : p + 1] for w in weights)), 5, 5)
            assert torch.equal(alone[0], runs[0][0][p])
    assert not torch.equal(runs[0][0][0], runs[0][0][1]), "control"


def test_gradients_reach_observations_that_ask_for_them() -> None:
    obs, weights = draw(2, 6, 2, 3, 3)
    obs.requires_grad_()
    spatial_encode(obs, weights, 3, 3).sum().backward()
    assert obs.grad is not None
    assert obs.grad.any()


def test_double_backward_is_refused() -> None:
    obs, weights = draw(2, 6, 2, 3, 3)
    own = SpatialWeights(*(w.requires_grad_() for w in weights))
    loss = spatial_encode(obs, own, 3, 3).square().sum()
    with pytest.raises(RuntimeError, match="double backward is not supported"):
        torch.autograd.grad(loss, list(own), create_graph=True)


def test_errors_name_the_argument() -> None:
    obs, weights = draw(2, 6, 2, 3, 3)
    for change, message in (
        ({"obs": obs[0]}, r"obs has shape \[6, 46\]; expected \[P, N, numbers\]"),
        ({"obs": obs[..., 1:]}, r"obs has shape \[2, 6, 45\]; expected \[P, N, 46\]"),
        ({"height": 0}, "height is 0"),
        ({"conv1_b": weights.conv1_b[:1]}, r"conv1_b has shape \[1, 32\]; expected \[2, 32\]"),
        ({"window_w": weights.window_w[..., 1:]}, "window_w has shape"),
        ({"conv0_w": weights.conv0_w.flatten(3)}, "conv0_w has shape"),
        ({"meters_w": weights.meters_w.double()}, "meters_w has dtype float64"),
    ):
        arguments: dict[str, Any] = {"obs": obs, "height": 3, "width": 3}
        arguments |= {k: v for k, v in change.items() if k in arguments}
        own = weights._replace(**{k: v for k, v in change.items() if k not in arguments})
        with pytest.raises(ValueError, match=message):
            spatial_encode(arguments["obs"], own, arguments["height"], arguments["width"])


@pytest.mark.parametrize(("height", "width"), [(1, 1), (3, 2)])
def test_the_fake_kernel_knows_what_is_saved_for_every_number_of_images(height: int, width: int) -> None:
    """The kernel's formula stands twice, as the number of images may be a symbol: both give the same number."""
    for N in (1, 3, 4, 5, 15, 16, 17, 31, 33, 63, 64, 65, 127, 128, 129, 150, 300):
        obs, weights = draw(2, N, 1, height, width)
        real, saved = torch.ops.townlet.spatial_encode(obs, *weights, height, width, True)
        meta = (v.to("meta") for v in (obs, *weights))
        fake, fake_saved = torch.ops.townlet.spatial_encode(*meta, height, width, True)
        assert (fake.shape, fake_saved.shape) == (real.shape, saved.shape)
