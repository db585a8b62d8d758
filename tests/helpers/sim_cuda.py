"""A simulated GPU for a CPU build of torch: tensors that say cuda:0, whose numbers lie in tensors of the CPU.

Every operation on such a tensor arrives at `launch`, which refuses what a GPU refuses (operands on two devices, numpy
on the device), notes what a GPU would have to be waited for (`GPU.waits`), raises where a stream capture would, and
else computes the result on the CPU. The package's own operators go to the host shim (tests/emu). So devices and
results are real; streams, speed, and what cuBLAS and cuDNN do are not.

The stand-in of `fake_gpu` has to be loaded before this module. `simulate` switches the simulation on, for the rest of
the process.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import cuda_emu
import torch
from tape import TapeRecorder
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

from townlet import _native
from townlet.learning import learner as learners
from townlet.learning.cuda_graph import Step
from townlet.support import devices

CUDA, CPU = torch.device("cuda", 0), torch.device("cpu")

READS = {"aten._local_scalar_dense": "a number is read", "aten.equal": "tensors are compared on the CPU"}
SIZES = {"aten.nonzero", "aten.masked_select", "aten._unique2", "aten.bincount", "aten.repeat_interleave"}
"""Operations whose result has a size that depends on numbers of the device."""
INDEXING = {"aten.index", "aten.index_put", "aten.index_put_", "aten._index_put_impl_"}
COPIES = {"aten._to_copy", "aten.copy_", "aten.copy"}
SCALARS = {"aten.fill_", "aten.masked_fill", "aten.masked_fill_", "aten.index_put", "aten.index_put_"}
"""Operations besides the elementwise ones that take a tensor [] of the CPU together with tensors of a GPU."""


class Gpu:
    """What became known of the device.

    Attributes:
        waits: what -> how often the CPU would have waited for the device.
        capturing: whether operations are being captured, as by `torch.cuda.graph`.
    """

    def __init__(self) -> None:
        self.waits: Counter[str] = Counter()
        self.capturing = False

    def note(self, what: str, name: str, *, waits: bool = True) -> None:
        """Something that a capture refuses; waits: and that the CPU waits for."""
        if self.capturing:
            raise RuntimeError(f"operation not permitted when stream is capturing: {what} ({name})")
        if waits:
            self.waits[what] += 1


GPU = Gpu()


class Simulated(Tensor):
    """A tensor on cuda:0. `inner`: the tensor of the CPU that holds its numbers."""

    inner: Tensor
    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, inner: Tensor) -> Simulated:
        layout = {"strides": inner.stride(), "storage_offset": inner.storage_offset(), "dtype": inner.dtype}
        out = Tensor._make_wrapper_subclass(cls, inner.size(), device=CUDA, **layout)
        out.inner = inner
        return out

    def __repr__(self) -> str:  # type: ignore[override]
        return f"Simulated({self.inner!r})"

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return launch(func, args, kwargs or {})


class Simulation(TorchDispatchMode):
    """Hands in the operations that have no tensor of the device among their arguments, but make one."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return launch(func, args, kwargs or {})


def on_cuda(device: torch.device | str | None) -> bool:
    return device is not None and torch.device(device).type == "cuda"


def tensors(tree: Any) -> list[Tensor]:
    return [v for v in tree_leaves(tree) if isinstance(v, Tensor)]


def inner(tree: Any) -> Any:
    """The same structure with tensors of the CPU in place of simulated ones."""
    return tree_map(lambda v: v.inner if isinstance(v, Simulated) else v, tree)


def moved(tree: Any) -> Any:
    """The same structure with simulated tensors in place of tensors of the CPU."""
    return tree_map(lambda v: Simulated(v) if isinstance(v, Tensor) and not isinstance(v, Simulated) else v, tree)


def launch(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """One operation, as dispatched below autograd."""
    name = str(func).rpartition(".")[0]  # without the overload
    given = tensors((args, kwargs))
    there = [v for v in given if isinstance(v, Simulated)]
    here = [v for v in given if not isinstance(v, Simulated)]
    device = kwargs.get("device")
    host_arguments = inner({**kwargs, "device": CPU} if "device" in kwargs else kwargs)
    if not there and not on_cuda(device):
        return func(*args, **kwargs)
    if name in COPIES:
        return copy(func, name, args, host_arguments, device)
    if there and here:
        check_devices(func, name, args, here)
    note_waits(name, args, here, there)
    if name.startswith("townlet."):
        func = getattr(torch.ops.townlet_emu, name.removeprefix("townlet.")).default
    out = func(*inner(args), **host_arguments)
    if name in READS:
        return out
    written = [
        kwargs.get(declared.name) if declared.kwarg_only else args[i]
        for i, declared in enumerate(func._schema.arguments)
        if declared.alias_info is not None and declared.alias_info.is_write and (declared.kwarg_only or i < len(args))
    ]
    returns_written = any(r.alias_info is not None and r.alias_info.is_write for r in func._schema.returns)
    return written[0] if written and returns_written else moved(out)


def copy(func: Any, name: str, args: tuple[Any, ...], kwargs: dict[str, Any], device: Any) -> Any:
    """A copy within a device or between two; only one from pinned memory, not blocking, makes nobody wait."""
    in_place = name != "aten._to_copy"
    source = args[1] if in_place else args[0]
    target_there = isinstance(args[0], Simulated) if in_place or device is None else on_cuda(device)
    if isinstance(source, Simulated) and not target_there:
        GPU.note("a copy to the CPU", name)
    if not isinstance(source, Simulated) and target_there:
        blocking = not (args[2] if in_place and len(args) > 2 else kwargs.get("non_blocking", False))
        GPU.note("a copy from the CPU", name, waits=blocking or not getattr(source, "pinned", False))
    out = func(*inner(args), **kwargs)
    if in_place:
        return args[0]
    return moved(out) if target_there else out


def check_devices(func: Any, name: str, args: tuple[Any, ...], here: list[Tensor]) -> None:
    """RuntimeError for operands on two devices, but for those that torch brings to the device by itself."""
    indices = tensors(args[1]) if name in INDEXING else []
    for value in here:
        scalar = value.dim() == 0 and (torch.Tag.pointwise in func.tags or name in SCALARS)
        if not scalar and not any(value is index for index in indices):
            raise RuntimeError(
                "Expected all tensors to be on the same device, but found at least two devices, cuda:0 and cpu! "
                f"({name}, a tensor {list(value.shape)} on the CPU)"
            )


def note_waits(name: str, args: tuple[Any, ...], here: list[Tensor], there: list[Simulated]) -> None:
    """What an operation on the device waits for beyond its own work."""
    if name in READS:
        GPU.note(READS[name], name)
    if name in SIZES:
        GPU.note("a size is read", name)
    if name not in INDEXING:
        return
    indices = tensors(args[1])
    value = args[2] if name != "aten.index" else None
    number = isinstance(value, Tensor) and value.dim() == 0 and not isinstance(value, Simulated)
    masks = [index for index in indices if index.dtype in (torch.bool, torch.uint8)]
    if masks and not (number and len(indices) == 1):  # a single mask and a number: torch fills and reads no size
        GPU.note("a size is read", f"{name} with a mask")
    if any(not isinstance(index, Simulated) for index in indices):
        GPU.note("a copy from the CPU", f"{name} with an index on the CPU")
    if number and not masks:
        GPU.note("a copy from the CPU", f"{name} with a number")


# ---- what torch does outside of its dispatcher --------------------------------------------------------------------


def pin_memory(value: Tensor) -> Tensor:
    """`Tensor.pin_memory` as torch has it: a new tensor with the strides of the old one, which is then filled."""
    if value.device.type != "cpu":
        raise RuntimeError(f"cannot pin '{value.type()}' only dense CPU tensors can be pinned")
    GPU.note("memory is pinned", "pin_memory", waits=False)
    reach = sum((size - 1) * stride for size, stride in zip(value.shape, value.stride(), strict=True))
    storage = torch.UntypedStorage((1 + reach if value.numel() else 0) * value.element_size())
    out = torch.empty(0, dtype=value.dtype).set_(storage, 0, value.shape, value.stride())
    out.copy_(value)
    out.pinned = True  # type: ignore[attr-defined]
    return out


def without_numpy(numpy: Callable[..., Any]) -> Callable[..., Any]:
    """`Tensor.numpy`, which refuses tensors of the device."""

    def checked(value: Tensor, *args: Any, **kwargs: Any) -> Any:
        if isinstance(value, Simulated):
            raise TypeError("can't convert cuda:0 device type tensor to numpy. Use Tensor.cpu() first.")
        return numpy(value, *args, **kwargs)

    return checked


def on_either_device(make: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """`torch.tensor` and `torch.as_tensor`, which make a tensor of the CPU first and then copy it to the device."""

    def made(data: Any, *, device: Any = None, **kwargs: Any) -> Tensor:
        if not on_cuda(device) and not isinstance(data, Simulated):
            return make(data, device=device, **kwargs)
        value = data if isinstance(data, Tensor) else make(data, **kwargs)
        return value.to(device, **kwargs)

    return made


# ---- the package on the simulated device --------------------------------------------------------------------------


@contextmanager
def capturing() -> Iterator[None]:
    """In here a stream capture is under way."""
    GPU.capturing = True
    try:
        yield
    finally:
        GPU.capturing = False


class SimulatedRecorder(TapeRecorder):
    """In place of `CudaRecorder`: refuses what a capture refuses, and replays the operations of the CPU beneath."""

    def __init__(self, device: torch.device) -> None:
        super().__init__()
        assert device == CUDA, device

    def record(self, step: Step) -> tuple[dict[str, Tensor], Callable[[], object]]:
        def captured() -> dict[str, Tensor]:
            with capturing(), Simulation():  # above the tape, which thereby sees tensors of the CPU
                return step()

        return super().record(captured)


def resolve(name: str) -> torch.device:
    return CUDA if on_cuda(name) else CPU


def simulate() -> None:
    """From here on, in this process, there is an H100 with 64 GiB."""
    torch.cuda._lazy_init = lambda: None
    Tensor.pin_memory = pin_memory  # type: ignore[assignment]
    Tensor.numpy = without_numpy(Tensor.numpy)  # type: ignore[method-assign]
    torch.tensor, torch.as_tensor = on_either_device(torch.tensor), on_either_device(torch.as_tensor)
    devices.missing = lambda: ""
    devices.resolve = resolve
    devices.total_memory = lambda device: 2**36
    devices.device_name = lambda device: str(device)
    _native.CUDA = True
    learners.CudaRecorder = SimulatedRecorder  # type: ignore[attr-defined]
    cuda_emu.emu.set_gpu(90, 132)
    Simulation().__enter__()
