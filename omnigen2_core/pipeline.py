"""OmniGen2 without ComfyUI: from a model folder and prompts to pictures.

    pipeline = OmniGen2Pipeline.from_folder("OmniGen2")
    pictures = pipeline.generate("a red fox in the snow", seeds=7)
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Callable, Sequence

import torch
from PIL import Image
from torch import Tensor

from .acceleration.protocol import Run
from .assistant import Assistant
from .checkpoints import ModelFolder, linear_shapes, load_lora, load_weights, merge_lora, vae_to_diffusers
from .errors import PromptError, ReferenceImageError, SizeError
from .generation import SEEDS
from .guidance import Branch, Guidance, guided_denoiser
from .images import from_pixels, output_size, picture_lists, reference_pixels, reference_size, to_rgb
from .mllm import Qwen2_5_VL, build_mllm, encode_text, load_mllm_state_dict
from .precision import default_dtype
from .profile import ModelProfile
from .prompts import DEFAULT_NEGATIVE_PROMPT, OmniGen2Tokenizer, generation_prompt
from .quantised import operations_for
from .sampler import StepCallback, sample
from .schedule import Shift, timesteps
from .solvers import make_solver
from .transformer import OmniGen2Config, OmniGen2Transformer
from .vae import AutoencoderKL, VAEConfig
from .vision import PixelConfig

logger = logging.getLogger(__name__)

References = Sequence[Sequence[Image.Image] | None] | None
"""For each prompt its reference pictures, or None."""


@dataclass(frozen=True)
class EncodedText:
    """Prompts as the transformer reads them: hidden [B, L, D] and mask [B, L] (1 = real, real tokens first)."""

    hidden: Tensor
    mask: Tensor

    def expand(self, batch: int) -> "EncodedText":
        """One prompt for `batch` samples."""
        return EncodedText(self.hidden.expand(batch, -1, -1), self.mask.expand(batch, -1))


class OmniGen2Pipeline:
    """A model's parts, and the way from prompts to pictures through them.

    Each part computes in the dtype of its own weights, or of its norms where the matrices are kept in fewer bits;
    latents and steps stay fp32. `pixels` is how the encoder sees pictures, which only `assistant` needs.
    """

    def __init__(
        self,
        transformer: OmniGen2Transformer,
        vae: AutoencoderKL,
        encoder: Qwen2_5_VL,
        tokenizer: OmniGen2Tokenizer,
        profile: ModelProfile,
        pixels: PixelConfig = PixelConfig(),
    ):
        self.transformer = transformer
        self.vae = vae
        self.encoder = encoder
        self.tokenizer = tokenizer
        self.profile = profile
        self.pixels = pixels

    @classmethod
    def from_folder(
        cls, path: str | Path, *, device: torch.device | str | None = None, dtype: torch.dtype | None = None
    ) -> "OmniGen2Pipeline":
        """Load a model folder in the published layout. Weights in fp8, int8 or GGUF's formats stay in them.

        Args:
            path: Folder with transformer/, vae/, mllm/ and processor/.
            device: The default is CUDA where there is it, else the CPU.
            dtype: Of the transformer. The default is bf16 on a graphics card that has it, else fp32. With fp16, which
                the other parts would overflow in, the autoencoder takes fp32 and the encoder bf16.

        Raises:
            CheckpointError: A part is missing, damaged, or another model's.
        """
        device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        dtype = dtype or default_dtype(device)
        folder = ModelFolder(path)
        folder.check()
        vae_dtype = torch.float32 if dtype == torch.float16 else dtype
        encoder_dtype = torch.bfloat16 if dtype == torch.float16 else dtype

        weights = folder.state_dict("transformer", dtype, packed=True)
        transformer = OmniGen2Transformer(
            OmniGen2Config.from_dict(folder.config("transformer")),
            operations=operations_for(weights),
            dtype=dtype,
            device="meta",
        )
        load_weights(transformer, weights, f"transformer/ of {folder.name}")
        vae = AutoencoderKL(VAEConfig.from_dict(folder.config("vae")), device="meta")
        load_weights(vae, vae_to_diffusers(folder.state_dict("vae", vae_dtype)), f"vae/ of {folder.name}")
        weights = folder.state_dict("mllm", encoder_dtype, packed=True)
        encoder = build_mllm(folder.config("mllm"), operations=operations_for(weights), dtype=encoder_dtype)
        load_mllm_state_dict(encoder, weights)
        tokenizer = OmniGen2Tokenizer.from_folder(folder.tokenizer_folder)
        tokenizer.check(folder.config("mllm"))
        pixels = PixelConfig.from_dict(folder.processor_config)
        parts = [part.to(device).eval().requires_grad_(False) for part in (transformer, vae, encoder)]
        return cls(*parts, tokenizer, folder.profile, pixels)

    @property
    def device(self) -> torch.device:
        """Where the transformer is."""
        return next(self.transformer.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        """What the transformer computes in."""
        return next(weight.dtype for weight in self.transformer.parameters() if weight.is_floating_point())

    def load_lora(self, path: str | Path, strength: float = 1.0) -> None:
        """Merge a LoRA file into the transformer. Raises LoRAError for a file that does not fit."""
        shapes = linear_shapes(self.transformer.state_dict())
        merge_lora(self.transformer, load_lora(path, shapes), strength)

    def assistant(self) -> Assistant:
        """The encoder as one to talk with, which remembers pictures for itself.

        Raises CheckpointError when `pixels` is another model's.
        """
        return Assistant(self.encoder, self.tokenizer, self.pixels)

    @torch.inference_mode()
    def generate(
        self,
        prompts: str | Sequence[str],
        *,
        references: References = None,
        negative_prompt: str | None = DEFAULT_NEGATIVE_PROMPT,
        seeds: int | Sequence[int] = 0,
        size: tuple[int, int] | None = None,
        steps: int | None = None,
        guidance: Guidance | None = None,
        solver: str = "euler",
        shift: Shift = "auto",
        make_run: Callable[[int], Run] = Run,
        callback: StepCallback | None = None,
    ) -> list[Image.Image]:
        """One picture for each prompt, in one batch.

        Args:
            prompts: One prompt or several, of any lengths.
            references: For each prompt the list of up to five pictures, of any sizes and modes, so for one prompt
                [[picture]].
            negative_prompt: Shared by all; None is the empty prompt.
            seeds: One for each prompt, any whole numbers modulo 2**64; a single number counts up from the first prompt.
            size: Width and height of the result in pixels. Without it, a batch whose prompts have one reference
                each, of one size, takes that size, and any other the model's default.
            steps, guidance: At least one step. The defaults are those of the model's profile.
            solver: "euler" or "dpmpp_2m".
            shift: See `schedule.timesteps`.
            make_run: Gives the object that remembers the run, from the number of steps; `run` of an
                `acceleration.presets.Acceleration` makes one that saves work.
            callback: See `sampler.sample`.

        Raises:
            PromptError, ReferenceImageError, SizeError: An input that the model cannot take.
            SamplingError: `steps`, `solver` or `shift` is out of range.
        """
        prompts = [prompts] if isinstance(prompts, str) else list(prompts)
        if not prompts:
            raise PromptError("There is no prompt; give at least one, which may be empty.")
        self._check_run(steps, solver, shift)
        per_prompt = self._checked_references(references, len(prompts))
        seeds = [seeds + i for i in range(len(prompts))] if isinstance(seeds, int) else list(seeds)
        if len(seeds) != len(prompts):
            raise PromptError(f"Got {len(seeds)} seeds for {len(prompts)} prompts; give one for each prompt.")
        profile = self.profile
        size = size or self._default_size(per_prompt)
        generated = output_size(*size, max_pixels=profile.max_pixels, multiple=profile.size_multiple)
        latents = self.sample_latents(
            self.encode_prompts(prompts),
            self.encode_prompts([negative_prompt]).expand(len(prompts)),
            self.noise(seeds, *generated),
            [[self.encode_reference(image) for image in images] for images in per_prompt],
            steps=steps,
            guidance=guidance,
            solver=solver,
            shift=shift,
            make_run=make_run,
            callback=callback,
        )
        return from_pixels(self.decode(latents), size)

    def encode_prompts(self, prompts: Sequence[str | None]) -> EncodedText:
        """Prompts through the template and the encoder. What the model cannot read is cut off and logged.

        Raises PromptError when there is no prompt.
        """
        batch = self.tokenizer.tokenize([generation_prompt(text) for text in prompts], self.profile.max_text_tokens)
        for prompt, cut in zip(prompts, batch.truncated):
            if cut:
                logger.warning("The last %d tokens of a prompt are not read: it begins with %.40r", cut, prompt)
        device = next(self.encoder.parameters()).device
        ids, mask = batch.ids.to(device), batch.mask.to(device)
        return EncodedText(encode_text(self.encoder, ids, mask), mask)

    def encode_reference(self, image: Image.Image) -> Tensor:
        """A reference as scaled latents [C, h, w], fp32: the mean of what the autoencoder sees.

        Raises SizeError for a picture that has no pixels, or pixels in floating point.
        """
        limits = {"max_pixels": self.profile.max_pixels, "max_side": self.profile.max_side}
        pixels = reference_pixels(image, **limits, multiple=self.profile.size_multiple)
        weight = next(self.vae.parameters())
        mean = self.vae.encode(pixels.to(weight.device, weight.dtype)).mean
        return self.vae.scale_latents(mean.float())[0]

    def noise(self, seeds: Sequence[int], width: int, height: int) -> Tensor:
        """Starting latents [B, C, h, w] for pictures of the given size in pixels.

        `width` and `height` are multiples of the autoencoder's 8. `seeds`: at least one; any whole numbers, modulo 2**64.
        Made on the CPU for each seed alone, so that neither device nor batch changes them.
        """
        config = self.vae.config
        shape = (config.latent_channels, height // config.factor, width // config.factor)
        return torch.stack([torch.randn(shape, generator=torch.Generator().manual_seed(seed % SEEDS)) for seed in seeds])

    @torch.inference_mode()
    def sample_latents(
        self,
        text: EncodedText,
        negative: EncodedText,
        noise: Tensor,
        references: Sequence[Sequence[Tensor]],
        *,
        steps: int | None = None,
        guidance: Guidance | None = None,
        solver: str = "euler",
        shift: Shift = "auto",
        make_run: Callable[[int], Run] = Run,
        callback: StepCallback | None = None,
    ) -> Tensor:
        """Scaled latents [B, C, h, w] from noise of that shape; `references` are scaled latents [C, h, w].

        The settings are those of `generate`.

        Raises:
            PromptError: There are not as many texts as latents, or a text that the model cannot read.
            ReferenceImageError: There are not as many lists of references as latents, or too many in one.
            SamplingError: `steps`, `solver` or `shift` is out of range.
            SizeError: Latents or references have channels or sides that the model cannot take.
        """
        profile = self.profile
        steps = profile.steps if steps is None else steps
        guidance = guidance or Guidance(profile.text_guidance, profile.image_guidance, (0.0, profile.guidance_end))
        dtype, device = self.dtype, self.device
        run = make_run(steps)
        placed = [[ref.to(device, dtype) for ref in refs] for refs in references]
        texts = {
            name: (encoded.hidden.to(device, dtype), encoded.mask.to(device))
            for name, encoded in (("positive", text), ("negative", negative))
        }
        lengths = {"positive": text.mask.sum(1).tolist(), "negative": negative.mask.sum(1).tolist()}

        def predict(branch: Branch, x: Tensor, t: float, step: int) -> Tensor:
            prompt = "positive" if branch == "cond" else "negative"
            return self.transformer(
                x.to(dtype),
                torch.full((len(x),), t, device=device),
                *texts[prompt],
                None if branch == "uncond" else placed,
                text_lengths=lengths[prompt],
                state=run.evaluation(branch, step, text_key=prompt),
            )

        has_references = any(map(len, references))
        denoise = guided_denoiser(predict, guidance, steps=steps, has_references=has_references, through=run.predict)
        times = timesteps(steps, *noise.shape[-2:], shift=shift, base=profile.shift_base)
        return sample(denoise, noise.to(device), times, solver=solver, callback=callback)

    def decode(self, latents: Tensor) -> Tensor:
        """Pixels [B, 3, H, W], about -1..1, of scaled latents [B, C, h, w]."""
        weight = next(self.vae.parameters())
        return self.vae.decode(self.vae.unscale_latents(latents.to(weight.device)).to(weight.dtype))

    def _check_run(self, steps: int | None, solver: str, shift: Shift) -> None:
        """Raises SamplingError for what `sample_latents` would refuse, before anything is computed."""
        make_solver(solver)
        timesteps(self.profile.steps if steps is None else steps, 1, 1, shift=shift)

    def _checked_references(self, references: References, count: int) -> list[list[Image.Image]]:
        if references is None:
            return [[] for _ in range(count)]
        per_prompt = picture_lists(references, "prompt")
        if len(per_prompt) != count:
            raise ReferenceImageError(
                f"Got references for {len(per_prompt)} prompts and {count} prompts; give one list (or None) a prompt."
            )
        most = max(map(len, per_prompt))
        if most > self.profile.max_references:
            raise ReferenceImageError(
                f"Got {most} reference images for one prompt; the model takes at most {self.profile.max_references}. "
                "Remove some."
            )
        return per_prompt

    def _default_size(self, references: Sequence[Sequence[Image.Image]]) -> tuple[int, int]:
        profile = self.profile
        if any(len(images) != 1 for images in references):
            return profile.default_width, profile.default_height
        limits = {"max_pixels": profile.max_pixels, "max_side": profile.max_side, "multiple": profile.size_multiple}
        sizes = {reference_size(*to_rgb(images[0]).size, **limits) for images in references}
        if len(sizes) > 1:
            listed = ", ".join(f"{width}x{height}" for width, height in sorted(sizes))
            raise SizeError(f"The references of this batch have different sizes ({listed}); give the size of the results.")
        return sizes.pop()
