"""Images in observations: where they lie, what their numbers mean, and convolutions against `torch.nn`."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from gymnasium.spaces import Box, Dict, Discrete, MultiBinary, Tuple
from gymnasium.vector.utils import concatenate, create_empty_array
from image_worlds import signs
from torch import nn
from worlds import tiny

from townlet.envs.images import default_convolutions, find_image
from townlet.envs.spaces import ObservationRows
from townlet.learning.networks import RecurrentConvQNetwork, RecurrentQNetwork
from townlet.support.convolutions import Convolution, parse_convolutions
from townlet.training.trainer import Trainer

pytestmark = pytest.mark.usefixtures("one_thread")

SYMBOLS = Box(0, np.broadcast_to(np.array([3, 1], np.uint8), (5, 6, 2)), dtype=np.uint8)
GREY = Box(0, 255, (8, 7, 3), np.uint8)
STACK = Box(-1.0, 3.0, (2, 8, 7), np.float32)  # channels first


def rows(space, values):
    return ObservationRows(space)(concatenate(space, values, create_empty_array(space, len(values))), len(values))


def network_for(space, obs_size, conv="3x2/2,4x2", **sizes):
    image = find_image(space, "a-world")
    assert image is not None
    return RecurrentConvQNetwork(obs_size, 3, image, parse_convolutions(conv), **sizes)


def test_an_image_is_found_where_it_lies_in_the_row():
    space = Dict({"b": SYMBOLS, "a": Discrete(5), "c": Tuple((MultiBinary(3), Box(0, 1, (2, 2))))})
    image = find_image(space, "w")
    assert image is not None
    value = space.sample()
    flat = rows(space, [value])[0]
    assert np.array_equal(flat[image.start : image.start + image.size], value["b"].ravel())
    assert image.start == 5  # a plain mapping is sorted
    assert image.name == "observation['b']"
    deep = Tuple((Discrete(2), Dict(z=Box(0, 1, (4,)), y=GREY)))
    inside = find_image(deep, "w")
    assert inside is not None
    assert (inside.start, inside.name) == (6, "observation[1]['y']")


def test_what_the_numbers_of_an_image_mean():
    symbols, grey, stack = (find_image(s, "w") for s in (SYMBOLS, GREY, STACK))
    assert symbols.symbols == (4, 2)
    assert (symbols.height, symbols.width, symbols.channels, symbols.planes) == (5, 6, 2, 6)
    assert (grey.symbols, grey.planes, grey.low, grey.scale) == (None, 3, 0.0, 1.0)  # scaled in the row
    assert (stack.height, stack.width, stack.channels, stack.channels_first) == (8, 7, 2, True)
    assert (stack.low, stack.scale) == (-1.0, 0.25)
    unbounded = find_image(Box(-np.inf, np.inf, (9, 9, 1)), "w")
    assert (unbounded.low, unbounded.scale) == (0.0, 1.0)
    # 33 values in one channel are too many, and negative integers are no symbols
    assert find_image(Box(0, 32, (5, 5, 2), np.uint8), "w").symbols is None
    assert find_image(Box(-1, 3, (5, 5, 2), np.int8), "w").symbols is None
    assert find_image(Box(0, 31, (5, 5, 2), np.uint8), "w").symbols == (32, 32)


def test_no_image_or_several():
    for space in (Discrete(3), Box(0, 1, (5, 5)), Dict(a=Box(0, 1, (7,)))):
        assert find_image(space, "w") is None
    assert find_image(SYMBOLS, "w", least=6) is None
    with pytest.raises(ValueError, match=r"w: observation holds 2 images \(observation\['a'\], observation\['b'\]\); "):
        find_image(Dict(a=GREY, b=GREY), "w")


@pytest.mark.parametrize("space", [SYMBOLS, GREY, STACK])
@pytest.mark.parametrize("members", [1, 3])
def test_the_network_equals_convolutions_of_each_member(space, members):
    whole = Dict(a=Discrete(3), image=space, z=Box(-1, 1, (2,), np.float32))
    values = [whole.sample() for _ in range(members * 4 * 5)]
    obs = torch.from_numpy(rows(whole, values))
    network = network_for(whole, obs.shape[1], encoder=(9, 8), hidden_size=8)
    generator = torch.Generator().manual_seed(5)
    params = network.init(range(members))
    params = {k: v + 0.1 * torch.randn(v.shape, generator=generator) for k, v in params.items()}  # biases too
    features = network.encode(params, obs.view(members, 4, 5, -1))
    assert features.shape == (members, 4, 5, 8)
    for p in range(members):
        mine = values[p * 20 : p * 20 + 20]
        image = torch.tensor(np.stack([v["image"] for v in mine]))
        if space is SYMBOLS:  # planes of the first channel's values 0..3, then of the second's 0, 1
            y = torch.cat([nn.functional.one_hot(image[..., i].long(), n) for i, n in ((0, 4), (1, 2))], -1)
            y = y.permute(0, 3, 1, 2).float()
        elif space is GREY:
            y = image.permute(0, 3, 1, 2) / 255.0
        else:
            y = (image + 1) / 4
        for i, stride in enumerate((2, 1)):
            y = nn.functional.conv2d(y, params[f"conv.{i}.weight"][p], params[f"conv.{i}.bias"][p], stride).relu()
        rest = obs[p * 20 : p * 20 + 20]
        x = torch.cat([y.flatten(1), rest[:, :3], rest[:, -2:]], 1)
        for i in range(2):
            x = nn.functional.linear(x, params[f"encoder.{i}.weight"][p], params[f"encoder.{i}.bias"][p]).relu()
        assert torch.allclose(features[p].reshape(20, -1), x, atol=1e-5)  # observed 6e-7
        control = network.encode(params, obs.view(members, 4, 5, -1) * 1.5)[p].reshape(20, -1)
        assert not torch.allclose(control, x, atol=1e-2)


def test_without_layers_behind_them_the_lstm_sees_maps_and_the_other_numbers():
    space = Dict(a=Discrete(3), image=SYMBOLS)
    network = network_for(space, 63, encoder=())
    assert network.feature_size == 4 * 1 * 2 + 3
    obs = torch.from_numpy(rows(space, [space.sample()])[0])
    assert torch.equal(network.encode(network.init([1]), obs.view(1, 1, -1))[0, 0, -3:], obs[:3])


def test_a_members_values_depend_on_its_seed_only():
    network = network_for(SYMBOLS, 60)
    many, alone = network.init([7, 8]), network.init([8])
    assert all(torch.equal(many[k][1], alone[k][0]) for k in many)
    assert not torch.equal(many["conv.0.weight"][0], many["conv.0.weight"][1])


def test_convolutions_are_read_and_chosen_by_size():
    assert parse_convolutions("32x8/4, 64x3") == (Convolution(32, 8, 4), Convolution(64, 3, 1))
    assert default_convolutions(find_image(SYMBOLS, "w")) == parse_convolutions("16x3,32x3")
    large = find_image(Box(0, 255, (84, 84, 3), np.uint8), "w")
    assert default_convolutions(large) == parse_convolutions("32x8/4,64x4/2,64x3")
    for text in ("", "16", "16x0", "x3", "16x3/0", "16x3,"):
        with pytest.raises(ValueError, match=r"conv is .*; expected CHANNELSxKERNEL"):
            parse_convolutions(text)
    with pytest.raises(ValueError, match=r"conv is '16', in which '16' is no convolution; expected CHANNELSxKERNEL"):
        tiny(conv="16")
    with pytest.raises(ValueError, match=r"conv\[1\] has a kernel of 5; expected at most 4 x 5"):
        network_for(SYMBOLS, 60, "3x2,3x5")
    with pytest.raises(ValueError, match=r"encoder\[0\] is 0"):
        network_for(SYMBOLS, 60, encoder=(0,))


def test_auto_takes_convolutions_where_there_is_an_image_and_they_learn():
    trainer = Trainer(signs(total_steps=800, learning_starts=200, capacity=2_000, replay_ratio=20.0, batch_size=16))
    assert isinstance(trainer.network, RecurrentConvQNetwork)
    before = trainer.population.online["conv.0.weight"].detach().clone()
    trainer.train()
    assert not torch.equal(before, trainer.population.online["conv.0.weight"])
    assert trainer.evaluate().returns.mean() > 4  # of 6; 1.5 by chance; seen 5.3 to 5.8
    trainer.population.online["conv.0.weight"].detach().zero_()
    assert trainer.evaluate().returns.mean() < 2, "control: what it knows came through the convolution"
    assert isinstance(Trainer(signs(network="mlp")).network, RecurrentQNetwork)


def test_conv_without_an_image_is_named():
    with pytest.raises(ValueError, match=r"network is conv; expected an image .* in what CartPole-v1 shows: Box"):
        Trainer(tiny(env="CartPole-v1", network="conv"))
    assert isinstance(Trainer(tiny(env="CartPole-v1")).network, RecurrentQNetwork)
