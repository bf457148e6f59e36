"""Random weights and inputs, the same for whoever is measured."""

from __future__ import annotations

import torch
from torch import Tensor

from ..transformer import OmniGen2Config, OmniGen2Transformer
from .cases import TEXT, Case

LATENT = 8
"""Pixels a side of one latent."""


def random_weights(
    config: OmniGen2Config, dtype: torch.dtype, device: torch.device, seed: int = 0
) -> dict[str, Tensor]:
    """The transformer's weights by published name: matrices that keep the size of what they multiply, norms around 1."""
    draw = torch.Generator(device).manual_seed(seed)
    weights = {}
    for name, like in OmniGen2Transformer(config, device="meta").state_dict().items():
        values = torch.randn(like.shape, generator=draw, device=device, dtype=dtype)
        if like.ndim == 2 and name != "image_index_embedding":
            values.mul_(like.shape[1] ** -0.5)
        else:
            values.mul_(0.1).add_("norm" in name and name.endswith("weight"))
        weights[name] = values
    return weights


class Inputs:
    """What layers and whole models are given, for one batch item."""

    def __init__(self, config: OmniGen2Config, dtype: torch.dtype, device: torch.device):
        self.config, self.dtype, self.device = config, dtype, device

    def draw(self, *shape: int, seed: int = 1) -> Tensor:
        """Standard normal values; the same seed and shape give the same ones."""
        values = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
        return values.to(self.device, self.dtype)

    def tokens(self, batch: int, count: int) -> Tensor:
        """[batch, count, width]."""
        return self.draw(batch, count, self.config.hidden_size)

    def time_embedding(self) -> Tensor:
        """[1, T]."""
        return self.draw(1, self.config.time_width)

    def text(self, branch: str) -> Tensor:
        """[1, TEXT, text_feat_dim]: the prompt's for "cond", else the negative prompt's."""
        return self.draw(1, TEXT, self.config.text_feat_dim, seed=2 if branch == "cond" else 3)

    def latents(self, case: Case) -> Tensor:
        """[1, C, H, W]."""
        return self.draw(1, self.config.in_channels, case.height // LATENT, case.width // LATENT, seed=4)

    def references(self, case: Case, branch: str) -> list[Tensor]:
        """[C, h, w] each, as many as the branch sees."""
        shape = (self.config.in_channels, case.height // LATENT, case.width // LATENT)
        return [self.draw(*shape, seed=5 + i) for i in range(case.references if case.has_references(branch) else 0)]
