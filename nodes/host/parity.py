"""Replays golden transformer passes and sampling runs through the native MODEL, as ComfyUI's samplers use it.

Runs in a process that can import `comfy`; `tests/host/parity.py` is its command.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import comfy.model_management
import comfy.samplers
import torch
from comfy.model_patcher import ModelPatcher
from comfy.patcher_extension import WrappersMP
from torch import Tensor

from ...omnigen2_core.acceleration.protocol import Run
from ...omnigen2_core.acceleration.taylorseer import TaylorSeer
from ...omnigen2_core.acceleration.teacache import TeaCache
from ...omnigen2_core.parity.dit import DiTCase
from ...omnigen2_core.parity.trajectories import Trace, Trajectory
from ...omnigen2_core.schedule import step_at
from ...omnigen2_core.transformer import OmniGen2Config
from .conditioning import MASK, REFERENCES, Conditioning
from .guider import SOURCES, OmniGen2CFGGuider, make_sampler
from .model import load_diffusion_model
from .run import MAKE_RUN_KEY, RUN_KEY

HOST_TOLERANCE = 1e-4
_KEY = "parity"


class HostModel:
    """The native MODEL with a folder's weights; a `VelocityModel` and a `SamplingModel`."""

    def __init__(self, weight_dtype: str = "fp32"):
        self.weight_dtype = weight_dtype
        self.patcher: ModelPatcher | None = None

    def load(self, config: dict[str, Any], weights: dict[str, Tensor]) -> None:
        """Load the weights as our loader does."""
        self.patcher = load_diffusion_model(
            weights, OmniGen2Config.from_dict(config), weight_dtype=self.weight_dtype
        )

    @property
    def how(self) -> str:
        """What ComfyUI made of the choice of dtype: how the weights are kept, what computes and where."""
        if self.patcher is None:
            return "no weights loaded"
        computes = str(self.patcher.model.get_dtype_inference()).removeprefix("torch.")
        return f"weights in {self.weight_dtype}, computed in {computes} on {self.patcher.load_device}"

    def velocity(self, case: DiTCase) -> list[Tensor]:
        """The velocity of every sample; a batch where ComfyUI can batch it, one by one where it cannot."""
        batched = not case.as_list and not any(case.references)
        groups = [slice(None)] if batched else [slice(i, i + 1) for i in range(len(case.latents))]
        found: list[Tensor] = []
        for group in groups:
            references = [self._unscaled(ref[None]) for refs in case.references[group] for ref in refs]
            conditioning = _conditioning(case.text[group], case.text_mask[group], references)
            found += self._velocity(torch.stack(case.latents[group]), 1.0 - case.timestep[group], conditioning)
        return found

    def trajectory(self, case: Trajectory) -> Trace:
        """The run of each sample through guider and sampler, together where no sample has references of its own."""
        if not any(case.references):
            return self._run(case, slice(None))
        traces = [self._run(case, slice(i, i + 1)) for i in range(len(case.noise))]
        if len(traces) == 1:
            return traces[0]
        joined = Trace([torch.cat(latents) for latents in zip(*(trace.latents for trace in traces))])
        joined.called = max((trace.called for trace in traces), key=len)
        return joined

    def _velocity(self, latents: Tensor, sigmas: Tensor, conditioning: Conditioning) -> list[Tensor]:
        """One evaluation by core's own machinery, read where the transformer hands it back."""
        seen: list[Tensor] = []

        def read(executor, *args, **kwargs):
            seen.append(executor(*args, **kwargs))
            return seen[-1]

        options = {"transformer_options": {"wrappers": {WrappersMP.DIFFUSION_MODEL: {_KEY: [read]}}}}
        comfy.model_management.load_models_gpu([self.patcher])
        self.patcher.pre_run()
        device = self.patcher.load_device
        latents, sigmas = latents.to(device), sigmas.to(device)
        guider = comfy.samplers.CFGGuider(self.patcher)
        guider.inner_set_conds({"positive": conditioning})
        conds = comfy.samplers.process_conds(self.patcher.model, latents, dict(guider.original_conds), device)
        comfy.samplers.calc_cond_batch(self.patcher.model, [conds["positive"]], latents, sigmas, options)
        # ComfyUI's velocity points to the noise.
        return list(-seen[0])

    def _run(self, case: Trajectory, rows: slice) -> Trace:
        model, trace, evaluated = self.patcher.clone(), Trace(), {}
        references = [self._unscaled(ref[None]) for refs in case.references[rows] for ref in refs]
        if case.taylorseer or case.teacache is not None:
            make = TaylorSeer if case.taylorseer else lambda: TeaCache(case.teacache)
            model.model_options["transformer_options"][MAKE_RUN_KEY] = partial(Run, make_cache=make)
        negative = _conditioning(case.negative[rows], case.negative_mask[rows])
        guider = OmniGen2CFGGuider(
            model,
            _conditioning(case.text[rows], case.text_mask[rows], references),
            _conditioning(case.negative[rows], case.negative_mask[rows], references),
            negative,
            case.guidance,
        )
        branch_of = {source: branch for branch, source in SOURCES.items()}
        sigmas = 1.0 - case.times

        def record(executor, inner, conds, x, timestep, options):
            step = step_at(float(timestep[0]), sigmas)
            state = options["transformer_options"][RUN_KEY]
            for name in filter(None, state.names(conds)):
                evaluated.setdefault(branch_of[name], []).append(step)
            out = executor(inner, conds, x, timestep, options)
            trace.computed = state.run.computed
            return out

        model.add_wrapper_with_key(WrappersMP.CALC_COND_BATCH, _KEY, record)
        # A run that starts later than the noise gets it unscaled from the golden data, and scaled by ComfyUI.
        noise = case.noise[rows] / sigmas[0]
        final = guider.sample(
            noise, torch.zeros_like(noise), make_sampler(case.solver), sigmas, disable_pbar=True,
            callback=lambda step, estimate, latents, steps: trace.latents.append(latents.cpu()),
        )
        # The callback sees what each step began with.
        trace.latents = [*trace.latents[1:], self.patcher.model.process_latent_in(final).cpu()]
        trace.called = evaluated
        batches = {",".join(branch_of[name] for name in key.split(",")): steps for key, steps in trace.computed.items()}
        trace.computed = batches if batches.keys() <= SOURCES.keys() else None
        return trace

    def _unscaled(self, latents: Tensor) -> Tensor:
        return self.patcher.model.process_latent_out(latents)


def _conditioning(text: Tensor, mask: Tensor, references: list[Tensor] | None = None) -> Conditioning:
    options: dict[str, Any] = {"pooled_output": None, MASK: mask}
    if references:
        options[REFERENCES] = references
    return [[text, options]]
