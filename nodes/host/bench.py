"""Steps and whole runs of ComfyUI's own OmniGen2 transformer, for the bench, and ours with ComfyUI's layers.

Runs in a process that can import `comfy`; `tests/host/bench.py` is its command.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path

import comfy.ops
import comfyui_version
import torch
from comfy.ldm.omnigen.omnigen2 import OmniGen2Transformer2DModel
from torch import Tensor

from ...omnigen2_core.bench.cases import TEXT, Case
from ...omnigen2_core.bench.inputs import LATENT, Inputs
from ...omnigen2_core.bench.steps import Action, OurSteps, branch_of, one_of_each
from ...omnigen2_core.bench.work import Step
from ...omnigen2_core.checkpoints import load_weights
from ...omnigen2_core.precision import Attention
from ...omnigen2_core.transformer import OmniGen2Config
from .files import BUILT_IN_FILES
from .server import Server
from .simulated_card import edit_phases  # noqa: F401, the bench calls it
from .transformer import host_attention

COMFYUI = Path(comfyui_version.__file__).resolve().parent
FIRST_CALL = Path(__file__).resolve().parent / "first_call"
"""A custom node pack for servers; see there."""
BUILT_IN_LORA = BUILT_IN_FILES["loras"]["OmniGen2-nano framed (built in)"]
OPERATIONS = comfy.ops.disable_weight_init
"""What ComfyUI takes for weights in the dtype that is computed in, as they are here."""


def our_steps(config: OmniGen2Config, weights: Mapping[str, Tensor], inputs: Inputs) -> OurSteps:
    """Ours with ComfyUI's layers and the attention that it was started with."""
    return OurSteps(config, weights, inputs, operations=OPERATIONS, attention=attention())


def build_native(config: OmniGen2Config, weights: Mapping[str, Tensor]) -> OmniGen2Transformer2DModel:
    """ComfyUI's transformer with those of the weights that it has; they are taken over, not copied."""
    with torch.device("meta"):
        model = OmniGen2Transformer2DModel(
            **asdict(config), dtype=next(iter(weights.values())).dtype, device="meta", operations=OPERATIONS
        )
    load_weights(model, {name: weights[name] for name in model.state_dict()}, "the drawn weights")
    return model.eval().requires_grad_(False)


class NativeSteps:
    """The steps of ComfyUI's transformer; see `omnigen2_core.bench.steps.Steps`. Modulation is part of its layers."""

    def __init__(self, config: OmniGen2Config, weights: Mapping[str, Tensor], inputs: Inputs):
        self.inputs = inputs
        self.model = build_native(one_of_each(config), weights)
        self.without_layers = build_native(replace(config, num_layers=0, num_refiner_layers=0), weights)

    def make(self, case: Case, step: Step) -> Action:
        """See `Steps.make`."""
        return getattr(self, f"_{step.kind}")(case, step)

    def _layer(self, case: Case, step: Step) -> Action:
        x, temb = self.inputs.tokens(1, step.keys), self.inputs.time_embedding()
        table = self._tables(case, branch_of(case, step))[3]
        return lambda: self.model.layers[0](x, None, table, temb)

    def _text(self, case: Case, step: Step) -> Action:
        x, table = self.inputs.tokens(1, TEXT), self._tables(case, "cond")[0]
        return lambda: self.model.context_refiner[0](x, None, table)

    def _noise(self, case: Case, step: Step) -> Action:
        return self._refiner(self.model.noise_refiner[0], step, self._tables(case, "cond")[2])

    def _reference(self, case: Case, step: Step) -> Action:
        return self._refiner(self.model.ref_image_refiner[0], step, self._tables(case, "cond")[1])

    def _refiner(self, block, step: Step, table: Tensor) -> Action:
        x, temb = self.inputs.tokens(1, step.queries), self.inputs.time_embedding()
        return lambda: block(x, None, table, temb)

    def _ends(self, case: Case, step: Step) -> Action:
        branch = branch_of(case, step)
        predict = native_velocity(self.without_layers, self.inputs, case, branch)
        latents, time = self.inputs.latents(case), torch.full((1,), 0.5, device=self.inputs.device)
        return lambda: predict(latents, time)

    def _tables(self, case: Case, branch: str) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Rotary tables of text, references, image, and all together."""
        side = (case.height // LATENT, case.width // LATENT)
        count = case.references if case.has_references(branch) else 0
        references = [[case.image] * count] if count else [[0]]
        return self.model.rope_embedder(
            1, TEXT, [TEXT], references, [case.image], [[side] * count] if count else [None], [side], self.inputs.device
        )[:4]


def native_velocity(model: OmniGen2Transformer2DModel, inputs: Inputs, case: Case, branch: str):
    """(latents [1, C, H, W], time [1], 0 = noise) -> velocity, image - noise, of a branch."""
    text = inputs.text(branch)
    references = [reference.unsqueeze(0) for reference in inputs.references(case, branch)] or None
    return lambda latents, time: -model(latents, 1.0 - time, text, TEXT, ref_latents=references)


def attention() -> Attention:
    """The attention that ComfyUI was started with."""
    return host_attention({})


def version() -> str:
    """ComfyUI's version."""
    return comfyui_version.__version__


def server(folder: Path, *flags: str, probes: Path | None = None, threads: int | None = None) -> Server:
    """A server of this ComfyUI with folders below `folder`; see `Server`."""
    return Server(folder, COMFYUI, *flags, probes=probes, threads=threads)
