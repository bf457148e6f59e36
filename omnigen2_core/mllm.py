"""Qwen2.5-VL, the model's reader: prompts and pictures to hidden states, and greedy or sampled writing.

The network is transformers' own (4.50 up to 5.x): its text model and vision tower are built on the meta device and
their leaf layers are exchanged for those of the `operations` namespace, so that a host can offload or quantise them.
Parameters keep transformers 4.51's names (`model.*`, `visual.*`) under every version of transformers.

Shapes: ids and masks [B, L] with 1 = real in the mask; pixel values [patches, channels * time * y * x]; grids
[images, 3] as (time, rows, columns) in patches; hidden states [B, L, D].
"""

from __future__ import annotations

from typing import Any, Callable, Collection, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .errors import CheckpointError
from .inference import plain_weight
from .mllm_config import MLLMConfig
from .mrope import rope_positions
from .prefill import read_prompts
from .quantised import unpack_elsewhere

VISION_MISSING = (
    "This encoder file has no vision part (no visual.* weights), so it cannot look at images. "
    "Use the mllm folder of OmniGen2, or a Qwen2.5-VL-3B file that includes visual.*."
)


class _PatchEmbedding(nn.Module):
    """Patches to vectors. Transformers' own asks the weight for the compute dtype, which is wrong for fp8 storage."""

    def __init__(self, proj: nn.Conv3d):
        super().__init__()
        self.proj = proj
        self.patch_shape = (proj.in_channels, *proj.kernel_size)

    def forward(self, patches: Tensor) -> Tensor:
        return self.proj(patches.reshape(-1, *self.patch_shape)).flatten(1)


def _exchange(layer: nn.Module, operations: Any, factory: dict) -> nn.Module | None:
    """The `operations` layer of the same kind and size as `layer`, or None when `layer` is not a leaf with weights."""
    if isinstance(layer, nn.Linear):
        return operations.Linear(layer.in_features, layer.out_features, bias=layer.bias is not None, **factory)
    if isinstance(layer, nn.Embedding):
        return operations.Embedding(layer.num_embeddings, layer.embedding_dim, **factory)
    if isinstance(layer, nn.Conv3d):
        has_bias = layer.bias is not None
        return operations.Conv3d(
            layer.in_channels, layer.out_channels, layer.kernel_size, stride=layer.stride, bias=has_bias, **factory
        )
    if type(layer).__name__.endswith("RMSNorm"):
        return operations.RMSNorm(layer.weight.shape[0], eps=layer.variance_epsilon, **factory)
    return None


def _exchange_leaves(root: nn.Module, operations: Any, factory: dict) -> None:
    for parent in list(root.modules()):
        for name, child in list(parent.named_children()):
            exchanged = _exchange(child, operations, factory)
            if exchanged is not None:
                setattr(parent, name, exchanged)
            elif next(child.parameters(recurse=False), None) is not None:
                raise CheckpointError(
                    f"This version of transformers builds Qwen2.5-VL with a {type(child).__name__} layer, which is not "
                    "known here. Install a transformers release from 4.50 to 5.x."
                )


def _frequencies(width: int, theta: float) -> Tensor:
    return 1.0 / theta ** (torch.arange(0, width, 2, dtype=torch.float32, device="cpu") / width)


class Qwen2_5_VL(nn.Module):
    """The text model (`model`), the vision tower (`visual`, None when absent) and `lm_head` (None when tied).

    `compute_dtype` is the dtype of activations; what the weights are stored in does not decide it.
    """

    def __init__(
        self,
        config: MLLMConfig,
        model: nn.Module,
        visual: nn.Module | None,
        lm_head: nn.Module | None,
        compute_dtype: torch.dtype,
    ):
        super().__init__()
        self.config = config
        self.model = model
        self.visual = visual
        self.lm_head = lm_head
        self.compute_dtype = compute_dtype
        self._frequencies_device: torch.device | None = None
        self._place_frequencies(torch.device("cpu"))

    @property
    def has_vision(self) -> bool:
        """Whether images can be given."""
        return self.visual is not None

    def _place_frequencies(self, device: torch.device) -> None:
        """Puts the rotary frequencies on `device` in fp32.

        They are plain attributes, not buffers: a cast of the module would round them, a checkpoint does not hold
        them, and a host that moves only layers with weights would forget them.
        """
        if self._frequencies_device == device:
            return
        config = self.config
        parts = [(self.model, _frequencies(config.head_dim, config.text["rope_theta"]))]
        if self.visual is not None:
            parts.append((self.visual, _frequencies(config.vision_head_dim // 2, 10000.0)))
        for part, frequencies in parts:
            frequencies = frequencies.to(device)
            for module in part.modules():
                for name in ("inv_freq", "original_inv_freq"):
                    if hasattr(module, name):
                        module._buffers.pop(name, None)
                        module.__dict__[name] = frequencies
        self._frequencies_device = device

    def rope_positions(self, ids: Tensor, mask: Tensor, grid: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """`rope_positions` with this model's image token and merge size."""
        config = self.config
        return rope_positions(ids, mask, grid, image_token_id=config.image_token_id, merge_size=config.merge_size)

    def embed(self, ids: Tensor) -> Tensor:
        """Token ids [B, L] to embeddings [B, L, D] in the compute dtype."""
        table = self.model.embed_tokens
        # ComfyUI's embeddings that cast on use are told the dtype; fp8 rows could not be looked up otherwise.
        options = {"out_dtype": self.compute_dtype} if hasattr(table, "comfy_cast_weights") else {}
        return table(ids, **options).to(self.compute_dtype)

    def look(self, pixel_values: Tensor, grid: Tensor) -> Tensor:
        """Visual tokens [sum of rows * columns / merge_size^2, D] of preprocessed images.

        Raises CheckpointError without vision.
        """
        if self.visual is None:
            raise CheckpointError(VISION_MISSING)
        self._place_frequencies(pixel_values.device)
        output = self.visual(pixel_values.to(self.compute_dtype), grid.to(pixel_values.device))
        return output if isinstance(output, Tensor) else output.pooler_output

    def forward(
        self,
        ids: Tensor,
        mask: Tensor,
        pixel_values: Tensor | None = None,
        grid: Tensor | None = None,
        *,
        visual: Tensor | None = None,
        positions: Tensor | None = None,
        cache: Any = None,
    ) -> Tensor:
        """Last hidden states [B, L, D] after the final norm.

        `visual` is what `look` gives for the images of `grid`, in place of their pixel values.
        `mask` covers what `cache` already holds as well as `ids`; `positions` are [3, B, L] and computed when absent,
        which needs the whole prompt in `ids`. Raises PromptError when image tokens and images do not match.
        """
        self._place_frequencies(ids.device)
        if positions is None:
            positions, _ = self.rope_positions(ids, mask, grid)
        embeddings = self.embed(ids)
        if pixel_values is not None:
            visual = self.look(pixel_values, grid)
        if visual is not None:
            places = (ids == self.config.image_token_id).unsqueeze(-1)
            embeddings = embeddings.masked_scatter(places, visual.to(embeddings.dtype))
        output = self.model(
            inputs_embeds=embeddings,
            attention_mask=mask,
            position_ids=positions.to(ids.device),
            past_key_values=cache,
            use_cache=cache is not None,
        )
        return output.last_hidden_state

    def head_weight(self, device: torch.device) -> Tensor:
        """The output projection [vocabulary, D] of a tied model in the compute dtype on `device`.

        It is the table of embeddings itself where that is so and nothing changes it on use, else a copy.
        """
        weight = plain_weight(self.model.embed_tokens, device, self.compute_dtype)
        if weight is not None:
            return weight
        return self.embed(torch.arange(self.config.text["vocab_size"], device=device))

    def logits(self, hidden: Tensor, head_weight: Tensor | None = None) -> Tensor:
        """Scores [..., vocabulary] of the next token. `head_weight` saves fetching it again within one generation."""
        if self.lm_head is not None:
            return self.lm_head(hidden)
        return F.linear(hidden, self.head_weight(hidden.device) if head_weight is None else head_weight)


def build_mllm(
    config: Mapping[str, Any],
    *,
    operations: Any = nn,
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = "meta",
    compute_dtype: torch.dtype | None = None,
    vision: bool = True,
) -> Qwen2_5_VL:
    """Builds the model of a Qwen2.5-VL `config.json` (the flat form of 4.51 or the nested one of later releases).

    `dtype` is the storage dtype of new parameters. `compute_dtype` defaults to it where it is fp32 or bf16, else to
    bf16: the model overflows in fp16. `vision=False` leaves the vision tower out. Raises CheckpointError for a config
    that is not Qwen2.5-VL's.
    """
    from transformers.models.qwen2_5_vl import configuration_qwen2_5_vl as configs
    from transformers.models.qwen2_5_vl import modeling_qwen2_5_vl as models

    parsed = MLLMConfig.from_dict(config)
    dtype = dtype or torch.get_default_dtype()
    if compute_dtype is None:
        compute_dtype = dtype if dtype in (torch.float32, torch.bfloat16) else torch.bfloat16
    vision_config = configs.Qwen2_5_VLVisionConfig(**parsed.vision)
    if hasattr(models, "Qwen2_5_VLTextModel"):
        text_class, text_config = models.Qwen2_5_VLTextModel, configs.Qwen2_5_VLTextConfig(**parsed.text)
    else:
        text_class = models.Qwen2_5_VLModel
        text_config = configs.Qwen2_5_VLConfig(**parsed.text, vision_config=parsed.vision)
    for part in (text_config, vision_config):
        part._attn_implementation = "sdpa"
        part._attn_implementation_autoset = True
    with torch.device("meta"):
        text = text_class(text_config)
        visual = models.Qwen2_5_VisionTransformerPretrainedModel(vision_config) if vision else None
    factory = {"dtype": dtype, "device": device}
    _exchange_leaves(text, operations, factory)
    if visual is not None:
        _exchange_leaves(visual, operations, factory)
        visual.patch_embed = _PatchEmbedding(visual.patch_embed.proj)
    lm_head = None
    if not parsed.tied:
        lm_head = operations.Linear(parsed.text["hidden_size"], parsed.text["vocab_size"], bias=False, **factory)
    return Qwen2_5_VL(parsed, text, visual, lm_head, compute_dtype).eval()


def to_early_name(name: str) -> str:
    """A parameter name of any transformers release in the form of 4.51, which this module uses."""
    for later, early in (("model.visual.", "visual."), ("model.language_model.", "model."), ("language_model.", "")):
        if name.startswith(later):
            return early + name[len(later) :]
    return name


def to_later_name(name: str) -> str:
    """A parameter name of transformers 4.51 in the form of 4.52 and later."""
    if name.startswith("visual."):
        return f"model.{name}"
    if name.startswith("model."):
        return "model.language_model." + name[len("model.") :]
    return name


def parameter_shapes(model: Qwen2_5_VL, *, later_names: bool = False) -> dict[str, tuple[int, ...]]:
    """Name and shape of everything a checkpoint of `model` may hold, the tied output projection included."""
    shapes = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    shapes.setdefault("lm_head.weight", shapes["model.embed_tokens.weight"])
    return {to_later_name(name): shape for name, shape in shapes.items()} if later_names else shapes


def load_mllm_state_dict(
    model: Qwen2_5_VL, state_dict: Mapping[str, Tensor], *, dtype: torch.dtype | None = None, assign: bool = True
) -> None:
    """Loads weights with the names of any transformers release; the tensors are taken over, not copied, with `assign`.

    Layers of `packed_operations` take packed weights; any other parameter takes the numbers of one.
    `dtype` casts floating-point weights first, which layers that do not cast on use (torch.nn's) need when the file
    is stored in another dtype. Without `visual.*` the model loses its vision tower. Raises CheckpointError for
    missing weights or wrong shapes.
    """
    weights = {to_early_name(name): value for name, value in state_dict.items()}
    if model.visual is not None and not any(name.startswith("visual.") for name in weights):
        model.visual = None
    if model.visual is None:
        weights = {name: value for name, value in weights.items() if not name.startswith("visual.")}
    if model.lm_head is None:
        weights.pop("lm_head.weight", None)
    if dtype is not None:
        weights = {name: value.to(dtype) if value.is_floating_point() else value for name, value in weights.items()}
    try:
        missing, _ = model.load_state_dict(unpack_elsewhere(model, weights), strict=False, assign=assign)
    except RuntimeError as error:
        raise CheckpointError(
            f"The encoder file does not fit its config: {error}. Use the weights and the config of one model."
        ) from error
    if missing:
        raise CheckpointError(
            f"The encoder file lacks {len(missing)} weights of Qwen2.5-VL, among them {missing[0]}. "
            "It is incomplete or belongs to another model; download it again from the OmniGen2 repository."
        )


def encode_text(model: Qwen2_5_VL, ids: Tensor, mask: Tensor) -> Tensor:
    """Last hidden states [B, L, D] of right-padded prompts without images; padded rows are zero."""
    hidden = model(ids, mask)
    return hidden * mask.unsqueeze(-1).to(hidden.dtype)


def encode_with_images(
    model: Qwen2_5_VL,
    ids: Tensor,
    mask: Tensor,
    pixel_values: Tensor | None,
    grid: Tensor,
    *,
    visual: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Hidden states of the text tokens of prompts with images, as the diffusion transformer reads them.

    The model sees the images, then the rows of image tokens are dropped and the others packed left: hidden [B, K, D]
    with zeros as padding, and mask [B, K]. `visual` as in `Qwen2_5_VL.forward`. Raises CheckpointError without vision,
    PromptError for a wrong prompt.
    """
    hidden = model(ids, mask, pixel_values, grid, visual=visual)
    keep = mask.bool() & (ids != model.config.image_token_id)
    rows = [sample[kept] for sample, kept in zip(hidden, keep)]
    packed = nn.utils.rnn.pad_sequence(rows, batch_first=True)
    lengths = keep.sum(dim=1, keepdim=True)
    return packed, (torch.arange(packed.shape[1], device=ids.device) < lengths).to(mask.dtype)


@torch.no_grad()
def generate_tokens(
    model: Qwen2_5_VL,
    ids: Tensor,
    mask: Tensor,
    pixel_values: Tensor | None = None,
    grid: Tensor | None = None,
    *,
    visual: Tensor | None = None,
    max_new_tokens: int,
    stop_ids: Collection[int],
    suppress_ids: Collection[int] = (),
    on_token: Callable[[list[list[int]]], None] | None = None,
    sample: Callable[[Tensor, Tensor], Tensor] | None = None,
) -> list[list[int]]:
    """Writes after prompts padded on either side; returns each one's new tokens, with the stop token that ended it.

    `sample` chooses tokens [B] from fp32 logits [B, vocabulary] and all ids so far [B, L]; without it the likeliest is
    taken. `visual` as in `Qwen2_5_VL.forward`. `suppress_ids` are never chosen. `on_token` gets the tokens so far after every step and may raise to cancel.
    """
    from transformers.cache_utils import DynamicCache

    cache = hidden = head = None
    written: list[list[int]] = [[] for _ in range(len(ids))]
    try:
        cache = DynamicCache()
        if pixel_values is not None:
            visual = model.look(pixel_values, grid)
        hidden, mask, following = read_prompts(model, ids, mask, grid, visual, cache)
        head = model.head_weight(ids.device) if model.lm_head is None else None
        for step in range(max_new_tokens):
            scores = model.logits(hidden, head).float()
            if suppress_ids:
                scores[:, list(suppress_ids)] = float("-inf")
            chosen = scores.argmax(dim=-1) if sample is None else sample(scores, ids)
            for row, token in zip(written, chosen.tolist()):
                if not row or row[-1] not in stop_ids:
                    row.append(token)
            if on_token is not None:
                on_token(written)
            if step == max_new_tokens - 1 or all(row[-1] in stop_ids for row in written):
                break
            ids = torch.cat([ids, chosen.unsqueeze(1).to(ids.dtype)], dim=1)
            mask = torch.cat([mask, mask.new_ones(len(mask), 1)], dim=1)
            positions = (following + step).expand(3, -1).unsqueeze(-1)
            hidden = model(ids[:, -1:], mask, positions=positions, cache=cache)[:, -1]
    finally:
        # The traceback of an exception keeps this frame; what it names would outlive a cancelled run.
        cache = hidden = head = None
    return written
