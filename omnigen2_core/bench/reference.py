"""The authors' transformer out of a checkout of theirs. Written without one that could be run here, and not tried."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path

import torch
from torch import Tensor, nn

from ..checkpoints import load_weights
from ..errors import OmniGen2Error
from ..transformer import OmniGen2Config
from .cases import TEXT, Case
from .inputs import Inputs

_MODELS = "omnigen2.models.transformers"
AXES_LENS = (10000, 10000, 10000)
"""Rotary angles are tabulated up to here; longer than any case."""


def load_reference(folder: Path, config: OmniGen2Config, weights: Mapping[str, Tensor]) -> nn.Module:
    """Their transformer with these weights. Raises OmniGen2Error where the checkout cannot be imported."""
    if not (folder / "omnigen2").is_dir():
        raise OmniGen2Error(f"{folder} is no checkout of VectorSpaceLab/OmniGen2: it holds no folder omnigen2.")
    sys.path.insert(0, str(folder))
    try:
        found = importlib.import_module(f"{_MODELS}.transformer_omnigen2")
    except ImportError as error:
        raise OmniGen2Error(
            f"The checkout in {folder} cannot be imported ({error}); install what its requirements.txt asks for into "
            f"{sys.executable}, or leave --reference out."
        ) from error
    finally:
        sys.path.remove(str(folder))
    with torch.device("meta"):
        model = found.OmniGen2Transformer2DModel(**asdict(config), axes_lens=AXES_LENS)
    load_weights(model, {name: weights[name] for name in model.state_dict()}, "the drawn weights")
    return model.eval().requires_grad_(False)


def reference_velocity(model: nn.Module, inputs: Inputs) -> Callable[[Case, str], Callable[[Tensor, Tensor], Tensor]]:
    """(case, branch) -> (latents, time) -> velocity."""
    rope = importlib.import_module(f"{_MODELS}.rope").OmniGen2RotaryPosEmbed
    tables = rope.get_freqs_cis(inputs.config.axes_dim_rope, AXES_LENS, theta=10000)

    def of(case: Case, branch: str):
        text, references = inputs.text(branch), inputs.references(case, branch)
        mask = torch.ones(1, TEXT, dtype=torch.long, device=inputs.device)
        given = [references] if references else None
        return lambda latents, time: model(
            hidden_states=latents,
            timestep=time,
            text_hidden_states=text,
            text_attention_mask=mask,
            ref_image_hidden_states=given,
            freqs_cis=tables,
            return_dict=False,
        )

    return of
