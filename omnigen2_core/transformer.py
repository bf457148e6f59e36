"""The OmniGen2 diffusion transformer.

One forward is three steps with seams between them: `refine` (embed and refine text, references and noisy image,
join them), `run_layers` (the joint layers), `project_out` (the velocity). A cache enters between them through the
optional `state`; see `acceleration/protocol.py`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import NamedTuple

import torch
from torch import Tensor, nn

from .acceleration.protocol import Evaluation, made_once
from .compiled import CompiledParts
from .errors import CheckpointError, PromptError, ReferenceImageError, SizeError
from .joint import JointSequence, LayerStack, pad_samples, padding_mask
from .layers import ModulatedBlock, OutputLayer, PlainBlock, TimeCaptionEmbedding
from .precision import Attention, Precision, precision_for
from .rope import Grid, Rotation, SampleLayout, batch_rotation, parts

MAX_REFERENCES = 5
References = Sequence[Sequence[Tensor] | None] | None


@dataclass(frozen=True)
class OmniGen2Config:
    """The transformer's shape, as `transformer/config.json` names it. Defaults: the published model."""

    patch_size: int = 2
    in_channels: int = 16
    out_channels: int | None = None
    hidden_size: int = 2520
    num_layers: int = 32
    num_refiner_layers: int = 2
    num_attention_heads: int = 21
    num_kv_heads: int = 7
    multiple_of: int = 256
    ffn_dim_multiplier: float | None = None
    norm_eps: float = 1e-5
    axes_dim_rope: tuple[int, ...] = (40, 40, 40)
    text_feat_dim: int = 2048
    timestep_scale: float = 1000.0

    def __post_init__(self):
        object.__setattr__(self, "axes_dim_rope", tuple(self.axes_dim_rope))
        heads, kv_heads = self.num_attention_heads, self.num_kv_heads
        if heads % kv_heads:
            raise CheckpointError(
                f"num_attention_heads {heads} is not a multiple of num_kv_heads {kv_heads}; check the config.json."
            )
        head = self.hidden_size // heads
        if self.hidden_size % heads or head != sum(self.axes_dim_rope) or any(d % 2 for d in self.axes_dim_rope):
            raise CheckpointError(
                f"hidden_size {self.hidden_size} over {heads} heads must equal the sum of axes_dim_rope "
                f"{list(self.axes_dim_rope)} (three even numbers); check the config.json."
            )

    @classmethod
    def from_dict(cls, values: Mapping) -> "OmniGen2Config":
        """From a config.json's content; keys this model has no use for are ignored."""
        known = {f.name for f in fields(cls)}
        return cls(**{key: value for key, value in values.items() if key in known})

    @property
    def velocity_channels(self) -> int:
        return self.out_channels or self.in_channels

    @property
    def time_width(self) -> int:
        return min(self.hidden_size, 1024)

    @property
    def feed_forward_size(self) -> int:
        inner = 4 * self.hidden_size
        if self.ffn_dim_multiplier is not None:
            inner = int(self.ffn_dim_multiplier * inner)
        return self.multiple_of * -(-inner // self.multiple_of)


class OmniGen2Transformer(nn.Module):
    """OmniGen2's transformer under its published parameter names.

    operations: namespace with Linear, RMSNorm and LayerNorm (torch.nn, or a host's own).
    dtype, device: of the parameters; device "meta" builds names and shapes only.
    """

    def __init__(self, config: OmniGen2Config, *, operations=nn, dtype=None, device=None):
        super().__init__()
        self.config = config
        c, kw = config, {"operations": operations, "dtype": dtype, "device": device}
        plain_kw = {"dtype": dtype, "device": device}
        shape = (c.hidden_size, c.num_attention_heads, c.num_kv_heads, c.feed_forward_size)

        def modulated(count: int) -> nn.ModuleList:
            return nn.ModuleList(ModulatedBlock(*shape, c.time_width, c.norm_eps, **kw) for _ in range(count))

        patch = c.patch_size**2
        self.x_embedder = operations.Linear(patch * c.in_channels, c.hidden_size, **plain_kw)
        self.ref_image_patch_embedder = operations.Linear(patch * c.in_channels, c.hidden_size, **plain_kw)
        self.image_index_embedding = nn.Parameter(torch.zeros(MAX_REFERENCES, c.hidden_size, **plain_kw))
        self.time_caption_embed = TimeCaptionEmbedding(
            c.hidden_size, c.time_width, c.text_feat_dim, c.timestep_scale, c.norm_eps, **kw
        )
        self.context_refiner = nn.ModuleList(PlainBlock(*shape, c.norm_eps, **kw) for _ in range(c.num_refiner_layers))
        self.noise_refiner = modulated(c.num_refiner_layers)
        self.ref_image_refiner = modulated(c.num_refiner_layers)
        self.layers = modulated(c.num_layers)
        self.norm_out = OutputLayer(c.hidden_size, c.time_width, patch * c.velocity_channels, **kw)

    def forward(
        self,
        latents: Tensor | Sequence[Tensor],
        timestep: Tensor,
        text: Tensor,
        text_mask: Tensor | None = None,
        references: References = None,
        *,
        text_lengths: Sequence[int] | None = None,
        attention: Attention | None = None,
        compiled: CompiledParts | None = None,
        state: Evaluation | None = None,
    ) -> Tensor | list[Tensor]:
        """Predict the velocity, image - noise, in the form and dtype of `latents`; that dtype is the compute dtype.

        latents: [B, C, H, W], or a list of [C, Hi, Wi]; scaled; even sizes.
        timestep: [B], 0 = noise, 1 = image.
        text: [B, L, text_feat_dim]; text_mask: [B, L], 1 = real, real tokens first. None: all are real.
        references: per sample None or up to five scaled latents [C, h, w]; None: no sample has any.
        text_lengths: the mask's row sums where the caller has them as integers (reading a mask waits for the device).
        attention: see `precision.default_attention`, the default.
        compiled: computes the parts of blocks between attentions; None runs the code as it stands.
        state: this evaluation's place in a sampling run, with what the run remembers; None computes everything.

        Raises SizeError for odd sizes, ReferenceImageError for a sixth reference, PromptError for a text or mask that
        does not fit the batch.
        """
        dtype = latents.dtype if isinstance(latents, Tensor) else latents[0].dtype
        precision = precision_for(dtype, attention, compiled)
        joint = self.refine(
            latents, timestep, text, text_mask, references, text_lengths=text_lengths, precision=precision, state=state
        )
        return self.project_out(self.run_layers(joint, precision, state), joint, precision)

    def refine(
        self,
        latents: Tensor | Sequence[Tensor],
        timestep: Tensor,
        text: Tensor,
        text_mask: Tensor | None = None,
        references: References = None,
        *,
        text_lengths: Sequence[int] | None = None,
        precision: Precision,
        state: Evaluation | None = None,
    ) -> JointSequence:
        """Embed and refine text, references and noisy image, each alone, and join them. Arguments as in `forward`.

        Where the state keeps what the layers need of text and references, the image is alone.
        """
        count = len(latents)
        per_sample = _references_per_sample(references, count)
        lengths = _text_lengths(text, text_mask, text_lengths, count)
        grids = [self._grid(image) for image in latents]
        layouts = tuple(
            SampleLayout(length, tuple(self._grid(ref) for ref in refs), grid)
            for length, refs, grid in zip(lengths, per_sample, grids, strict=True)
        )
        device = latents[0].device

        def make_table() -> Rotation:
            return batch_rotation(layouts, self.config.axes_dim_rope, device)

        def make_text() -> Tensor:
            return self._refine_text(text, lengths, table, precision)

        table = make_table() if state is None else state.remember(("rotation", layouts, device), make_table)
        stacked = isinstance(latents, Tensor)
        # An image alone does not see where in the joint sequence it lies: its own tokens' distances are all it has.
        shared = _memory(state, "image", [timestep, *([latents] if stacked else latents)])
        temb = made_once(shared, "time", lambda: self.time_caption_embed.time(timestep, precision))
        modulations = made_once(shared, "modulations", dict)
        images = [_Image(pixels, i, layout.image_start) for i, (pixels, layout) in enumerate(zip(latents, layouts))]
        noise = made_once(
            shared,
            "refined",
            lambda: self._refine_images(self.x_embedder, self.noise_refiner, images, table, temb, precision),
        )
        if state is not None and not state.needs_context(layouts):
            own = parts(table, [(image.sample, image.start) for image in images], len(noise[0]))
            seen = padding_mask([layout.image_start for layout in layouts], device)
            if seen is not None:
                seen = torch.cat((seen, seen.new_ones(count, 1, 1, len(noise[0]))), dim=-1)
            return JointSequence(torch.stack(noise), own, seen, temb, layouts, stacked, False, modulations)

        text_is_known = state is not None and state.text_key is not None
        context = state.remember(("text", state.text_key, device), make_text) if text_is_known else make_text()
        flat = [
            _Image(pixels, i, start, index)
            for i, (refs, layout) in enumerate(zip(per_sample, layouts))
            for index, (pixels, start) in enumerate(zip(refs, layout.reference_starts))
        ]
        refined = self._refine_references(flat, timestep, table, temb, precision, state)
        samples = []
        for i, length in enumerate(lengths):
            own = [tokens for image, tokens in zip(flat, refined) if image.sample == i]
            samples.append(torch.cat((context[i, :length], *own, noise[i])))
        mask = padding_mask([layout.length for layout in layouts], device)
        return JointSequence(pad_samples(samples), table, mask, temb, layouts, stacked, modulations=modulations)

    def run_layers(self, joint: JointSequence, precision: Precision, state: Evaluation | None = None) -> Tensor:
        """The image's tokens [B, n, D] after the main layers, or what the state's cache puts in their place."""
        if state is None:
            return LayerStack(self.layers, joint, precision).run()
        return state.run_layers(LayerStack(self.layers, joint, precision, state.context))

    def project_out(self, tokens: Tensor, joint: JointSequence, precision: Precision) -> Tensor | list[Tensor]:
        """The velocity [B, C, H, W], or a list of [C, Hi, Wi] where the latents were a list, from [B, n, D]."""
        grids = [layout.image for layout in joint.layouts]
        if len(set(grids)) == 1:
            out = self.norm_out(tokens, joint.temb, precision).to(precision.dtype)
            velocity = self._unpatchify(out, grids[0])
            return velocity if joint.stacked else list(velocity)
        velocities = []
        for i, (grid, layout) in enumerate(zip(grids, joint.layouts)):
            own = tokens[i : i + 1, : layout.image_tokens]
            out = self.norm_out(own, joint.temb[i : i + 1], precision).to(precision.dtype)
            velocities.append(self._unpatchify(out, grid)[0])
        return velocities

    def _refine_text(self, text: Tensor, lengths: Sequence[int], table: Rotation, precision: Precision) -> Tensor:
        """[B, L, text_feat_dim] -> [B, longest, D]."""
        if text.shape[2] != self.config.text_feat_dim:
            raise PromptError(
                f"The text features are {text.shape[2]} wide, the model takes {self.config.text_feat_dim}; "
                "the prompt was encoded by another model's text encoder."
            )
        longest = max(lengths)
        text = text[:, :longest]
        mask = padding_mask(lengths, text.device)
        if mask is not None:
            # Not only masked: junk that is infinite or NaN would survive its zero attention weight.
            text = text.masked_fill(~mask[:, 0, 0, :, None], 0)
        x = self.time_caption_embed.caption(text.to(precision.stream), precision)
        own = parts(table, [(lengths.index(longest), 0)], longest)
        for block in self.context_refiner if longest else ():
            x = block(x, own, mask, precision)
        return x

    def _refine_references(
        self,
        references: Sequence["_Image"],
        timestep: Tensor,
        table: Rotation,
        temb: Tensor,
        precision: Precision,
        state: Evaluation | None,
    ) -> list[Tensor]:
        """Tokens [n, D] for each reference, in order; the branches of a step that have references have them in common."""
        if not references:
            return []

        def refine() -> list[Tensor]:
            embedder, blocks = self.ref_image_patch_embedder, self.ref_image_refiner
            return self._refine_images(embedder, blocks, references, table, temb, precision)

        shared = _memory(state, "references", [timestep, *(image.pixels for image in references)])
        return made_once(shared, tuple((image.sample, image.index) for image in references), refine)

    def _refine_images(
        self,
        embedder: nn.Module,
        blocks: nn.ModuleList,
        images: Sequence["_Image"],
        table: Rotation,
        temb: Tensor,
        precision: Precision,
    ) -> list[Tensor]:
        """Embed and refine each image by itself: tokens [n, D] for each, in order. Images of one size share a batch."""
        refined: list[Tensor] = [None] * len(images)
        for size in dict.fromkeys(image.pixels.shape for image in images):
            places = [place for place, image in enumerate(images) if image.pixels.shape == size]
            group = [images[place] for place in places]
            patches = self._patchify(torch.stack([image.pixels for image in group]).to(precision.dtype))
            x = precision.affine(patches.to(precision.stream), embedder)
            if group[0].index is not None:
                index_embedding = self.image_index_embedding.to(device=x.device, dtype=x.dtype)
                x = x + torch.stack([index_embedding[image.index] for image in group]).unsqueeze(1)
            own = parts(table, [(image.sample, image.start) for image in group], x.shape[1])
            own_temb = torch.stack([temb[image.sample] for image in group])
            for block in blocks:
                x = block(x, block.modulation(own_temb, precision), own, None, precision)
            for place, tokens in zip(places, x, strict=True):
                refined[place] = tokens
        return refined

    def _grid(self, image: Tensor) -> Grid:
        size = self.config.patch_size
        channels, height, width = image.shape
        if channels != self.config.in_channels:
            raise SizeError(
                f"A latent has {channels} channels, the model takes {self.config.in_channels}; "
                "it comes from another model's VAE or empty-latent node."
            )
        if height % size or width % size or not height or not width:
            raise SizeError(
                f"A latent of {height}x{width} (rows x columns) cannot be cut into {size}x{size} patches; "
                f"make both sides multiples of {size}, which is {8 * size} pixels."
            )
        return height // size, width // size

    def _patchify(self, images: Tensor) -> Tensor:
        """[G, C, H, W] -> [G, H/p * W/p, p * p * C], channels innermost."""
        size = self.config.patch_size
        images = images.unflatten(3, (-1, size)).unflatten(2, (-1, size))
        return images.permute(0, 2, 4, 3, 5, 1).flatten(3).flatten(1, 2)

    def _unpatchify(self, patches: Tensor, grid: Grid) -> Tensor:
        size = self.config.patch_size
        patches = patches.unflatten(2, (size, size, -1)).unflatten(1, grid)
        return patches.permute(0, 5, 1, 3, 2, 4).flatten(4).flatten(2, 3)


class _Image(NamedTuple):
    """A latent to refine: its sample, where its tokens start in the joint sequence, its place among the references."""

    pixels: Tensor
    sample: int
    start: int
    index: int | None = None


def _memory(state: Evaluation | None, name: str, inputs: Sequence[Tensor]) -> dict:
    return {} if state is None else state.memory_of(name, inputs)


def _references_per_sample(references: References, count: int) -> list[list[Tensor]]:
    if references is None:
        return [[] for _ in range(count)]
    if len(references) != count:
        raise ReferenceImageError(
            f"Got references for {len(references)} samples and latents for {count}; give one list (or None) a sample."
        )
    per_sample = [list(refs) if refs is not None else [] for refs in references]
    most = max(map(len, per_sample))
    if most > MAX_REFERENCES:
        raise ReferenceImageError(
            f"Got {most} reference images; the model takes at most {MAX_REFERENCES}. Remove {most - MAX_REFERENCES}."
        )
    return per_sample


def _text_lengths(
    text: Tensor, mask: Tensor | None, lengths: Sequence[int] | None, count: int
) -> tuple[int, ...]:
    if text.shape[0] != count:
        raise PromptError(f"Got text for {text.shape[0]} samples and latents for {count}; give one text a sample.")
    if lengths is not None:
        return tuple(lengths)
    if mask is None:
        return (text.shape[1],) * count
    if mask.shape != text.shape[:2]:
        raise PromptError(
            f"The text mask is {list(mask.shape)} and the text {list(text.shape[:2])} (samples, tokens); "
            "they must agree. A concatenated prompt needs a concatenated mask."
        )
    return tuple(int(n) for n in mask.sum(dim=1).tolist())
