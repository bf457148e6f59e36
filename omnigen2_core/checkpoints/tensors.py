"""Reading tensors without copying them, and putting them into a module."""

from collections.abc import Iterable, Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from ..errors import CheckpointError
from ..quantised import PackedTensor, unpack_elsewhere
from .header import is_gguf


def read_tensors(path: str | Path, names: Iterable[str] | None = None) -> dict[str, Tensor]:
    """The tensors of the safetensors or GGUF file at `path`, all or those in `names`, as views of the mapped file.

    Nothing is copied: the system reads pages as they are used and may drop them again.
    """
    path = Path(path)
    if is_gguf(path):
        from .gguf import read_gguf_tensors

        return read_gguf_tensors(path, names)
    try:
        with safe_open(str(path), framework="pt", device="cpu") as file:
            return {name: file.get_tensor(name) for name in (file.keys() if names is None else names)}
    except SafetensorError as error:
        raise CheckpointError(f"{path.name} cannot be read ({error}); download it again") from error


def load_weights(module: nn.Module, state: Mapping[str, Tensor], source: str) -> None:
    """Give `module` (built on the meta device, or not) the tensors of `state` themselves, without a copy.

    Layers of `packed_operations` take packed weights; any other parameter takes the numbers of one. `source` names the
    file or folder in messages. Raises `CheckpointError` in one sentence if names or shapes do not fit.
    """
    expected = {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}
    wrong = [name for name, shape in expected.items() if name in state and tuple(state[name].shape) != shape]
    if wrong:
        name = wrong[0]
        raise CheckpointError(
            f"{source} does not fit its configuration: {name} has shape {list(state[name].shape)} where "
            f"{list(expected[name])} is needed{_and_others(wrong)}; use weights and config of the same model"
        )
    missing = [name for name in expected if name not in state]
    if missing:
        raise CheckpointError(
            f"{source} lacks {len(missing)} of {len(expected)} weights (the first is {missing[0]}); "
            "it is incomplete, download it again"
        )
    extra = [name for name in state if name not in expected]
    if extra:
        raise CheckpointError(
            f"{source} has {len(extra)} weights that the model does not know (the first is {extra[0]}); "
            "it belongs to another model"
        )
    module.load_state_dict(unpack_elsewhere(module, state), assign=True)


def as_parameters(module: nn.Module, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """`state` such that assigning it leaves `module` with the dtypes that it was built with, as copying would.

    A tensor that is so already is given itself, unless it lies at an address that its dtype does not divide, as in a file
    with an odd number of bytes before it: not all processors and libraries read such numbers. Entries without a parameter,
    and packed tensors for layers that take them, are given as they are.
    """
    parameters = dict(module.named_parameters())
    return {
        name: _as_parameter(tensor, parameters[name].dtype) if name in parameters else tensor
        for name, tensor in unpack_elsewhere(module, state).items()
    }


def _as_parameter(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    if isinstance(tensor, PackedTensor):
        return tensor
    aligned = tensor.data_ptr() % tensor.element_size() == 0
    return tensor.to(dtype, copy=not aligned)


def _and_others(names: list[str]) -> str:
    return f" (and {len(names) - 1} more)" if len(names) > 1 else ""


def floating(tensor: Tensor) -> bool:
    """Whether a tensor holds weights in a plain floating-point format (fp8 is storage, not that)."""
    return tensor.dtype in (torch.float64, torch.float32, torch.float16, torch.bfloat16)
