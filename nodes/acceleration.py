"""OmniGen2 Accelerate: puts the methods that save work on a MODEL."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io

from ..omnigen2_core.acceleration.presets import PRESETS, Acceleration
from ..omnigen2_core.errors import CheckpointError, OmniGen2Error
from .host.guider import is_native, require_omnigen2
from .host.notes import output_with_notes
from .host.readout import READOUT
from .host.run import MAKE_RUN_KEY, refuse_easycache

CUSTOM = "custom"


def _custom_inputs() -> list[io.Input]:
    """A widget for each setting of `Acceleration`, under its name; balanced is where they begin."""
    balanced = PRESETS["balanced"].acceleration

    def count(name: str, tooltip: str) -> io.Int.Input:
        return io.Int.Input(name, default=getattr(balanced, name), min=1, max=50, tooltip=tooltip, advanced=True)

    def threshold(name: str, tooltip: str, step: float) -> io.Float.Input:
        return io.Float.Input(
            name, default=getattr(balanced, name), min=0.0, max=1.0, step=step, round=step / 10, tooltip=tooltip,
            advanced=True,
        )  # fmt: skip

    return [
        count(
            "context_refresh",
            "Recomputes text and references only in every Nth evaluation; the others compute the picture's tokens "
            "alone. Helps edits and several references most. 1 is off.",
        ),
        count(
            "guidance_every",
            "Evaluates the negative branches of the guidance only in every Nth step, and reuses their difference from "
            "the prompt's own prediction in between. 1 is off.",
        ),
        threshold(
            "disagreement",
            "A negative branch whose prediction differs less than this from the prompt's own, as one minus the "
            "cosine, is not evaluated any more in this run. 0 is off.", 0.005,
        ),
        threshold(
            "first_block",
            "All layers but the first are skipped while what that one adds has changed by less than this share. "
            "0 is off.", 0.01,
        ),
        threshold(
            "teacache",
            "TeaCache: the layers are skipped until the expected change of their output adds up to this. The authors' "
            "code uses 0.05. 0 is off.", 0.01,
        ),
        count(
            "taylorseer",
            "TaylorSeer: after the first five steps, runs the layers only in every Nth step and extrapolates their "
            "output in between. The authors' code uses 3. 1 is off.",
        ),
    ]  # fmt: skip


def acceleration_of(choice: dict[str, Any] | None) -> Acceleration:
    """The methods from the value of the preset widget.

    Raises OmniGen2Error for None, which ComfyUI gives for an unknown choice, and for settings that exclude another.
    """
    settings = dict(choice or {})
    name = settings.pop("preset", None)
    if name == CUSTOM:
        return Acceleration(**settings)
    if name not in PRESETS:
        raise OmniGen2Error(f"The preset is missing or unknown; choose {', '.join(PRESETS)} or {CUSTOM}.")
    return PRESETS[name].acceleration


class OmniGen2Accelerate(io.ComfyNode):
    """Saves evaluations of a MODEL under any sampler, by a preset or by settings of each method."""

    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="OmniGen2Accelerate",
            display_name="OmniGen2 Accelerate",
            category="OmniGen2/sampling",
            description="Fewer and cheaper evaluations of the model for nearly the same picture, under any sampler.",
            search_aliases=["cache", "teacache", "taylorseer", "first block cache", "speed", "faster", "turbo"],
            inputs=[
                io.Model.Input("model", tooltip="An OmniGen2 MODEL of this pack's loaders."),
                io.DynamicCombo.Input(
                    "preset",
                    options=[
                        *(io.DynamicCombo.Option(name, []) for name in PRESETS),
                        io.DynamicCombo.Option(CUSTOM, _custom_inputs()),
                    ],
                    tooltip="exact computes everything; balanced saves what hardly shows; turbo saves more and may "
                    "change details; custom sets each method.",
                ),
            ],
            outputs=[
                io.Model.Output(display_name="model", tooltip="The MODEL with the methods on; the input stays as it was.")
            ],
        )

    @classmethod
    def execute(cls, model, preset=None) -> io.NodeOutput:
        require_omnigen2(model)
        if is_native(model):
            raise CheckpointError(
                "The connected MODEL comes from ComfyUI's own loader, whose transformer has no place for these "
                "methods; load it with OmniGen2 Load Diffusion Model."
            )
        acceleration = acceleration_of(preset)
        if acceleration != Acceleration():
            refuse_easycache(model.model_options["transformer_options"])
        model = model.clone()
        model.model_options["transformer_options"][MAKE_RUN_KEY] = acceleration.run
        return output_with_notes(model, **{READOUT: _advice(preset["preset"])})


def _advice(name: str) -> list[str]:
    """The run for which a preset was chosen, which is the sampler's to set."""
    if name not in PRESETS or PRESETS[name].acceleration == Acceleration():
        return []
    preset = PRESETS[name]
    return [f"{name} was chosen for {preset.steps} steps with {preset.solver}; both are set on the sampler."]
