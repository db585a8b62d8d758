"""Writes one member's acting network as TorchScript (`.pt`) or ONNX (`.onnx`), for use without Townlet.

Both formats hold one step for N environments: (obs, reset, h, c[, legal]) -> (q, action, h, c). The file also holds
metadata as JSON: what the numbers in an observation are, what the actions are called, and how the agent was trained.
"""

from __future__ import annotations

import io
import json
import logging
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ._build import __version__
from .evaluation.agent import Agent
from .learning.networks import Params, RecurrentNetwork
from .support.files import replacing

METADATA = "townlet.json"
"""Name of the metadata in a TorchScript file (``_extra_files``); in ONNX its key is "townlet"."""
_OPSET = 18


class _Encoder(nn.Module):
    """A network's own `encode` for one member: ``[N, obs_size]`` -> ``[N, D]``."""

    def __init__(self, network: RecurrentNetwork, params: Params) -> None:
        super().__init__()
        self.network = network
        self.names = list(params)
        for i, value in enumerate(params.values()):
            self.register_buffer(f"weight_{i}", value.detach().cpu().clone())

    def forward(self, obs: Tensor) -> Tensor:
        params = {name: getattr(self, f"weight_{i}") for i, name in enumerate(self.names)}
        return self.network.encode(params, obs.unsqueeze(0)).squeeze(0)


class ActingNetwork(nn.Module):
    """The greedy step of one member, in operations that TorchScript and ONNX know.

    An agent that was trained without memory treats every step as the first of an episode.

    Args:
        network: the sizes and the encoder.
        params: the member's parameters, name -> ``[1, ...]`` float32.
        memory: whether the agent was trained with memory.
        metadata: JSON that goes into the file.
    """

    def __init__(self, network: RecurrentNetwork, params: Params, *, memory: bool, metadata: str) -> None:
        super().__init__()
        self.metadata, self.memory, self.hidden_size = metadata, memory, network.hidden_size
        # the encoder reads the number of members off an LSTM weight, so it needs that one too
        own = [k for k in params if k == "lstm.w_ih" or not k.startswith(("lstm.", "head."))]
        self.encoder: nn.Module = _Encoder(network, {k: params[k] for k in own})
        w = network.recurrent({k: v.detach().cpu().clone() for k, v in params.items()})
        self.lstm = nn.LSTMCell(w.w_ih.shape[2], network.hidden_size)
        self.lstm.weight_ih.data, self.lstm.weight_hh.data = w.w_ih[0], w.w_hh[0]
        self.lstm.bias_ih.data, self.lstm.bias_hh.data = w.bias[0], torch.zeros_like(w.bias[0])
        self.fc = nn.Identity() if w.w_fc is None else nn.Sequential(_linear(w.w_fc, w.b_fc), nn.ReLU())
        self.advantage = _linear(w.w_adv, w.b_adv)
        self.dueling = w.w_val is not None
        self.value = _linear(w.w_val, w.b_val) if self.dueling else nn.Identity()

    def forward(
        self, obs: Tensor, reset: Tensor, h: Tensor, c: Tensor, legal: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """One step of N environments.

        Args:
            obs: ``[N, obs_size]`` float32.
            reset: ``[N]`` bool, whether the observation is the first of an episode.
            h: ``[N, H]`` float32, zeros to begin with.
            c: ``[N, H]`` float32, zeros to begin with.
            legal: ``[N, A]`` bool, or None for all legal. A row without a legal action counts as all legal.

        Returns:
            The Q-values ``[N, A]``, the actions ``[N]`` int64, and the new h and c. Ties go to the lowest action.
        """
        keep = (~reset if self.memory else torch.zeros_like(reset)).unsqueeze(1).to(h.dtype)
        h, c = self.lstm(self.encoder(obs), (h * keep, c * keep))
        y = self.fc(h)
        q = self.advantage(y)
        if self.dueling:
            q = q - q.mean(dim=1, keepdim=True) + self.value(y)
        allowed = torch.ones_like(q, dtype=torch.bool) if legal is None else legal
        allowed = allowed | ~allowed.any(dim=1, keepdim=True)
        action = q.masked_fill(~allowed, -1e38).argmax(dim=1)
        return q, action, h, c

    @torch.jit.export
    def initial_state(self, n: int) -> tuple[Tensor, Tensor]:
        """h and c before the first step of n environments, ``[n, H]`` float32 each."""
        return torch.zeros(n, self.hidden_size), torch.zeros(n, self.hidden_size)


def _linear(weight: Any, bias: Any) -> nn.Linear:
    layer = nn.Linear(weight.shape[2], weight.shape[1])
    layer.weight.data, layer.bias.data = weight[0], bias[0]
    return layer


def metadata(agent: Agent, member: int) -> dict[str, Any]:
    """What the file says about itself, as plain values: inputs, outputs, and where the weights come from."""
    worlds = agent.worlds(1)
    _, legal = worlds.reset([0] * worlds.num_envs)  # several agents: an environment each
    worlds.close()
    parts = [
        {"name": part.name, "kind": part.kind, "start": part.start, "size": part.size, "scaled": part.scaled,
         "space": str(part.space)}
        for part in worlds.layout
    ]  # fmt: skip
    return {
        "townlet": __version__,
        "env": agent.config.env,
        "env_steps": agent.env_steps,
        "member": member,
        "inputs": "obs [N, obs_size] float32, reset [N] bool, h [N, hidden_size], c [N, hidden_size]"
        + (", legal [N, actions] bool" if legal is not None else ""),
        "outputs": "q [N, actions], action [N] int64, h, c",
        "obs_size": worlds.obs_size,
        "observation": parts,
        "actions": worlds.action_names,
        "legal": legal is not None,
        "hidden_size": agent.network.hidden_size,
        "memory": agent.config.memory,
        "config": agent.config.to_dict(),
    }


def acting_network(agent: Agent, member: int = 0) -> ActingNetwork:
    """The acting network of one member.

    Args:
        agent: a trained agent.
        member: the member's number, from 0.

    Returns:
        The module, in evaluation mode.

    Raises:
        ValueError: no member has that number.
    """
    params = agent.member(member)
    text = json.dumps(metadata(agent, member))
    return ActingNetwork(agent.network, params, memory=agent.config.memory, metadata=text).eval()


def export(agent: Agent, path: str | Path, member: int = 0) -> None:
    """Write one member's acting network to a file, which appears whole or not at all.

    Args:
        agent: a trained agent.
        path: the file; its ending decides the format: `.pt` is TorchScript, `.onnx` is ONNX.
        member: the member's number, from 0.

    Raises:
        ValueError: ``path`` has another ending, no member has that number, or the packages that ONNX needs are not
            installed.
    """
    path = Path(path)
    if path.suffix not in (".pt", ".onnx"):
        raise ValueError(f"path is {path}; expected a name that ends in .pt (TorchScript) or .onnx")
    network = acting_network(agent, member)
    with warnings.catch_warnings():
        # torch warns that TorchScript is no longer developed, and that sizes are read while tracing. Those sizes are
        # the network's own and not N, so they may be constants.
        warnings.simplefilter("ignore")
        data = _onnx(network) if path.suffix == ".onnx" else _torchscript(network)
    with replacing(path, "wb") as file:
        file.write(data)


def _torchscript(network: ActingNetwork) -> bytes:
    buffer = io.BytesIO()
    example = torch.zeros(2, json.loads(network.metadata)["obs_size"])
    network.encoder = torch.jit.trace(network.encoder, example, check_trace=False)
    torch.jit.save(torch.jit.script(network), buffer, _extra_files={METADATA: network.metadata})
    return buffer.getvalue()


def _onnx(network: ActingNetwork) -> bytes:
    try:
        import onnx  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise ValueError(f"an .onnx file needs a package ({error}); try: pip install onnx onnxscript") from None
    facts = json.loads(network.metadata)
    n = 3
    arguments = [torch.zeros(n, facts["obs_size"]), torch.zeros(n, dtype=torch.bool), *network.initial_state(n)]
    names = ["obs", "reset", "h", "c"]
    if facts["legal"]:
        arguments.append(torch.ones(n, len(facts["actions"]), dtype=torch.bool))
        names.append("legal")
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)  # it logs every optional package that is missing
    program = torch.onnx.export(
        network,
        tuple(arguments),
        input_names=names,
        output_names=["q", "action", "h_next", "c_next"],
        dynamic_shapes=tuple({0: torch.export.Dim("N")} for _ in arguments),
        opset_version=_OPSET,
        dynamo=True,
        verbose=False,
    )
    assert program is not None
    program.model.metadata_props["townlet"] = network.metadata
    return program.model_proto.SerializeToString()
