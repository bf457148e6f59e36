"""Replays the transformer's cases through this package's own transformer, guidance and loop."""

from __future__ import annotations

from typing import Any, Callable, Iterator

import torch
from torch import Tensor

from ..acceleration.protocol import BranchCache, Evaluation, Run
from ..acceleration.taylorseer import TaylorSeer
from ..acceleration.teacache import TeaCache
from ..checkpoints import linear_shapes, load_weights, merge_lora, normalise_lora
from ..guidance import guided_denoiser
from ..joint import LayerStack
from ..precision import precision_for
from ..sampler import sample
from ..transformer import OmniGen2Config, OmniGen2Transformer
from .dit import VELOCITY_TOLERANCE, DiTCase, read_cases
from .folder import GoldenFolder
from .report import Row, Ruler
from .trajectories import Trace, Trajectory

DEBUG_TOLERANCE = VELOCITY_TOLERANCE


class CoreModel:
    """Our transformer with a folder's weights; a `LoRAModel` and a `SamplingModel`."""

    def __init__(self, device: torch.device, dtype: torch.dtype):
        self.device = device
        self.dtype = dtype

    def load(self, config: dict[str, Any], weights: dict[str, Tensor]) -> None:
        """Build the transformer in the dtype that is replayed."""
        self.transformer = OmniGen2Transformer(OmniGen2Config.from_dict(config), device="meta")
        placed = {name: value.to(self.device, self.dtype) for name, value in weights.items()}
        load_weights(self.transformer, placed, "dit_weights.safetensors")
        self.transformer.eval()

    def apply_lora(self, state: dict[str, Tensor], strength: float) -> None:
        """See `lora.LoRAModel.apply_lora`."""
        shapes = linear_shapes(self.transformer.state_dict())
        merge_lora(self.transformer, normalise_lora(state, shapes=shapes), strength)

    def place(self, value: Tensor) -> Tensor:
        """An input on the device, in the dtype that is replayed."""
        return value.to(self.device, self.dtype)

    def inputs(self, case: DiTCase) -> tuple:
        """The transformer's positional arguments for a case."""
        latents = [self.place(latent) for latent in case.latents]
        return (
            latents if case.as_list else torch.stack(latents),
            case.timestep.to(self.device),
            self.place(case.text),
            case.text_mask.to(self.device),
            self._references(case.references),
        )

    def velocity(self, case: DiTCase) -> list[Tensor]:
        """See `VelocityModel.velocity`."""
        return list(self.transformer(*self.inputs(case)))

    def trajectory(self, case: Trajectory) -> Trace:
        """See `SamplingModel.trajectory`."""
        measured: list[_Measured] = []
        run = Run(case.steps, make_cache=_cache_maker(case, measured))
        references = self._references(case.references)
        texts = {
            "positive": (self.place(case.text), case.text_mask.to(self.device)),
            "negative": (self.place(case.negative), case.negative_mask.to(self.device)),
        }
        trace = Trace()

        def predict(branch: str, x: Tensor, t: float, step: int) -> Tensor:
            trace.called.setdefault(branch, []).append(step)
            prompt = "positive" if branch == "cond" else "negative"
            times = torch.full((len(x),), t, device=self.device)
            return self.transformer(
                self.place(x),
                times,
                *texts[prompt],
                None if branch == "uncond" else references,
                state=run.evaluation(branch, step, text_key=prompt),
            )

        denoise = guided_denoiser(
            predict, case.guidance, steps=case.steps, has_references=any(map(len, case.references))
        )
        sample(
            denoise,
            case.noise.to(self.device),
            case.times,
            solver=case.solver,
            callback=lambda step, estimate, latents: trace.latents.append(latents),
        )
        trace.computed = run.computed
        trace.changes = {cache.branch: cache.changes for cache in measured} or None
        return trace

    def _references(self, references: list[list[Tensor]]) -> list[list[Tensor]]:
        return [[self.place(ref) for ref in refs] for refs in references]


def _cache_maker(case: Trajectory, measured: list[_Measured]) -> Callable[[], BranchCache] | None:
    def measured_teacache() -> _Measured:
        measured.append(_Measured(TeaCache(case.teacache)))
        return measured[-1]

    if case.taylorseer:
        return TaylorSeer
    return None if case.teacache is None else measured_teacache


class _Measured:
    """A cache that notes how much the signal changed from call to call."""

    def __init__(self, cache: BranchCache):
        self.cache = cache
        self.branch = ""
        self.changes: list[tuple[int, float]] = []
        self._signal: Tensor | None = None

    def run_layers(self, stack: LayerStack, evaluation: Evaluation) -> Tensor:
        self.branch, signal = evaluation.branch, stack.signal()
        if self._signal is not None:
            change = (signal - self._signal).abs().mean() / self._signal.abs().mean()
            self.changes.append((evaluation.step, change.item()))
        self._signal = signal
        return self.cache.run_layers(stack, evaluation)


def replay_inner_values(folder: GoldenFolder, model: CoreModel) -> Iterator[Row]:
    """The reference's inner values at the seams of our forward pass, real tokens only."""
    ruler = Ruler("dit inner", model.dtype)
    cases = [case for case in read_cases(folder) if case.debug]
    model.load(folder.json("dit_config"), folder.tensors("dit_weights"))
    for case in cases:
        for name, got in _inner_values(model, case).items():
            if name not in case.debug:
                continue
            expected = case.debug[name]
            if name == "joint_mask":
                yield ruler.exact(f"{case.name} {name}", [(got.tolist(), expected.tolist())])
                continue
            if name == "temb":
                pairs = [(got, expected)]
            else:
                lengths = case.text_mask.sum(1) if name == "context_refined" else case.debug["joint_mask"].sum(1)
                pairs = [(row[:n], want[:n]) for row, want, n in zip(got, expected, lengths.tolist(), strict=True)]
            yield ruler.close(f"{case.name} {name}", pairs, DEBUG_TOLERANCE)


def _inner_values(model: CoreModel, case: DiTCase) -> dict[str, Tensor]:
    precision = precision_for(model.dtype)
    joint = model.transformer.refine(*model.inputs(case), precision=precision)
    stack = LayerStack(model.transformer.layers, joint, precision)
    batch, longest = joint.hidden.shape[:2]
    cos, sin = (table.expand(batch, -1, -1) for table in joint.rotation)
    mask = torch.ones(batch, longest) if joint.mask is None else joint.mask[:, 0, 0]
    return {
        "temb": joint.temb,
        "rope_real": cos,
        "rope_imag": sin,
        "context_refined": joint.hidden[:, : case.text.shape[1]],
        "joint_in": joint.hidden,
        "joint_after_layer0": stack.layer(0, joint.hidden),
        "joint_mask": mask.to("cpu", torch.uint8),
    }
