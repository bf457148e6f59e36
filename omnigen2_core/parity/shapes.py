"""Names and shapes of the published parameters, against our modules built at full size on the meta device."""

from __future__ import annotations

from typing import Callable, Iterator

import torch
from torch import Tensor

from ..checkpoints import vae_to_bfl
from ..checkpoints.published import PUBLISHED_MLLM, PUBLISHED_TRANSFORMER, PUBLISHED_VAE
from ..mllm import build_mllm, parameter_shapes
from ..transformer import OmniGen2Config, OmniGen2Transformer
from ..vae import AutoencoderKL, VAEConfig
from .folder import GoldenFolder
from .report import Row, Ruler

Shapes = dict[str, list[int]]


def replay_shapes(folder: GoldenFolder) -> Iterator[Row]:
    """Every published list that describes one of our modules; lists of other models are left alone."""
    ruler, golden = Ruler("shapes"), folder.json("real_keys")
    for name, build in _LISTS.items():
        if name in golden:
            mine, published = build(), golden[name]
            names = mine.keys() | published.keys()
            yield ruler.exact(name, [((key, mine.get(key)), (key, published.get(key))) for key in sorted(names)])


def _transformer() -> Shapes:
    return _shapes(OmniGen2Transformer(OmniGen2Config.from_dict(PUBLISHED_TRANSFORMER), device="meta").state_dict())


def _vae() -> dict[str, Tensor]:
    return AutoencoderKL(VAEConfig.from_dict(PUBLISHED_VAE), device="meta").state_dict()


def _encoder(later_names: bool) -> Shapes:
    shapes = parameter_shapes(build_mllm(PUBLISHED_MLLM, dtype=torch.bfloat16), later_names=later_names)
    return {name: list(shape) for name, shape in shapes.items()}


def _shapes(state: dict[str, Tensor]) -> Shapes:
    return {name: list(value.shape) for name, value in state.items()}


_LISTS: dict[str, Callable[[], Shapes]] = {
    "omnigen2_transformer": _transformer,
    "flux_vae_diffusers": lambda: _shapes(_vae()),
    "flux_vae_bfl": lambda: _shapes(vae_to_bfl(_vae())),
    "qwen25_vl_3b_transformers_4_51": lambda: _encoder(later_names=False),
    "qwen25_vl_3b_transformers_5_in_memory": lambda: _encoder(later_names=True),
}
