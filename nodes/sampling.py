"""Sampling nodes: the simple sampler, and GUIDER and SIGMAS for ComfyUI's custom samplers."""

from __future__ import annotations

from typing import Any, NamedTuple

import comfy.model_management
import comfy.sample
import comfy.utils
import latent_preview
import torch
from comfy_api.latest import io

from ..omnigen2_core import schedule
from ..omnigen2_core.errors import OmniGen2Error, SizeError
from ..omnigen2_core.guidance import Guidance
from .host.guider import OmniGen2CFGGuider, make_sampler, notes_on_guidance, require_omnigen2
from .host.model import profile_of
from .host.notes import output_with_notes
from .host.readout import READOUT, Meter

CATEGORY = "OmniGen2/sampling"


def _steps_input() -> io.Int.Input:
    return io.Int.Input(
        "steps", default=50, min=1, max=1000,
        tooltip="Denoising steps. The reference uses 50; dpmpp_2m reaches about the same in fewer.",
    )


def _shift_input() -> io.DynamicCombo.Input:
    value = io.Float.Input(
        "value", default=2.6, min=0.01, max=100.0, step=0.01,
        tooltip="The factor m of t / (m - m t + t). 1 leaves the steps even, larger values stay longer near the noise; "
        "KSampler uses 2.6 with this model.",
    )
    return io.DynamicCombo.Input(
        "shift",
        options=[
            io.DynamicCombo.Option("auto", []),
            io.DynamicCombo.Option("fixed", [value]),
            io.DynamicCombo.Option("none", []),
        ],
        tooltip="How the steps spread between noise and picture. auto grows with the picture's size, as in the "
        "reference (3.2 at 1024x1024); fixed takes a number; none spreads them evenly.",
    )


def _denoise_input() -> io.Float.Input:
    return io.Float.Input(
        "denoise", default=1.0, min=0.0, max=1.0, step=0.01,
        tooltip="1 starts from pure noise. Less keeps more of the picture in latent, which must then be an encoded one.",
    )


def _model_input() -> io.Model.Input:
    return io.Model.Input("model", tooltip="An OmniGen2 MODEL, from our loaders or from core's.")


def _guidance_inputs() -> list[io.Input]:
    return [
        io.Float.Input(
            "text_guidance", default=5.0, min=1.0, max=20.0, step=0.1, round=0.01,
            tooltip="How strongly the prompt is followed. 1 turns all guidance off, and each step costs one evaluation.",
        ),
        io.Float.Input(
            "image_guidance", default=2.0, min=1.0, max=10.0, step=0.1, round=0.01,
            tooltip="How strongly the references are kept: 1.2 to 2 for edits, 2.5 to 3 for in-context generation. "
            "Counts only with references and text_guidance above 1; 1 saves an evaluation a step.",
        ),
    ]


def _range_inputs() -> list[io.Input]:
    tooltip = "share of the run that is guided, counted in steps. Steps outside cost one evaluation instead of two or three."
    return [
        io.Float.Input(
            "guidance_start", default=0.0, min=0.0, max=1.0, step=0.01, tooltip=f"Beginning of the {tooltip}", advanced=True
        ),
        io.Float.Input(
            "guidance_end", default=1.0, min=0.0, max=1.0, step=0.01, tooltip=f"End of the {tooltip}", advanced=True
        ),
    ]


def setting_inputs() -> list[io.Input]:
    """How a picture is sampled, all but the seed and what it begins with; `sample_latent` takes their values."""
    return [
        _steps_input(),
        io.Combo.Input(
            "solver", options=["euler", "dpmpp_2m"], default="euler",
            tooltip="euler is the reference's default. dpmpp_2m looks one step back and needs fewer steps.",
        ),
        *_guidance_inputs(),
        *_range_inputs(),
        _shift_input(),
    ]


def _conditioning_inputs() -> list[io.Input]:
    return [
        io.Conditioning.Input("positive", tooltip="The prompt, with its references if there are any."),
        io.Conditioning.Input(
            "negative_ref", optional=True,
            tooltip="The negative prompt with the same references. If it is left open, negative with the references of "
            "positive is used.",
        ),
        io.Conditioning.Input(
            "negative", optional=True,
            tooltip="The negative prompt without references. May be left open if text_guidance is 1.",
        ),
    ]


def shift_of(choice: dict[str, Any] | None) -> schedule.Shift:
    """The schedule's shift from the value of the shift widget.

    Raises OmniGen2Error for None: ComfyUI passes on no unknown choice, and no missing one either.
    """
    choice = choice or {}
    key = choice.get("shift")
    if key == "fixed":
        return float(choice["value"])
    if key == "none":
        return None
    if key == "auto":
        return "auto"
    raise OmniGen2Error("The shift is missing or unknown; choose auto, fixed or none.")


def run_sigmas(model, samples: torch.Tensor, steps: int, shift: schedule.Shift, denoise: float) -> torch.Tensor:
    """Noise levels of a run on these latents, fp32 [steps + 1]; empty for denoise 0."""
    if denoise <= 0.0:
        return torch.FloatTensor([])
    height, width = samples.shape[-2:]
    times = schedule.timesteps(
        steps, height, width, shift=shift, base=profile_of(model).shift_base, denoise=denoise
    )
    return schedule.sigmas(times)


def fitted_latent(model, latent: dict) -> torch.Tensor:
    """The latents [B, 16, h, w]; an empty latent of another model gets the right number of channels.

    Raises SizeError for latents that hold a picture of another VAE.
    """
    samples = comfy.sample.fix_empty_latent_channels(
        model, latent["samples"], latent.get("downscale_ratio_spacial"), latent.get("downscale_ratio_temporal")
    )
    channels = model.get_model_object("latent_format").latent_channels
    if samples.ndim != 4 or samples.shape[1] != channels:
        raise SizeError(
            f"The latent has shape {list(samples.shape)}, but OmniGen2 works on [batch, {channels}, height/8, width/8]; "
            "connect the latent of OmniGen2 Encode, EmptySD3LatentImage, or a picture encoded with ae.safetensors."
        )
    return samples


def notes_on_latent(samples: torch.Tensor) -> list[str]:
    """A note where the latent does not divide into patches."""
    height, width = samples.shape[-2:]
    if height % 2 == 0 and width % 2 == 0:
        return []
    return [
        f"The picture is {8 * width}x{8 * height} pixels, which does not divide by 16; its edge is repeated while "
        "sampling. Sides that are multiples of 16 suit the model better."
    ]


class Sampled(NamedTuple):
    """Denoised latents [B, 16, h, w] in the VAE's own scale on the intermediate device.

    notes: what the user should know of the inputs. readout: what the run cost, in one line.
    """

    samples: torch.Tensor
    notes: list[str]
    readout: str


def sample_latent(
    model, positive, negative_ref, negative, latent: dict, *, seed: int, steps: int, solver: str,
    text_guidance: float, image_guidance: float, guidance_start: float = 0.0, guidance_end: float = 1.0,
    shift: dict[str, Any] | None = None, denoise: float = 1.0,
) -> Sampled:
    """One sampling run. The settings are the values of OmniGen2 Sampler's inputs.

    Raises what OmniGen2CFGGuider, `fitted_latent` and `shift_of` raise, and ComfyUI's exception when the run is
    cancelled.
    """
    meter = Meter(model.load_device)
    guidance = Guidance(text_guidance, image_guidance, (guidance_start, guidance_end))
    guider = OmniGen2CFGGuider(model, positive, negative_ref, negative, guidance)
    samples = fitted_latent(model, latent)
    sigmas = run_sigmas(model, samples, steps, shift_of(shift), denoise)
    noise = comfy.sample.prepare_noise(samples, seed, latent.get("batch_index"))
    out = guider.sample(
        noise, samples, make_sampler(solver), sigmas,
        denoise_mask=latent.get("noise_mask"),
        callback=latent_preview.prepare_callback(model, max(len(sigmas) - 1, 0)),
        disable_pbar=not comfy.utils.PROGRESS_BAR_ENABLED,
        seed=seed,
    )
    out = out.to(
        device=comfy.model_management.intermediate_device(), dtype=comfy.model_management.intermediate_dtype()
    )
    notes = notes_on_guidance(model, positive, negative_ref, negative, guidance) + notes_on_latent(samples)
    return Sampled(out, notes, meter.line(guider.record))


class OmniGen2Sample(io.ComfyNode):
    """Samples as the reference implementation does: its schedule, solvers and two guidance scales."""

    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="OmniGen2Sample",
            display_name="OmniGen2 Sampler",
            category=CATEGORY,
            description="Samples with OmniGen2's own schedule, solvers and guidance by text and image.",
            search_aliases=["ksampler", "generate", "denoise", "edit", "txt2img", "image guidance"],
            inputs=[
                _model_input(),
                *_conditioning_inputs(),
                io.Latent.Input(
                    "latent", tooltip="What is denoised: the latent of OmniGen2 Encode, or an encoded picture. A noise mask "
                    "limits the change to its white part.",
                ),
                io.Int.Input(
                    "seed", default=0, min=0, max=0xFFFFFFFFFFFFFFFF, control_after_generate=True,
                    tooltip="Seed of the noise, which is made on the CPU: the same on every machine, and as in KSampler.",
                ),
                *setting_inputs(),
                _denoise_input(),
            ],
            outputs=[io.Latent.Output(display_name="latent", tooltip="The denoised latent, for a VAE decoder.")],
        )

    @classmethod
    def execute(cls, model, positive, latent, negative_ref=None, negative=None, **settings) -> io.NodeOutput:
        out, notes, readout = sample_latent(model, positive, negative_ref, negative, latent, **settings)
        kept = {key: value for key, value in latent.items() if not key.startswith("downscale_ratio")}
        return output_with_notes({**kept, "samples": out}, notes=notes, **{READOUT: [readout]})


class OmniGen2Guider(io.ComfyNode):
    """The two guidance scales for SamplerCustomAdvanced."""

    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="OmniGen2Guider",
            display_name="OmniGen2 Guider",
            category=CATEGORY,
            description="OmniGen2's guidance by text and image, for SamplerCustomAdvanced and any of its samplers.",
            search_aliases=["dual cfg guider", "image guidance", "instruct edit"],
            inputs=[_model_input(), *_conditioning_inputs(), *_guidance_inputs(), *_range_inputs()],
            outputs=[io.Guider.Output(display_name="guider", tooltip="For SamplerCustomAdvanced.")],
        )

    @classmethod
    def execute(
        cls, model, positive, text_guidance, image_guidance, guidance_start=0.0, guidance_end=1.0,
        negative_ref=None, negative=None,
    ) -> io.NodeOutput:
        guidance = Guidance(text_guidance, image_guidance, (guidance_start, guidance_end))
        guider = OmniGen2CFGGuider(model, positive, negative_ref, negative, guidance)
        return output_with_notes(guider, notes=notes_on_guidance(model, positive, negative_ref, negative, guidance))


class OmniGen2Sigmas(io.ComfyNode):
    """The reference's schedule for SamplerCustomAdvanced."""

    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="OmniGen2Sigmas",
            display_name="OmniGen2 Sigmas",
            category=CATEGORY,
            description="OmniGen2's noise levels for a picture of this size, for SamplerCustomAdvanced.",
            search_aliases=["scheduler", "shift", "time shift"],
            inputs=[
                _model_input(),
                io.Latent.Input("latent", tooltip="The latent to be sampled; the automatic shift depends on its size."),
                _steps_input(),
                _shift_input(),
                _denoise_input(),
            ],
            outputs=[io.Sigmas.Output(display_name="sigmas", tooltip="Falling noise levels, one more than there are steps.")],
        )

    @classmethod
    def execute(cls, model, latent, steps, shift=None, denoise=1.0) -> io.NodeOutput:
        require_omnigen2(model)
        samples = fitted_latent(model, latent)
        sigmas = run_sigmas(model, samples, steps, shift_of(shift), denoise)
        return output_with_notes(sigmas, notes=notes_on_latent(samples))
