"""A simulated CUDA device, so that device code can be tested on a machine without a GPU.

Within `simulated_cuda`, ``device="cuda"`` gives a `SimulatedTensor`: it reports ``device == cuda:0``, keeps
its values in a CPU tensor and computes there. Every operation on it, those of a backward pass included, goes
through ``SimulatedTensor.__torch_dispatch__``, which

* refuses what CUDA refuses: operands on different devices, a generator of another device, conversion to
  numpy, and under ``torch.use_deterministic_algorithms(True)`` operations whose CUDA kernels use atomic
  additions or scan floats. Some of these have slow deterministic kernels in recent versions of torch; they
  are refused all the same, since the package must not depend on the version;
* records host waits, kernel launches, copies between host and device, each with the line that caused it, and the
  bytes of the tensors alive on the device.

Not simulated: the inside of kernels (their memory, speed, missing dtypes, rounding), streams, asynchronous errors,
cuBLAS's need for ``CUBLAS_WORKSPACE_CONFIG``, gradients through a copy between devices, and other threads
than the one that entered the context (torch runs with one thread within).
"""

# mypy: ignore-errors

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import cache
from pathlib import Path
from types import CodeType, SimpleNamespace
from typing import Any, NamedTuple
from unittest import mock

import torch
from torch.optim import optimizer
from torch.overrides import TorchFunctionMode

import amilst_lite

TESTED = ("2.13",)
"""Versions of torch with which the simulation was tested; it relies on internals."""

_PACKAGE = str(Path(amilst_lite.__file__).parent)
_NOT_CALLERS = (str(Path(torch.__file__).parent), __file__, "<")
_CPU = torch.device("cpu")

# Operations after which the host waits for the device: it needs a value, or the size of the result.
_WAITS = {
    "_local_scalar_dense": "item", "nonzero": "nonzero", "masked_select": "masked_select", "equal": "equal",
    "bincount": "bincount", "repeat_interleave": "repeat_interleave", "_unique2": "unique",
    "unique_dim": "unique", "unique_consecutive": "unique", "_linalg_eigh": "eigh",
}  # fmt: skip
_NO_LAUNCH = {"_local_scalar_dense", "empty_like", "new_empty", "new_empty_strided"}
_NOT_DETERMINISTIC = {
    "index_add", "scatter_add", "scatter_reduce", "put", "histc", "kthvalue", "median",
    "_embedding_bag_dense_backward",
}  # fmt: skip
_INDEX, _INDEX_PUT = {"index", "_unsafe_index"}, {"index_put", "_index_put_impl", "_unsafe_index_put"}
# Like the operations that torch tags as elementwise, these accept a CPU tensor of no dimension.
_ELEMENTWISE = {"masked_fill", "fill", *_INDEX_PUT}
_FROM_DATA = {torch.tensor, torch.as_tensor, torch.asarray}
_SPECIAL = _FROM_DATA | {torch.nn.functional.one_hot}
_PLACES = {"device", "generator"}
_MEMORY = 80 * 2**30

_active: SimulatedCuda | None = None


def unsupported() -> str | None:
    """Why the simulation does not work here; None where it does."""
    version = ".".join(torch.__version__.split(".")[:2])
    if version not in TESTED:
        return f"the simulated CUDA device was tested with torch {', '.join(TESTED)}; found {version}"
    if torch.version.cuda is not None and not torch.cuda.is_available():
        return "the simulated CUDA device needs a CPU build of torch: a CUDA build asks for the driver"
    if torch.cuda.is_available():
        return "this machine has a CUDA device; the tests marked cuda use it"
    return None


class SimulatedCuda:
    """What happened on the device. Keys of the counters are (operation, line).

    Attributes
    ----------
    waits : Counter
        The host waited for the device: it read a value, or the size of a result depended on values.
    launches : Counter
        Operations that launch a kernel, about as many as CUDA would launch.
    copies : Counter
        ``"upload"`` to the device or ``"download"`` from it. A download is a wait, too.
    alive, peak : int
        Bytes of the tensors on the device: now, and at most so far.
    moved : int
        Bytes of the operands and results of all operations, each once in an operation.
    """

    def __init__(self, n_devices: int) -> None:
        self.n_devices = n_devices
        self.alive = self.peak = self.moved = 0
        self._holders: Counter = Counter()  # tensors that share a storage, by its address
        self.waits, self.launches, self.copies = Counter(), Counter(), Counter()

    def report(self, top: int = 20) -> str:
        """The most frequent waits, for the message of an assertion."""
        waits = [f"{n:5d} {operation}: {line}" for (operation, line), n in self.waits.most_common(top)]
        return "\n".join([f"{self.waits.total()} waits, {self.launches.total()} launches", *waits])

    def resolve(self, device: Any) -> torch.device:
        """A device with its index."""
        device = torch.device(device)
        if device.type != "cuda":
            return device
        if (device.index or 0) >= self.n_devices:
            raise RuntimeError("CUDA error: invalid device ordinal")
        return torch.device("cuda", device.index or 0)

    def wait(self, operation: str) -> None:
        self.waits[operation, _line()] += 1

    def launch(self, operation: str) -> None:
        self.launches[operation, _line()] += 1

    def hold(self, tensor: SimulatedTensor) -> None:
        """Count the memory of a new tensor until it is deleted, once for all views of it."""
        values = tensor.on_cpu
        # the entries of a sparse tensor are tensors of their own
        storage = None if values.layout != torch.strided else values.untyped_storage()
        key, size = (id(tensor), 0) if storage is None else (storage.data_ptr(), storage.nbytes())
        self._holders[key] += 1
        if self._holders[key] == 1:
            self.alive += size
            self.peak = max(self.peak, self.alive)
        tensor.held = _Held(self, key, size)

    def release(self, key: int, size: int) -> None:
        self._holders[key] -= 1
        if self._holders[key] == 0:
            del self._holders[key]
            self.alive -= size

    def copy(self, source: torch.device) -> None:
        if source.type == "cuda":
            self.wait("download")
        self.copies["upload" if source == _CPU else "download", _line()] += 1


class _Held:
    """Memory of a tensor, released when the tensor is deleted, which holds the only reference; cheap to make."""

    __slots__ = ("cuda", "key", "size")

    def __init__(self, cuda: SimulatedCuda, key: int, size: int) -> None:
        self.cuda, self.key, self.size = cuda, key, size

    def __del__(self) -> None:
        self.cuda.release(self.key, self.size)


def _line() -> str:
    """``file:line function``: the innermost line of the package, else the innermost outside of torch."""
    outside, frame = "unknown", sys._getframe(1)
    while frame is not None:
        owner = _owner(frame.f_code)
        if owner == "package" or (owner == "caller" and outside == "unknown"):
            outside = _place(frame.f_code, frame.f_lineno)
        if owner == "package":
            break
        frame = frame.f_back
    return outside


@cache
def _owner(code: CodeType) -> str:
    if code.co_filename.startswith(_PACKAGE):
        return "package"
    return "torch" if code.co_filename.startswith(_NOT_CALLERS) else "caller"


@cache
def _place(code: CodeType, line: int) -> str:
    file = code.co_filename
    name = file[len(_PACKAGE) + 1 :] if file.startswith(_PACKAGE) else Path(file).name
    return f"{name}:{line} {code.co_name}"


class SimulatedTensor(torch.Tensor):
    """Reports a CUDA device; ``on_cpu`` holds its values."""

    @staticmethod
    def __new__(cls, on_cpu: torch.Tensor, device: torch.device) -> SimulatedTensor:
        memory = {}
        if on_cpu.layout == torch.strided:
            memory = {"strides": on_cpu.stride(), "storage_offset": on_cpu.storage_offset()}
        # to C++ it is on the CPU: the autograd of a CPU build accepts nothing else
        self = torch.Tensor._make_wrapper_subclass(
            cls, on_cpu.shape, dtype=on_cpu.dtype, device=_CPU, **memory
        )
        self.on_cpu, self._device, self._owner = on_cpu, device, _active
        if _active is not None:
            _active.hold(self)
        return self

    __torch_function__ = torch._C._disabled_torch_function_impl

    device = property(lambda self: self._device)
    layout = property(lambda self: self.on_cpu.layout)
    is_cuda = property(lambda self: True)

    @property
    def cuda_of(self) -> SimulatedCuda:
        """The record of the device, as long as that exists: afterwards the machine has no GPU."""
        if self._owner is None or self._owner is not _active:
            raise RuntimeError("the tensor is on a simulated CUDA device that no longer exists")
        return self._owner

    def __repr__(self, **_: Any) -> str:
        return f"{self.on_cpu!r} on {self.device}"

    def __reduce_ex__(self, protocol: Any) -> Any:
        return _unpickle, (self.on_cpu.detach(), str(self.device))

    def numpy(self, *_: Any, **__: Any) -> Any:
        raise TypeError(
            f"can't convert {self.device} tensor to numpy: copy it to the host with cpu() ({_line()})"
        )

    __array__ = numpy

    def tolist(self) -> Any:
        self.cuda_of.wait("tolist")
        return self.on_cpu.tolist()

    def to(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        return _to(self.cuda_of, self, *args, **kwargs)

    def cpu(self, **_: Any) -> torch.Tensor:
        return _move(self.cuda_of, self, _CPU)

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        tensors: list[torch.Tensor] = []
        values, options = _plain(args, tensors), _plain(kwargs or {}, tensors)
        simulated = next(tensor for tensor in tensors if isinstance(tensor, cls))
        is_view = _facts(func).is_view
        if not is_view:
            _check(simulated.cuda_of, func, args, kwargs or {}, tensors)
        result = func(*values, **options)
        if not is_view:
            results = result if isinstance(result, (tuple, list)) else (result,)
            touched = [*tensors, *(part for part in results if isinstance(part, torch.Tensor))]
            simulated.cuda_of.moved += sum([part.numel() * part.element_size() for part in touched])

        same = {id(_plain(tensor)): tensor for tensor in tensors}  # what is changed in place stays the object

        def wrap(value: Any) -> Any:
            if not isinstance(value, torch.Tensor):
                return value
            wrapped = same.get(id(value))
            wrapped = cls(value, simulated.device) if wrapped is None else wrapped
            if wrapped.shape != value.shape:
                raise NotImplementedError(f"{func} changes the shape of a simulated tensor in place")
            return wrapped

        return _map(wrap, result)


def _of_sparse(name: str) -> Any:
    """A method of sparse tensors, run on the values: to C++ the wrapper is dense."""

    def method(self: SimulatedTensor) -> Any:
        result = getattr(self.on_cpu, name)()
        return SimulatedTensor(result, self.device) if isinstance(result, torch.Tensor) else result

    return method


for _name in ("indices", "values", "_nnz", "is_coalesced"):
    setattr(SimulatedTensor, _name, _of_sparse(_name))


def _unpickle(values: torch.Tensor, device: str) -> SimulatedTensor:
    if _active is None:
        raise RuntimeError("a tensor on a CUDA device cannot be loaded: torch.cuda.is_available() is False")
    return SimulatedTensor(values, _active.resolve(device))


def _map(function: Any, tree: Any) -> Any:
    """``function`` of the leaves of nested arguments; torch's pytree takes most of the time of a test."""
    if isinstance(tree, (tuple, list)):
        return type(tree)([_map(function, item) for item in tree])
    if isinstance(tree, dict):
        return {name: _map(function, item) for name, item in tree.items()}
    return function(tree)


def _plain(tree: Any, tensors: list[torch.Tensor] | None = None) -> Any:
    """Nested arguments with the values of the simulated tensors; all tensors among them are added to the list."""
    if isinstance(tree, torch.Tensor):
        if tensors is not None:
            tensors.append(tree)
        return tree.on_cpu if isinstance(tree, SimulatedTensor) else tree
    if isinstance(tree, (tuple, list)):
        return type(tree)([_plain(item, tensors) for item in tree])
    if isinstance(tree, dict):
        return {name: _plain(item, tensors) for name, item in tree.items()}
    return tree


class _Facts(NamedTuple):
    """What does not depend on the arguments of an operation; torch takes long to say it."""

    name: str
    is_view: bool
    is_elementwise: bool
    is_mutable: bool


@cache
def _facts(func: Any) -> _Facts:
    name = func.overloadpacket.__name__.removesuffix("_")
    elementwise = torch.Tag.pointwise in func.tags or name in _ELEMENTWISE
    return _Facts(name, func.is_view, elementwise, func._schema.is_mutable)


def _check(cuda: SimulatedCuda, func: Any, args: Any, kwargs: Any, tensors: list[torch.Tensor]) -> None:
    """Refuse an operation that CUDA refuses, and record it otherwise."""
    name, _, is_elementwise, is_mutable = _facts(func)
    if name == "copy" and args[0].device != args[1].device:
        cuda.copy(args[1].device)
        return
    if name in _INDEX or name in _INDEX_PUT:
        indices = [index for index in args[1] if index is not None]
        tensors = [args[0], *args[2:3]] if name in _INDEX_PUT else [args[0]]
        for index in indices:
            if index.device == _CPU and args[0].device != _CPU:
                cuda.copy(_CPU)  # the only operand that may be on the CPU
                continue
            tensors.append(index)
            filled = name in _INDEX_PUT and args[2].numel() == 1  # torch then calls masked_fill
            if index.dtype in (torch.bool, torch.uint8) and not filled:
                cuda.wait("boolean mask")
    written = args[0] if is_mutable else None
    devices = {
        tensor.device
        for tensor in tensors
        if not is_elementwise or tensor.dim() > 0 or tensor.device != _CPU or tensor is written
    }
    if len(devices) > 1:
        raise RuntimeError(
            "Expected all tensors to be on the same device, but found at least two devices, "
            f"{' and '.join(sorted(map(str, devices)))}! ({func}, {_line()})"
        )
    scan = name == "cumsum" and args[0].is_floating_point()
    weighted = name == "bincount" and len(args) > 1 and args[1] is not None
    if (scan or weighted or name in _NOT_DETERMINISTIC) and torch.are_deterministic_algorithms_enabled():
        raise RuntimeError(
            f"{func} has no deterministic CUDA kernel, but torch.use_deterministic_algorithms(True) is set "
            f"({_line()})"
        )
    sized = kwargs.get("output_size") is not None  # repeat_interleave then knows the size of its result
    if name in _WAITS and not sized:
        cuda.wait(_WAITS[name])
    if name not in _NO_LAUNCH:
        cuda.launch(name)


def _move(
    cuda: SimulatedCuda, tensor: torch.Tensor, device: torch.device, dtype: Any = None, copy: bool = False
) -> torch.Tensor:
    dtype = dtype or tensor.dtype
    if device == tensor.device:
        return torch.Tensor.to(tensor, dtype, copy=copy)
    if tensor.requires_grad and torch.is_grad_enabled():
        raise NotImplementedError("a copy between simulated devices passes no gradient")
    cuda.copy(tensor.device)
    values = _plain(tensor).detach().to(dtype, copy=True)
    return values if device == _CPU else SimulatedTensor(values, device)


def _to(cuda: SimulatedCuda, tensor: Any, *args: Any, copy: bool = False, **kwargs: Any) -> torch.Tensor:
    if args and isinstance(args[0], torch.Tensor):
        device, dtype = args[0].device, args[0].dtype
    else:
        device, dtype, *_ = torch._C._nn._parse_to(*args, **kwargs)
    return _move(cuda, tensor, cuda.resolve(device or tensor.device), dtype, copy)


class _Generator(torch.Generator):
    """Reports its device and draws what a CPU generator draws."""

    def __new__(cls, device: Any = "cpu") -> _Generator:
        self = super().__new__(cls, device=_CPU)
        self._device = torch.device(device) if _active is None else _active.resolve(device)
        return self

    device = property(lambda self: self._device)


class _Calls(TorchFunctionMode):
    """Sees every call of a function of torch: factories, copies and draws."""

    def __init__(self, cuda: SimulatedCuda) -> None:
        super().__init__()
        self.cuda = cuda

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if func is torch.Tensor.to:
            return _to(self.cuda, *args, **kwargs)
        if kwargs.keys().isdisjoint(_PLACES) and func not in _SPECIAL:
            return func(*args, **kwargs)
        first = args[0] if args else None
        given, own = kwargs.get("device"), first.device if isinstance(first, torch.Tensor) else _CPU
        device = own if given is None else self.cuda.resolve(given)
        generator = kwargs.get("generator")
        if generator is not None and generator.device != device:
            raise RuntimeError(f"Expected a '{device}' generator but found '{generator.device}' ({_line()})")
        if func in _FROM_DATA and isinstance(first, SimulatedTensor):
            return _move(self.cuda, first, device, kwargs.get("dtype"), copy=func is torch.tensor)
        if func is torch.nn.functional.one_hot and isinstance(first, SimulatedTensor):
            # its C++ makes a tensor of its own, which no dispatcher sees
            if len(args) + len(kwargs) == 1:
                self.cuda.wait("one_hot")
        elif given is None:
            return func(*args, **kwargs)
        else:
            kwargs["device"] = _CPU
        if device == _CPU:
            return func(*_plain(args), **kwargs)
        requires_grad = kwargs.pop("requires_grad", False)
        values = SimulatedTensor(func(*_plain(args), **kwargs), device)
        uploaded = func in _FROM_DATA or (isinstance(first, torch.Tensor) and own == _CPU)
        self.cuda.copy(_CPU) if uploaded else self.cuda.launch(func.__name__)
        return values.requires_grad_(requires_grad)


@contextmanager
def simulated_cuda(n_devices: int = 1) -> Iterator[SimulatedCuda]:
    """Within: torch has ``n_devices`` CUDA devices. Yields the record of what happens on them."""
    global _active
    if (reason := unsupported()) is not None:
        raise RuntimeError(reason)
    cuda = SimulatedCuda(n_devices)
    replaced = {
        "is_available": lambda: True,
        "device_count": lambda: n_devices,
        "synchronize": lambda device=None: cuda.wait("synchronize"),
        "get_device_properties": lambda device=None: SimpleNamespace(total_memory=_MEMORY, name="simulated"),
        "max_memory_allocated": lambda device=None: cuda.peak,
    }
    with ExitStack() as stack:
        stack.enter_context(mock.patch.multiple(torch.cuda, **replaced))
        # a build with CUDA would ask the driver
        stack.enter_context(mock.patch.object(torch.backends.cuda, "is_built", return_value=False))
        stack.enter_context(mock.patch.object(torch, "Generator", _Generator))
        # optimizers then update all parameters in one launch, as on CUDA
        foreach = [*optimizer._foreach_supported_types, SimulatedTensor]
        stack.enter_context(mock.patch.object(optimizer, "_foreach_supported_types", foreach))
        # modules then replace their parameters when they are moved
        overwrite = "get_overwrite_module_params_on_conversion"
        stack.enter_context(mock.patch.object(torch.__future__, overwrite, return_value=True))
        stack.callback(torch.set_num_threads, torch.get_num_threads())
        torch.set_num_threads(1)
        before, _active = _active, cuda
        try:
            with _Calls(cuda):
                yield cuda
        finally:
            _active = before
