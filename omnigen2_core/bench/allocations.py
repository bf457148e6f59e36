"""A device that only counts: what lies on it has a shape and no values, and what it would hold is added up.

The device is PyTorch's "meta". Whole models of any size run there in seconds, and every tensor that a card would have to
hold while they do is counted for as long as it lives.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter, tree_map_only

DEVICE = torch.device("meta")
BLOCK = 512
"""A card's memory is given out in multiples of so many bytes."""
KNOWN = 1 << 19
"""Tensors of at most so many numbers keep their values, on the CPU: times, lengths, positions."""
LARGE = 1 << 19
"""Of more numbers, copies from the CPU to the CPU are not made: nothing here looks at them."""
_aten = torch.ops.aten
_COPIES = (_aten._to_copy.default, _aten.clone.default, _aten.copy_.default)
_VALUES = "known_values"


@contextmanager
def counting(limit: float = float("inf")) -> Iterator["CountingDevice"]:
    """Within it, what lives on `DEVICE` is counted; beyond `limit` bytes torch.OutOfMemoryError is raised, as by a card.

    Attention counts as that of cards: what it gives is held, its scores are not. What a card's libraries take for
    themselves is not counted.
    """
    with CountingDevice(limit) as device, _BeforeTheDevice():
        yield device


class CountingDevice(TorchDispatchMode):
    """What `counting` gives. live, peak: bytes on the device now, and at most since `restart`. is_counting: whether what is
    made there is counted; modules that are built on "meta" to be given their weights elsewhere are not the device's.
    """

    def __init__(self, limit: float):
        super().__init__()
        self.limit, self.live, self.peak = limit, 0, 0
        self.is_counting = True
        self._counted: dict[int, weakref.ref] = {}

    def restart(self) -> None:
        """Count the peak anew, from what lives now."""
        self.peak = self.live

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if any(kind not in (Tensor, torch.nn.Parameter) for kind in types):
            # Tensors made of others, such as packed weights: those others come here by themselves.
            return NotImplemented
        if func is _aten._local_scalar_dense.default:
            return func(_values(args[0]))
        if _is_made_of_others(func):
            # They arrive so in inference mode.
            with self:
                return func.decompose(*args, **kwargs)
        out = _copied(func, args, kwargs) if func in _COPIES else _computed(func, args, kwargs)
        for value in tree_iter(out) if self.is_counting else ():
            if isinstance(value, Tensor) and value.device == DEVICE:
                self._count(value)
        return out

    def _count(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self._counted:
            return
        size = -(-storage.nbytes() // BLOCK) * BLOCK
        if self.live + size > self.limit:
            raise torch.OutOfMemoryError(f"{self.live + size:,} bytes of {self.limit:,}")
        self.live += size
        self.peak = max(self.peak, self.live)

        def gone(_: weakref.ref) -> None:
            del self._counted[key]
            self.live -= size

        self._counted[key] = weakref.ref(storage, gone)


class _BeforeTheDevice(TorchFunctionMode):
    """What has to be caught before the device is asked.

    Attention is as cards compute it; on the meta device it would be taken apart into products with all scores. Tensors of
    given numbers come there from the CPU; made there they would be born without values.
    """

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func is F.scaled_dot_product_attention and args[0].device == DEVICE:
            q, _, v = args[:3]
            return q.new_empty(*q.shape[:-1], v.shape[-1])
        if func is torch.tensor and torch.device(kwargs.get("device") or "cpu") == DEVICE:
            return func(*args, **{**kwargs, "device": "cpu"}).to(DEVICE)
        return func(*args, **kwargs)


@lru_cache(maxsize=None)
def _is_made_of_others(func) -> bool:
    return torch._C._dispatch_has_kernel_for_dispatch_key(func.name(), "CompositeImplicitAutograd")


def _values(tensor: Tensor) -> Tensor:
    """A small tensor's values on the CPU. Raises RuntimeError where they are not known."""
    found = tensor if tensor.device != DEVICE else getattr(tensor, _VALUES, None)
    if found is None:
        shape = list(tensor.shape)
        raise RuntimeError(f"the values of a tensor {shape} on the counting device are asked for; they are not known")
    return found


def _copied(func, args: tuple, kwargs: dict) -> Tensor:
    """A copy: without moving anything where nothing can be or need be moved."""
    source = args[1] if func is _aten.copy_.default else args[0]
    target = args[0] if func is _aten.copy_.default else None
    device = target.device if target is not None else torch.device(kwargs.get("device") or source.device)
    largest = max(source.numel(), 0 if target is None else target.numel())
    if source.numel() <= KNOWN or largest <= LARGE and DEVICE not in (source.device, device):
        return _computed(func, args, kwargs, to=device)
    if target is None:
        return torch.empty(source.shape, dtype=kwargs.get("dtype") or source.dtype, device=device)
    _forget(target)
    return target


def _computed(func, args: tuple, kwargs: dict, to: torch.device | None = None) -> Any:
    """The operation on shapes, and on values as well where all that go in are known. to: the device of a copy."""
    tensors = [value for value in tree_iter((args, kwargs)) if isinstance(value, Tensor)]
    device = torch.device(kwargs["device"]) if kwargs.get("device") is not None else None
    if DEVICE not in (device, to, *(tensor.device for tensor in tensors)):
        return func(*args, **kwargs)
    values = _computed_values(func, args, kwargs, tensors)
    if to is not None and to != DEVICE:
        # From the device to the CPU; what is not known there is anything.
        if func is _aten.copy_.default:
            return args[0] if values is None else values
        return torch.zeros(args[0].shape, dtype=kwargs.get("dtype") or args[0].dtype) if values is None else values
    try:
        out = func(*args, **kwargs)
    except RuntimeError:
        # How large a result is can depend on values; some operations say that with an error of their own.
        if values is None:
            raise
        out = tree_map_only(Tensor, lambda value: torch.empty_like(value, device=DEVICE), values)
    if values is None:
        if func._schema.is_mutable:
            _forget(args[0])
        return out
    for shape, value in zip(tree_iter(out), tree_iter(values)):
        if isinstance(shape, Tensor) and shape.device == DEVICE and shape.numel() <= KNOWN:
            setattr(shape, _VALUES, value)
    return out


def _computed_values(func, args: tuple, kwargs: dict, tensors: list[Tensor]) -> Any:
    """The operation on the CPU; None where an input is not known, or a result would be large."""
    if any(tensor.numel() > KNOWN or tensor.device == DEVICE and not hasattr(tensor, _VALUES) for tensor in tensors):
        return None
    if not tensors:
        sizes = [value for value in args if isinstance(value, (list, tuple))]
        if any(torch.Size(size).numel() > KNOWN for size in sizes if all(isinstance(n, int) for n in size)):
            return None
    args, kwargs = tree_map_only(Tensor, _values, (args, kwargs))
    try:
        return func(*args, **({**kwargs, "device": "cpu"} if kwargs.get("device") is not None else kwargs))
    except (RuntimeError, IndexError):
        return None


def _forget(tensor: Tensor) -> None:
    if hasattr(tensor, _VALUES):
        delattr(tensor, _VALUES)
