"""omnigen2_core's transformer behind the calling convention of ComfyUI's diffusion models."""

from __future__ import annotations

from typing import Any

import torch
from comfy.ldm.common_dit import pad_to_patch_size
from comfy.ldm.modules.attention import optimized_attention
from comfy.patcher_extension import WrapperExecutor, WrappersMP, get_all_wrappers

from ...omnigen2_core.joint import JointSequence, LayerStack
from ...omnigen2_core.precision import Attention, Precision, precision_for
from ...omnigen2_core.transformer import OmniGen2Config, OmniGen2Transformer
from .compiling import COMPILED_KEY
from .run import RUN_KEY, has_replaced_blocks


class HostTransformer(OmniGen2Transformer):
    """The DiT behind the calling convention of ComfyUI's diffusion models.

    Arguments beyond the config are those that ComfyUI passes to every diffusion model.
    """

    def __init__(self, *, image_model=None, dtype=None, device=None, operations=None, **config):
        super().__init__(OmniGen2Config.from_dict(config), operations=operations, dtype=dtype, device=device)
        self.dtype = dtype

    def forward(
        self, x, timesteps, context, num_tokens=None, ref_latents=None, attention_mask=None,
        transformer_options={}, **kwargs,
    ):
        """ComfyUI's velocity, noise - image, [B, C, H, W].

        x: scaled latents [B, C, H, W] of any size. timesteps: [B], sigma, 1 = noise. context: [B, L, D].
        ref_latents: scaled references, each [B, C, h, w]. attention_mask: [B, L], real tokens first; None: all real.
        num_tokens: the native model's count of real tokens; this model needs none.
        """
        return WrapperExecutor.new_class_executor(
            self._forward, self, get_all_wrappers(WrappersMP.DIFFUSION_MODEL, transformer_options)
        ).execute(
            x, timesteps, context, num_tokens, ref_latents=ref_latents, attention_mask=attention_mask,
            transformer_options=transformer_options, **kwargs,
        )

    def _forward(
        self, x, timesteps, context, num_tokens=None, ref_latents=None, attention_mask=None,
        transformer_options={}, **kwargs,
    ):
        height, width = x.shape[-2:]
        latents = self._whole_patches(x)
        references = None
        if ref_latents:
            ref_latents = [self._whole_patches(latent) for latent in ref_latents]
            references = [[latent[i] for latent in ref_latents] for i in range(len(x))]
        compiled = transformer_options.get(COMPILED_KEY)
        precision = precision_for(latents.dtype, host_attention(transformer_options), compiled)
        state = None
        # A compiled graph must not depend on what a run happens to remember.
        if RUN_KEY in transformer_options and not torch.compiler.is_compiling():
            state = transformer_options[RUN_KEY].evaluation(context, attention_mask, transformer_options)
        joint = self.refine(
            latents, 1.0 - timesteps, context, attention_mask, references, precision=precision, state=state
        )
        if has_replaced_blocks(transformer_options):
            tokens = self._run_replaced_layers(joint, precision, transformer_options)
            if state is not None:
                state.count("full", len(self.layers), True)
        else:
            tokens = self.run_layers(joint, precision, state)
        return -self.project_out(tokens, joint, precision)[..., :height, :width]

    def _whole_patches(self, latents: torch.Tensor) -> torch.Tensor:
        return pad_to_patch_size(latents, (self.config.patch_size, self.config.patch_size))

    def _run_replaced_layers(
        self, joint: JointSequence, precision: Precision, transformer_options: dict[str, Any]
    ) -> torch.Tensor:
        """The main layers with those exchanged that a node has patched, as ComfyUI's single-stream models do it."""
        replaced = transformer_options["patches_replace"]["dit"]
        stack = LayerStack(self.layers, joint, precision)
        hidden = joint.hidden
        for index in range(len(stack)):
            patch = replaced.get(("single_block", index)) or replaced.get(("double_block", index))
            if patch is None:
                hidden = stack.layer(index, hidden)
                continue
            arguments = {
                "img": hidden,
                "vec": joint.temb,
                "pe": joint.rotation,
                "attn_mask": joint.mask,
                "transformer_options": transformer_options,
            }
            original = lambda args, index=index: {"img": stack.layer(index, args["img"])}
            hidden = patch(arguments, {"original_block": original})["img"]
        return joint.image(hidden)


def host_attention(transformer_options: dict[str, Any]) -> Attention:
    """The attention that the user chose for ComfyUI (PyTorch, sage, flash, ...), overrides by other nodes included."""
    additive: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}

    def attend(q, k, v, mask):
        if mask is not None:
            # Not every backend reads boolean masks. One forward pass uses few masks, many times.
            if id(mask) not in additive:
                lowest = torch.finfo(q.dtype).min
                additive[id(mask)] = mask, torch.zeros_like(mask, dtype=q.dtype).masked_fill_(~mask, lowest)
            mask = additive[id(mask)][1]
        grouped = {"enable_gqa": True} if k.shape[1] != q.shape[1] else {}
        return optimized_attention(
            q, k, v, q.shape[1], mask=mask, skip_reshape=True, skip_output_reshape=True,
            transformer_options=transformer_options, **grouped,
        )

    return attend
