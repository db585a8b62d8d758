"""Networks: batched layers against `torch.nn` member by member, initial values, memory, errors."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from townlet import ops, reference
from townlet.envs.town import TownArgs, TownVectorEnv
from townlet.learning.members import check_seeds
from townlet.learning.networks import RecurrentQNetwork, RecurrentSpatialQNetwork, cut_memory

pytestmark = pytest.mark.usefixtures("one_thread")
Params = dict[str, Tensor]


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


def linear(params: Params, name: str, member: int) -> nn.Linear:
    weight = params[f"{name}.weight"][member]
    layer = nn.Linear(weight.shape[1], weight.shape[0])
    layer.weight.data, layer.bias.data = weight, params[f"{name}.bias"][member]
    return layer


def noisy(params: Params) -> Params:
    """Biases start at 0, where a forgotten one would not show."""
    generator = torch.Generator().manual_seed(5)
    return {name: v + 0.1 * torch.randn(v.shape, generator=generator) for name, v in params.items()}


def test_mlp_encoder_equals_linear_layers_of_each_member() -> None:
    network = RecurrentQNetwork(5, 3, encoder=(16, 9), hidden_size=8, head_size=7)
    assert network.feature_size == 9
    params = noisy(network.init([1, 2, 3]))
    obs = torch.randn(3, 4, 6, 5)
    features = network.encode(params, obs)
    assert features.shape == (3, 4, 6, 9)
    for p in range(3):
        expected = linear(params, "encoder.1", p)(linear(params, "encoder.0", p)(obs[p]).relu()).relu()
        assert torch.allclose(features[p], expected, atol=1e-5)  # observed 3e-7
    assert not torch.allclose(features[0], network.encode(params, obs[[1, 1, 1]])[0], atol=1e-2), "control"


def test_an_empty_encoder_hands_the_observation_on() -> None:
    network = RecurrentQNetwork(5, 3, encoder=(), hidden_size=8)
    obs = torch.randn(2, 4, 5)
    assert network.feature_size == 5
    assert torch.equal(network.encode(network.init([1, 2]), obs), obs)


@pytest.mark.parametrize("head_size", [None, 7])
@pytest.mark.parametrize("dueling", [True, False])
def test_head_equals_layers_of_each_member_and_the_operators_head(head_size: int | None, dueling: bool) -> None:
    network = RecurrentQNetwork(5, 3, hidden_size=8, head_size=head_size, dueling=dueling)
    params = noisy(network.init([1, 2]))
    h = torch.randn(2, 6, 8)
    q = network.q_values(params, h)
    assert q.shape == (2, 6, 3)
    for p in range(2):
        x = h[p] if head_size is None else linear(params, "head.fc", p)(h[p]).relu()
        expected = linear(params, "head.adv", p)(x)
        if dueling:
            expected = linear(params, "head.val", p)(x) + expected - expected.mean(-1, keepdim=True)
        assert torch.allclose(q[p], expected, atol=1e-5)  # observed 4e-7
    weights = network.recurrent(params)
    assert (weights.w_fc is None) == (head_size is None)
    assert (weights.w_val is None) == (not dueling)
    assert torch.allclose(q, reference.head(weights, h), atol=1e-5)


def test_lstm_weights_map_to_torch() -> None:
    network = RecurrentQNetwork(5, 3, encoder=(9,), hidden_size=8)
    params = network.init([1, 2])
    w = network.recurrent(params)
    assert w.w_ih is params["lstm.w_ih"]
    assert w.w_hh is params["lstm.w_hh"]
    x = torch.randn(2, 4, 6, 9)
    y, _, _ = ops.lstm_unroll(x, torch.zeros(2, 4, 8), torch.zeros(2, 4, 8), w.w_ih, w.w_hh, w.bias, None)
    for p in range(2):
        lstm = nn.LSTM(9, 8, batch_first=True)
        lstm.weight_ih_l0.data, lstm.weight_hh_l0.data = w.w_ih[p], w.w_hh[p]
        lstm.bias_ih_l0.data, lstm.bias_hh_l0.data = w.bias[p], torch.zeros(32)
        assert torch.allclose(y[p], lstm(x[p])[0], atol=1e-5)  # observed 2e-7


def test_a_members_initial_values_depend_on_its_seed_only() -> None:
    network = RecurrentQNetwork(5, 3)
    many, alone = network.init([7, 8, 9]), network.init([8])
    torch.manual_seed(99)  # the global generator has no say
    again = network.init([8])
    for name in many:
        assert torch.equal(many[name][1], alone[name][0])
        assert torch.equal(alone[name], again[name])
    assert not torch.equal(many["lstm.w_hh"][0], many["lstm.w_hh"][1])


def test_initial_values_are_as_documented() -> None:
    H = 64
    params = RecurrentQNetwork(100, 3, encoder=(32,), hidden_size=H, head_size=16).init([3])
    weight = params["encoder.0.weight"][0]
    assert torch.allclose(weight @ weight.T, 2 * torch.eye(32), atol=1e-4)  # orthogonal rows, gain sqrt(2)
    weight = params["head.adv.weight"][0]
    assert torch.allclose(weight @ weight.T, torch.eye(3), atol=1e-4)
    for name in ("lstm.w_ih", "lstm.w_hh"):
        assert 0.9 * H**-0.5 < params[name].abs().max() <= H**-0.5
    forget = params["lstm.bias"][0].view(4, H).mean(1)
    assert torch.allclose(forget, torch.tensor([0.0, 1.0, 0.0, 0.0]), atol=0.05)
    assert not params["encoder.0.bias"].any()
    assert not params["head.adv.bias"].any()


def test_chrono_initialisation_keeps_what_units_hold_for_up_to_the_span() -> None:
    H, span = 256, 50
    network = RecurrentQNetwork(5, 3, encoder=(8,), hidden_size=H)
    plain, chrono = network.init([3]), network.init([3], span)
    i, f, g, o = chrono["lstm.bias"][0].view(4, H)
    assert torch.equal(i, -f)
    assert torch.equal(torch.cat((g, o)), plain["lstm.bias"][0, 2 * H :])
    assert torch.equal(chrono["lstm.w_hh"], plain["lstm.w_hh"])
    spans = f.exp()  # uniform in [1, span - 1]
    assert 1.0 <= spans.min() < 2.0
    assert span - 2.0 < spans.max() <= span - 1.0
    assert abs(spans.mean() - span / 2) < 3.0  # standard deviation of the mean 0.87
    # a state that nothing feeds: with the weights away, the LSTM keeps c for as long as its gates say
    w = {k: torch.zeros_like(v) if k != "lstm.bias" else v.clone() for k, v in chrono.items()}
    w["lstm.bias"][0, 2 * H : 3 * H] = 0.0
    p = network.recurrent(w)
    c0 = torch.ones(1, 1, H)
    steps = 20
    x = torch.zeros(1, 1, steps, 8)
    _, _, c = ops.lstm_unroll(x, torch.zeros_like(c0), c0, p.w_ih, p.w_hh, p.bias, None)
    assert torch.allclose(c[0, 0], (spans / (1 + spans)) ** steps, atol=1e-5)
    with pytest.raises(ValueError, match=r"chrono_span is 1; expected at least 2, or None"):
        network.init([3], 1)


@pytest.mark.parametrize("town", [{}, {"level": "hamlet"}, {"partial": False}, {"radius": 3, "window": "kind"}])
def test_spatial_network_equals_convolutions_over_the_towns_maps(town: dict[str, object]) -> None:
    args = TownArgs(**town)  # type: ignore[arg-type]
    network = RecurrentSpatialQNetwork.from_town(args)
    layout = args.observation
    assert network.obs_size == layout.size
    assert network.feature_size == 224
    assert network.hidden_size == 256
    params = noisy(network.init([1, 2]))
    assert params["conv.0.weight"].shape == (2, 16, layout.map_shape[0], 3, 3)
    assert params["conv.1.weight"].shape == (2, 32, 16, 3, 3)
    obs = torch.rand(2, 3, 4, layout.size)
    features = network.encode(params, obs)
    for p in range(2):
        y = obs[p][..., layout.map].reshape(12, *layout.map_shape)
        for name in ("conv.0", "conv.1"):
            weight = params[f"{name}.weight"][p]
            conv = nn.Conv2d(weight.shape[1], weight.shape[0], 3, padding=1)
            conv.weight.data, conv.bias.data = weight, params[f"{name}.bias"][p]  # type: ignore[union-attr]
            y = conv(y).relu()
        place = torch.cat([obs[p][..., part] for part in (layout.underfoot, layout.clock, layout.progress)], -1)
        expected = torch.cat(
            [
                linear(params, "window", p)(y.reshape(3, 4, -1)).relu(),
                linear(params, "position", p)(obs[p][..., layout.position]).relu(),
                linear(params, "meters", p)(obs[p][..., layout.meters]).relu(),
                linear(params, "affordance", p)(place).relu(),
            ],
            dim=-1,
        )
        assert torch.allclose(features[p], expected, atol=1e-4)  # observed 1e-5
    assert network.q_values(params, torch.zeros(2, 5, 256)).shape == (2, 5, 6)


def test_spatial_network_from_an_environment() -> None:
    env = TownVectorEnv(2, level="hamlet")
    network = RecurrentSpatialQNetwork.from_town(env, hidden_size=32, head_size=None, dueling=False)
    obs, _ = env.reset(seed=0)
    features = network.encode(network.init([1]), torch.as_tensor(obs).unsqueeze(0))
    assert features.shape == (1, 2, 224)
    assert network.hidden_size == 32
    with pytest.raises(ValueError, match="town is 3; expected a TownArgs"):
        RecurrentSpatialQNetwork.from_town(3)


def test_cut_memory_equals_a_state_zeroed_before_every_step() -> None:
    network = RecurrentQNetwork(5, 3, encoder=(9,), hidden_size=8)
    params = {name: v.requires_grad_() for name, v in network.init([1, 2]).items()}
    w = network.recurrent(params)
    x, state = torch.randn(2, 4, 6, 9), torch.randn(2, 2, 4, 8)
    always = torch.ones(2, 4, 6, dtype=torch.bool)
    zeroed, h, _ = ops.lstm_unroll(x, state[0], state[1], w.w_ih, w.w_hh, w.bias, always)
    cut = cut_memory(w)
    y, h_cut, _ = ops.lstm_unroll(x, state[0], state[1], cut.w_ih, cut.w_hh, cut.bias, None)
    assert torch.allclose(y, zeroed, atol=1e-6)
    assert torch.allclose(h, h_cut, atol=1e-6)
    carried, _, _ = ops.lstm_unroll(x, state[0], state[1], w.w_ih, w.w_hh, w.bias, None)
    assert not torch.allclose(y, carried, atol=1e-2), "control: memory matters here"
    grads = torch.autograd.grad(y.sum(), [params["lstm.w_hh"], params["lstm.bias"]], allow_unused=True)
    expected = torch.autograd.grad(zeroed.sum(), params["lstm.bias"])[0]
    assert grads[0] is None or not grads[0].any()
    assert torch.allclose(grads[1], expected, atol=1e-5)
    assert not grads[1].view(2, 4, 8)[:, 1].any()


@pytest.mark.parametrize("shape", [(5,), (3, 5), (2, 6), (2, 4, 1)])
def test_wrong_observation_shapes_are_named(shape: tuple[int, ...]) -> None:
    network = RecurrentQNetwork(5, 3)
    with pytest.raises(ValueError, match=r"obs has shape .*expected \[P, ..., obs_size\] = \[2, ..., 5\]"):
        network.encode(network.init([1, 2]), torch.zeros(shape))


def test_wrong_sizes_are_named() -> None:
    with pytest.raises(ValueError, match="hidden_size is 0"):
        RecurrentQNetwork(5, 3, hidden_size=0)
    with pytest.raises(ValueError, match=r"encoder\[1\] is 0"):
        RecurrentQNetwork(5, 3, encoder=(4, 0))
    with pytest.raises(ValueError, match="n_actions is True"):
        RecurrentQNetwork(5, True)
    with pytest.raises(ValueError, match="head_size is -1"):
        RecurrentQNetwork(5, 3, head_size=-1)
    with pytest.raises(ValueError, match="width is 0"):
        RecurrentSpatialQNetwork(2, 3, 0)
    for seeds in ([], [-1], [1.5], [2**63]):
        with pytest.raises(ValueError, match="seeds"):
            check_seeds(seeds)  # type: ignore[arg-type]
