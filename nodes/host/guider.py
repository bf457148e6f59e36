"""OmniGen2's text and image guidance as a ComfyUI guider, and our loop and solvers as a ComfyUI sampler."""

from __future__ import annotations

import comfy.model_base
import comfy.model_management
import comfy.samplers
import torch
from comfy.model_patcher import ModelPatcher
from tqdm.auto import tqdm

from ...omnigen2_core.acceleration.protocol import Work
from ...omnigen2_core.errors import CheckpointError, PromptError
from ...omnigen2_core.guidance import Branch, Guidance, branches, combine
from ...omnigen2_core.sampler import sample
from ...omnigen2_core.schedule import step_at
from .conditioning import (
    REFERENCES,
    Conditioning,
    check_references,
    count_references,
    largest_reference_batch,
    with_full_masks,
    with_references_of,
    without_references,
)
from .model import OmniGen2Model, profile_of
from .run import RUN_KEY

SOURCES: dict[Branch, str] = {"cond": "positive", "ref": "negative_ref", "uncond": "negative"}
"""The conditioning that each branch of the guidance evaluates."""


def require_omnigen2(model: ModelPatcher) -> None:
    """Raises CheckpointError unless the MODEL is an OmniGen2, ours or ComfyUI's own."""
    inner = model.model
    if not isinstance(inner, comfy.model_base.Omnigen2) or isinstance(inner, comfy.model_base.Boogu):
        raise CheckpointError(
            f"The connected MODEL is a {type(inner).__name__}, not an OmniGen2; connect the output of "
            "OmniGen2 Load Diffusion Model, OmniGen2 Load Folder or a core loader with OmniGen2 weights."
        )


def is_native(model: ModelPatcher) -> bool:
    """Whether the MODEL came from ComfyUI's own loader, not from ours."""
    return not isinstance(model.model, OmniGen2Model)


def notes_on_guidance(
    model: ModelPatcher,
    positive: Conditioning,
    negative_ref: Conditioning | None,
    negative: Conditioning | None,
    guidance: Guidance,
) -> list[str]:
    """What to say about this MODEL, these references and these scales together."""
    notes = []
    references = count_references(positive)
    if references > 1 and is_native(model):
        notes.append(
            f"This MODEL comes from ComfyUI's own loader, which refines {references} references jointly; the "
            "authors' model refines each alone. OmniGen2 Load Diffusion Model gives the exact result."
        )
    if batch := largest_reference_batch(positive):
        notes.append(
            f"A reference is a batch of {batch} latents, one for each picture that is made, and not {batch} references. "
            "For several references use OmniGen2 Encode, or a ReferenceLatent for each."
        )
    if references and guidance.image > 1.0 >= guidance.text:
        notes.append(
            f"text_guidance {guidance.text:g} turns all guidance off, so image_guidance {guidance.image:g} does nothing; "
            "set text_guidance above 1."
        )
    if references and guidance.image > 1.0 and guidance.text > 1.0:
        if negative is not None and count_references(negative):
            notes.append(
                "negative carries references, so image_guidance has nothing to compare them with; connect a negative "
                "prompt without references."
            )
        if negative_ref is not None and not count_references(negative_ref):
            notes.append(
                "negative_ref carries no references, so image_guidance does nothing; connect negative_ref of OmniGen2 "
                "Encode, or leave it open."
            )
    return notes


class OmniGen2CFGGuider(comfy.samplers.CFGGuider):
    """Guides with up to three conditionings and evaluates no more of them than a step needs.

    positive: prompt and references. negative_ref: negative prompt and references; None takes the negative prompt
    with the references of `positive`. negative: negative prompt alone; None takes negative_ref without references.

    record: what the last run computed and what it left out; None for a MODEL of ComfyUI's own loaders.

    Raises PromptError if the guidance needs a negative prompt and there is none, CheckpointError for another MODEL,
    ReferenceImageError for references that the MODEL cannot read.
    """

    def __init__(
        self,
        model: ModelPatcher,
        positive: Conditioning,
        negative_ref: Conditioning | None,
        negative: Conditioning | None,
        guidance: Guidance,
    ):
        require_omnigen2(model)
        super().__init__(model)
        self.guidance = guidance
        # Core's log reads it.
        self.cfg = guidance.text
        self.has_references = count_references(positive) > 0
        self.record: list[Work] | None = None
        self._levels: list[float] = []
        if guidance.text > 1.0 and negative is None and negative_ref is None:
            raise PromptError(
                f"text_guidance is {guidance.text:g}, which needs a negative prompt: connect negative (and "
                "negative_ref) of OmniGen2 Encode, or set text_guidance to 1."
            )
        found = {"positive": positive}
        if negative is not None or negative_ref is not None:
            found["negative"] = without_references(negative_ref) if negative is None else negative
            if self.has_references and guidance.text > 1.0 and guidance.image > 1.0:
                found["negative_ref"] = with_references_of(negative, positive) if negative_ref is None else negative_ref
        # ComfyUI's own model does not look at how many there are.
        channels = model.get_model_object("latent_format").latent_channels
        for conditioning in found.values():
            for _, options in conditioning:
                check_references(options.get(REFERENCES) or [], channels, profile_of(model).max_references)
        self.inner_set_conds({name: with_full_masks(conditioning) for name, conditioning in found.items()})

    def inner_sample(self, noise, latent_image, device, sampler, sigmas, *args, **kwargs):
        self._levels = sigmas.tolist()
        state = self.model_options["transformer_options"].get(RUN_KEY)
        self.record = None if state is None else state.run.record
        # Some of core's samplers (uni_pc) write into the sigmas, which may be another node's cached output.
        return super().inner_sample(noise, latent_image, device, sampler, sigmas.clone(), *args, **kwargs)

    def predict_noise(self, x, timestep, model_options={}, seed=None):
        """The guided estimate of the clean latents at one noise level (ComfyUI's name for it is historical)."""
        steps = max(len(self._levels) - 1, 1)
        step = step_at(float(timestep[0]), self._levels)
        wanted = branches(self.guidance, step, steps, self.has_references)
        evaluated = wanted
        if model_options.get("disable_cfg1_optimization") and "negative" in self.conds and "uncond" not in wanted:
            # Samplers such as euler_cfg_pp read the negative prediction even where it does not count.
            evaluated = (*wanted, "uncond")
        estimates = self._estimates(evaluated, x, timestep, model_options)
        guided = estimates["cond"]
        if len(wanted) > 1:
            estimates = self._pre_process(estimates, x, timestep, model_options)
            guided = self._combine({branch: estimates[branch] for branch in wanted}, x, timestep, model_options)
        return self._post_process(guided, estimates, x, timestep, model_options)

    # What other nodes ask for is made for a prediction and its negative. Text guidance is between the first two
    # branches, so those are what such nodes get to see; the third, if there is one, passes by them.

    def _estimates(self, evaluated: tuple[Branch, ...], x, timestep, model_options) -> dict[Branch, torch.Tensor]:
        """The estimates of these branches, by the function of another node (skip-layer guidance, ...) if there is one."""
        conds = [self.conds[SOURCES[branch]] for branch in evaluated]
        calculate = model_options.get("sampler_calc_cond_batch_function")
        if calculate is None:
            out = comfy.samplers.calc_cond_batch(self.inner_model, conds, x, timestep, model_options)
        else:
            pair = conds[:2] if len(conds) > 1 else [conds[0], None]
            shown = {"conds": pair, "input": x, "sigma": timestep, "model": self.inner_model, "model_options": model_options}
            out = list(calculate(shown))[: len(conds)]
            if len(conds) > 2:
                out += comfy.samplers.calc_cond_batch(self.inner_model, conds[2:], x, timestep, model_options)
        return dict(zip(evaluated, out))

    def _pre_process(
        self, estimates: dict[Branch, torch.Tensor], x, timestep, model_options
    ) -> dict[Branch, torch.Tensor]:
        """The same estimates with the first two as other nodes (FreSca, APG, ...) want them before they are combined."""
        pair = list(estimates)[:2]
        conds, out = [self.conds[SOURCES[branch]] for branch in pair], [estimates[branch] for branch in pair]
        for function in model_options.get("sampler_pre_cfg_function", []):
            out = function(
                {
                    "conds": conds,
                    "conds_out": out,
                    "cond_scale": self.guidance.text,
                    "timestep": timestep,
                    "input": x,
                    "sigma": timestep,
                    "model": self.inner_model,
                    "model_options": model_options,
                }
            )
        return {**estimates, **dict(zip(pair, out))}

    def _combine(self, estimates: dict[Branch, torch.Tensor], x, timestep, model_options) -> torch.Tensor:
        """The guided estimate; a formula that another node brings (RescaleCFG, ...) takes the place of text guidance."""
        if "sampler_cfg_function" not in model_options:
            return combine(estimates, self.guidance)
        cond, other = list(estimates)[:2]
        guided = comfy.samplers.cfg_function(
            self.inner_model, estimates[cond], estimates[other], self.guidance.text, x, timestep,
            model_options={**model_options, "sampler_post_cfg_function": []},
            cond=self.conds[SOURCES[cond]], uncond=self.conds[SOURCES[other]],
        )  # fmt: skip
        if "ref" in estimates:
            guided = guided + (self.guidance.image - 1.0) * (estimates["ref"] - estimates["uncond"])
        return guided

    def _post_process(self, guided, estimates, x, timestep, model_options):
        """What other nodes have asked to be done with the guided estimate."""
        for function in model_options.get("sampler_post_cfg_function", []):
            guided = function(
                {
                    "denoised": guided,
                    "cond": self.conds["positive"],
                    "uncond": self.conds.get("negative"),
                    "cond_scale": self.guidance.text,
                    "model": self.inner_model,
                    "cond_denoised": estimates["cond"],
                    "uncond_denoised": estimates.get("uncond", estimates["cond"]),
                    "sigma": timestep,
                    "model_options": model_options,
                    "input": x,
                }
            )
        return guided


def make_sampler(solver: str) -> comfy.samplers.KSAMPLER:
    """omnigen2_core's loop as a SAMPLER object; `solver` is one of omnigen2_core.solvers.SOLVERS."""

    def run(model, x, sigmas, extra_args=None, callback=None, disable=None):
        levels = sigmas.tolist()
        rows = x.new_ones([x.shape[0]])
        looked_at: list[torch.Tensor] = []

        def denoise(latents: torch.Tensor, t: float, step: int) -> torch.Tensor:
            estimate = model(latents, levels[step] * rows, **(extra_args or {}))
            looked_at[:] = [latents]
            return (estimate - latents) / levels[step]

        def report(step: int, estimate: torch.Tensor, latents: torch.Tensor) -> None:
            bar.update()
            if callback is not None:
                level = sigmas[step]
                callback({"x": looked_at[0], "i": step, "sigma": level, "sigma_hat": level, "denoised": estimate})
            comfy.model_management.throw_exception_if_processing_interrupted()

        with tqdm(total=len(levels) - 1, disable=disable) as bar:
            return sample(denoise, x, 1.0 - sigmas, solver=solver, callback=report)

    return comfy.samplers.KSAMPLER(run)
