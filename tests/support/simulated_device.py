"""A CUDA device that is not there: tensors that say they are on it, and whose numbers lie in ordinary memory.

Everything that runs on them computes the same numbers as on the CPU, bit for bit, and fails as on a GPU
where an operation mixes devices. What makes the host wait for the device is counted.
Fake tensors have no numbers, so code that looks at one could not run on them. On the meta device the tensors
have none either, and may be of any size.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import fields, replace
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

DEVICE = torch.device("cuda", 0)
_CPU = torch.device("cpu")
# Operations of which arguments may be on several devices: transfers, and indices that CUDA sends along.
_TRANSFERS = frozenset({"aten::_to_copy", "aten::copy_"})
_INDEXING = frozenset({"aten::index", "aten::index_put", "aten::index_put_", "aten::_index_put_impl_"})
_WAITS = frozenset(
    {
        "aten::_local_scalar_dense",
        "aten::nonzero",
        "aten::masked_select",
        "aten::_unique2",
        "aten::equal",
        "aten::is_nonzero",
    }
)


class OnDevice(torch.Tensor):
    """A tensor on the simulated device."""

    real_numbers: torch.Tensor

    @staticmethod
    def __new__(cls, inner: torch.Tensor) -> OnDevice:
        made: OnDevice = torch.Tensor._make_wrapper_subclass(
            cls,
            inner.shape,
            strides=inner.stride(),
            storage_offset=inner.storage_offset(),
            dtype=inner.dtype,
            layout=inner.layout,
            device=DEVICE,
        )
        made.real_numbers = inner
        return made

    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, func: Any, _types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        return _run(func, args, kwargs or {}, Counter())

    def __getitem__(self, index: Any) -> Any:
        """What torch does here itself asks for a guard of the device."""
        _check("aten::index", [], [self], (self, (), ()))
        return OnDevice(self.real_numbers[tree_map(_inner, index)])

    def __setitem__(self, index: Any, value: Any) -> None:
        """See :meth:`__getitem__`."""
        _check("aten::index_put_", [], [self], (self, (), value))
        self.real_numbers[tree_map(_inner, index)] = _inner(value)

    def copy_(self, source: torch.Tensor, non_blocking: bool = False) -> OnDevice:
        """See :meth:`__getitem__`."""
        del non_blocking
        self.real_numbers.copy_(_inner(source))
        return self

    def tolist(self) -> Any:
        """The numbers, for which a host would wait."""
        return self.real_numbers.tolist()

    def item(self) -> Any:
        """See :meth:`tolist`."""
        return self.real_numbers.item()

    def __invert__(self) -> OnDevice:
        """See :meth:`__getitem__`."""
        return OnDevice(~self.real_numbers)

    def __float__(self) -> float:
        return float(self.real_numbers)

    def __int__(self) -> int:
        return int(self.real_numbers)

    def __bool__(self) -> bool:
        return bool(self.real_numbers)

    def numpy(self, *, force: bool = False) -> Any:
        """Refused, as torch does it."""
        del force
        raise TypeError(f"can't convert {DEVICE} device type tensor to numpy")

    def data_ptr(self) -> int:
        """Where the numbers really are: what is one memory here would be one on a device."""
        return self.real_numbers.data_ptr()

    def untyped_storage(self) -> torch.UntypedStorage:
        """See :meth:`data_ptr`."""
        return self.real_numbers.untyped_storage()

    def __repr__(self, *, tensor_contents: object = None) -> str:  # type: ignore[override]
        del tensor_contents
        return f"OnDevice({self.real_numbers!r})"


class SimulatedCuda(TorchDispatchMode):
    """While it is active, what is asked to be on CUDA is on the simulated device."""

    def __init__(self, backing: str = "cpu") -> None:
        """``backing``: "meta" for tensors without numbers, of any size."""
        super().__init__()  # type: ignore[no-untyped-call]
        self._backing = torch.device(backing)
        self.waits: Counter[str] = Counter()  # what made the host wait, by operation

    def __torch_dispatch__(self, func: Any, _types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs or {}, self.waits, self._backing)


def _run(
    func: Any, args: Any, kwargs: dict[str, Any], waits: Counter[str], backing: torch.device = _CPU
) -> Any:
    name = func._schema.name
    tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)]
    there = [t for t in tensors if isinstance(t, OnDevice)]
    _check(name, tensors, there, args)
    asked = kwargs.get("device")
    target = torch.device(asked) if asked is not None else None
    on_device = target.type == "cuda" if target is not None else bool(there)
    if name == "aten::copy_":
        on_device = isinstance(args[0], OnDevice)
    if there and (name in _WAITS or (name in _TRANSFERS and not on_device)):
        waits[name] += 1
    options = {key: value for key, value in kwargs.items() if key != "pin_memory"}
    if target is not None and target.type == "cuda":
        options["device"] = backing
    inner_args, inner_options = tree_map(_inner, (args, options))
    result = func(*inner_args, **inner_options)
    given = {id(t.real_numbers): t for t in there}

    def outer(value: Any) -> Any:
        if not isinstance(value, torch.Tensor) or (value.is_meta and backing.type != "meta"):
            return value
        if id(value) in given:
            return given[id(value)]
        return OnDevice(value) if on_device else value

    return tree_map(outer, result)


def _check(name: str, tensors: list[torch.Tensor], there: list[OnDevice], args: Any) -> None:
    """Refuse what CUDA refuses: tensors of several devices, but for numbers of the CPU and indices."""
    if not there or name in _TRANSFERS:
        return
    if name in _INDEXING and isinstance(args[0], OnDevice):
        others = [args[2]] if len(args) > 2 and isinstance(args[2], torch.Tensor) else []
    else:
        others = tensors
    strays = [t for t in others if not isinstance(t, OnDevice) and t.dim() > 0]
    if strays:
        raise RuntimeError(
            f"{name}: expected all tensors to be on {DEVICE}, but one {list(strays[0].shape)} is not"
        )


def _inner(value: Any) -> Any:
    return value.real_numbers if isinstance(value, OnDevice) else value


def put_on_device(model: nn.Module) -> None:
    """Move a model's parameters, buffers and codes; what was one tensor stays one."""
    from manylora.server.kernels.reference.quantized import CodedLinear
    from manylora.server.model.decoders.coded_products import Products

    products = Products()
    for name, layer in [(n, m) for n, m in model.named_modules() if isinstance(m, CodedLinear)]:
        model.set_submodule(name, _coded_on_device(layer, products))
    moved: dict[int, nn.Parameter] = {}
    for module in model.modules():
        for name, parameter in list(module._parameters.items()):
            if parameter is not None:
                if id(parameter) not in moved:
                    moved[id(parameter)] = nn.Parameter(OnDevice(parameter.detach()), requires_grad=False)
                module._parameters[name] = moved[id(parameter)]
        for name, buffer in list(module._buffers.items()):
            if buffer is not None:
                module._buffers[name] = buffer if isinstance(buffer, OnDevice) else OnDevice(buffer)


def _coded_on_device(layer: Any, products: Any) -> nn.Module:
    """As loading makes it of codes that are there."""
    codes, bias = layer.codes, None if layer.bias is None else OnDevice(layer.bias)
    tensors = {f.name: getattr(codes, f.name) for f in fields(codes)}
    there = replace(codes, **{n: OnDevice(t) for n, t in tensors.items() if isinstance(t, torch.Tensor)})
    product = products.of(there, bias, layer.dtype)
    made: nn.Module = type(layer)(there, bias, layer.dtype, product=product)
    return made


class _Properties:
    """Of a device as large as the smallest that is served."""

    shared_memory_per_block_optin = 64 * 1024  # bytes


class _Event:
    """An event of a stream on which nothing is ever late."""

    def record(self, *_: object) -> None:
        """It has happened already."""

    def synchronize(self) -> None:
        """Nothing to wait for."""


class _Graph:
    def __init__(self, function: Callable[[], None]) -> None:
        self.replay = function


class _Capture:
    """Calls the function once, as a capture does before it captures; replaying calls it again."""

    def __call__(self, function: Callable[[], None]) -> _Graph:
        function()
        return _Graph(function)


class _Lane:
    """Copies that are done at once."""

    def __init__(self, device: torch.device) -> None:
        assert device == DEVICE

    def staging(self, nbytes: int) -> torch.Tensor:
        return torch.empty(nbytes, dtype=torch.uint8)

    def follow(self) -> None:
        """Nothing is late."""

    def copy(self, source: torch.Tensor, target: torch.Tensor) -> Callable[[], None]:
        target.copy_(source)
        return lambda: None


class _Kernel:
    """A Triton kernel in its interpreter, of whose tensors all have to be on the device."""

    def __init__(self, name: str, kernel: Any) -> None:
        self._name = name
        self._kernel = kernel

    def __call__(self, *args: Any, **options: Any) -> Any:
        """One kernel is a part of another."""
        return self._kernel(*args, **options)

    def __getitem__(self, grid: Any) -> Callable[..., None]:
        def launch(*args: Any, **options: Any) -> None:
            for value in (*args, *options.values()):
                if isinstance(value, torch.Tensor) and not isinstance(value, OnDevice):
                    raise RuntimeError(f"{self._name}: a pointer that the device can't read")
            with torch.utils._python_dispatch._disable_current_modes():
                self._kernel[grid](*map(_inner, args), **{k: _inner(v) for k, v in options.items()})

        return launch


def _without_inference_mode(patch: pytest.MonkeyPatch) -> None:
    """In it torch refuses views of tensors of a class of ours; without gradients the numbers are the same."""

    def enter(mode: Any) -> None:
        mode.no_gradients = torch.no_grad()
        mode.no_gradients.__enter__()

    def leave(mode: Any, *error: object) -> None:
        mode.no_gradients.__exit__(*error)

    patch.setattr(torch.inference_mode, "__enter__", enter)
    patch.setattr(torch.inference_mode, "__exit__", leave)


@contextmanager
def simulated_cuda(patch: pytest.MonkeyPatch, backing: str = "cpu") -> Iterator[SimulatedCuda]:
    """The calling thread has a CUDA device in this block; ``backing`` is that of :class:`SimulatedCuda`."""
    from manylora.server.kernels.cuda import backend, types
    from manylora.server.kernels.cuda.replay import graphs
    from manylora.server.model.pages import uploads

    assert backend.TritonStep.name == "triton"
    patch.setattr(torch.cuda, "_lazy_init", lambda: None)
    patch.setattr(torch.cuda, "synchronize", lambda *_: None)
    patch.setattr(torch.cuda, "get_device_capability", lambda *_: (9, 0))
    patch.setattr(torch.cuda, "get_device_properties", lambda *_: _Properties())
    patch.setattr(torch.cuda, "Event", _Event)
    patch.setattr(graphs, "GraphCapture", _Capture)
    patch.setattr(uploads, "CudaLane", _Lane)
    for module in [m for name, m in sys.modules.items() if name.startswith("manylora.server.kernels.cuda.")]:
        for name, value in vars(module).copy().items():
            if (
                type(value).__name__ in {"InterpretedFunction", "JITFunction"}
                and "triton" in type(value).__module__
            ):
                patch.setattr(module, name, _Kernel(name, value))
    _without_inference_mode(patch)
    known = (types.multiplies, types.shared_memory)  # what they remember is of this device only
    for function in known:
        function.cache_clear()
    before = torch._C._only_lift_cpu_tensors()
    torch._C._set_only_lift_cpu_tensors(True)
    try:
        with SimulatedCuda(backing) as mode:
            yield mode
    finally:
        torch._C._set_only_lift_cpu_tensors(before)
        for function in known:
            function.cache_clear()
