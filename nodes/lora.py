"""The LoRA loader: any naming of an OmniGen2 LoRA, onto our MODEL or ComfyUI's own."""

from __future__ import annotations

import logging

import comfy.sd
from comfy_api.latest import io

from ..omnigen2_core.checkpoints.lora import load_lora, to_host_names
from .host import files
from .host.guider import require_omnigen2
from .host.notes import output_with_notes

logger = logging.getLogger(__name__)


class OmniGen2LoadLoRA(io.ComfyNode):
    """Brings a LoRA of any known naming to ComfyUI's own, and lets core apply it."""

    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="OmniGen2LoadLoRA",
            display_name="OmniGen2 Load LoRA",
            category="OmniGen2/loaders",
            description="Adds a LoRA under any naming in use: the authors' trainer, RL, UMO and EditScore releases, "
            "PEFT, kohya. Core's LoRA loader skips most of them without an error.",
            search_aliases=["lora", "lora loader", "adapter"],
            inputs=[
                io.Model.Input("model", tooltip="An OmniGen2 MODEL, from our loaders or from core's."),
                io.Combo.Input(
                    "lora_name",
                    options=files.list_files("loras"),
                    tooltip="A LoRA for OmniGen2 in models/loras, or one that comes with the built-in model.",
                ),
                io.Float.Input(
                    "strength", default=1.0, min=-20.0, max=20.0, step=0.01,
                    tooltip="How much of the LoRA is added. 1 is as trained, 0 is nothing, negative is its opposite.",
                ),
            ],
            outputs=[io.Model.Output(display_name="model", tooltip="The MODEL with the LoRA; the input stays as it was.")],
        )

    @classmethod
    def validate_inputs(cls, lora_name):
        """Workflows saved on Windows name files with backslashes."""
        return files.check_file("loras", lora_name)

    @classmethod
    def fingerprint_inputs(cls, lora_name, **_):
        """ComfyUI passes every input, linked ones as None."""
        return files.fingerprint(files.find_file("loras", lora_name))

    @classmethod
    def execute(cls, model, lora_name, strength) -> io.NodeOutput:
        require_omnigen2(model)
        weights = model.model.diffusion_model.named_parameters()
        shapes = {name.removesuffix(".weight"): tuple(w.shape) for name, w in weights if w.ndim == 2}
        lora = load_lora(files.resolve_file("loras", lora_name), shapes=shapes)
        patched, _ = comfy.sd.load_lora_for_models(model, None, to_host_names(lora), strength, 0.0)
        notes = []
        if lora.unmatched:
            notes.append(
                f"{len(lora.unmatched)} of the file's keys belong to no layer of this model and were left out (the "
                f"first is {lora.unmatched[0]}); {len(lora.modules)} layers were changed."
            )
        logger.info("%s changes %d layers at strength %g", lora_name, len(lora.modules), strength)
        return output_with_notes(patched, notes=notes)
