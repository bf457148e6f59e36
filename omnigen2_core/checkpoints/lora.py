"""LoRA files under any naming in use, brought to module names of the transformer.

Names seen in the wild, for the module `layers.0.attn.to_q`:
    transformer.layers.0.attn.to_q.lora_A.weight                  the reference's trainer; its RL release (EditScore)
    layers.0.attn.to_q.lora_A.default.weight                      UMO (a bare PEFT state dict with the adapter's name)
    diffusion_model.layers.0.attn.to_q.lora_A.weight              UMO converted for ComfyUI, ai-toolkit
    base_model.model.layers.0.attn.to_q.lora_A.weight             PEFT's own save_pretrained
    lora_unet_layers_0_attn_to_q.lora_down.weight + .alpha        kohya-style trainers
The weight becomes W + strength * (alpha / rank) * up @ down; a file without alpha means alpha = rank.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from ..errors import LoRAError
from ..quantised import PackedTensor
from .header import read_header
from .identify import FileKind, classify
from .tensors import read_tensors

_STACKS = "context_refiner|noise_refiner|ref_image_refiner|layers"
_IN_BLOCK = (
    "attn.to_q",
    "attn.to_k",
    "attn.to_v",
    "attn.to_out.0",
    "feed_forward.linear_1",
    "feed_forward.linear_2",
    "feed_forward.linear_3",
    "norm1.linear",
)
_ALONE = (
    "x_embedder",
    "ref_image_patch_embedder",
    "time_caption_embed.timestep_embedder.linear_1",
    "time_caption_embed.timestep_embedder.linear_2",
    "time_caption_embed.caption_embedder.1",
    "norm_out.linear_1",
    "norm_out.linear_2",
)
_FLAT = {name.replace(".", "_"): name for name in (*_IN_BLOCK, *_ALONE)}
_MODULE = re.compile(
    rf"(?:(?:{_STACKS})\.\d+\.(?:{'|'.join(map(re.escape, _IN_BLOCK))}))|(?:{'|'.join(map(re.escape, _ALONE))})"
)
_FLAT_MODULE = re.compile(rf"(?:lora_unet|lora_transformer|lycoris)_+(?:({_STACKS})_(\d+)_)?({'|'.join(_FLAT)})")
_PREFIX = re.compile(
    r"(?:base_model\.model\.|model\.diffusion_model\.|diffusion_model\.|transformer\.|unet\.|module\.|model\.)*"
)


def _half(letter: str, word: str) -> re.Pattern:
    """The endings under which one half of a LoRA is saved; PEFT may put the adapter's name before `.weight`."""
    return re.compile(
        rf"\.lora_{letter}(?:\.[^.]+)?\.weight$|\.lora_{letter}$|\.lora_{word}(?:\.[^.]+)?\.weight$"
        rf"|[._]lora\.{word}\.weight$|\.lora_linear_layer\.{word}\.weight$"
    )


_ENDINGS = ((_half("A", "down"), "down"), (_half("B", "up"), "up"), (re.compile(r"\.alpha$"), "alpha"))

_FOREIGN = (
    (r"double_stream_layers[._]", "Boogu-Image"),
    (r"add_q_proj|img_mlp|txt_mlp", "Qwen-Image"),
    (r"single_transformer_blocks|double_blocks|single_blocks", "FLUX"),
    (r"joint_blocks|context_block", "Stable Diffusion 3"),
    (r"attention\.qkv|attention_qkv|feed_forward[._]w[123]", "Lumina 2"),
    (r"(self|cross)_attn[._][qkvo]\.", "Wan"),
    (r"down_blocks|up_blocks|input_blocks|output_blocks", "Stable Diffusion"),
    (r"transformer_blocks", "another transformer"),
)
_ENCODER_LORA = re.compile(r"^(text_encoders?|lora_te|te\d?|text_model)[._]|self_attn\.[qkvo]_proj")
_OTHER_METHOD = re.compile(r"\.(hada_w|lokr_w|oft_|boft_|a1\.weight)")
_DORA = re.compile(r"\.(dora_scale|lora_magnitude_vector)")
_CORE_NODE = "core's LoraLoaderModelOnly"


@dataclass(frozen=True)
class LoRAWeights:
    """One module's change. down [rank, in], up [out, rank]; alpha None means alpha = rank."""

    down: Tensor
    up: Tensor
    alpha: float | None = None

    @property
    def scale(self) -> float:
        """alpha / rank."""
        return 1.0 if self.alpha is None else self.alpha / self.down.shape[0]

    def difference(self) -> Tensor:
        """The change to the weight at strength 1, [out, in] in fp32."""
        return self.scale * (self.up.float() @ self.down.float())


@dataclass(frozen=True)
class LoRA:
    """A LoRA by module name of the transformer; `unmatched` are the file's keys that belong to no module."""

    modules: dict[str, LoRAWeights]
    unmatched: tuple[str, ...] = ()


def load_lora(path: str | Path, shapes: Mapping[str, tuple[int, ...]] | None = None) -> LoRA:
    """Read the LoRA at `path`. `shapes`: see `normalise_lora`.

    PEFT's settings are heeded, from the file's metadata or from the adapter_config.json beside an
    adapter_model.safetensors.

    Raises `LoRAError` (or `CheckpointError` for an unreadable file) in one sentence.
    """
    path = Path(path)
    header = read_header(path)
    info = classify(header, path)
    if info.kind in (FileKind.DIT, FileKind.ENCODER, FileKind.VAE):
        raise LoRAError(
            f"{path.name} is {info.what} itself, not a LoRA; load it with OmniGen2 Load {_LOADER[info.kind]}"
        )
    if info.kind is FileKind.OTHER:
        raise LoRAError(
            f"{path.name} is {info.what}, not a LoRA; LoRA files have names that end in lora_A/lora_B or "
            "lora_down/lora_up"
        )
    settings = _settings_beside(path)
    if settings is None:
        settings = _settings_in(header.metadata, path.name)
    return normalise_lora(read_tensors(path), shapes=shapes, settings=settings, source=path.name)


_LOADER = {FileKind.DIT: "Diffusion Model", FileKind.ENCODER: "Encoder", FileKind.VAE: "VAE"}


def normalise_lora(
    state: Mapping[str, Tensor],
    *,
    shapes: Mapping[str, tuple[int, ...]] | None = None,
    settings: Mapping | None = None,
    source: str = "this LoRA",
) -> LoRA:
    """Sort the tensors of a LoRA file by module.

    shapes: weight shape [out, in] of each module of the model (`linear_shapes`); with it, a LoRA made for another size
        is refused and modules the model lacks count as unmatched.
    settings: PEFT's adapter settings; what they say of alpha holds for modules without an alpha key.
    Raises `LoRAError` if nothing matches, if a module lacks its other half, or if the file is no plain LoRA.
    """
    found: dict[str, dict[str, Tensor]] = {}
    unmatched = []
    for key, tensor in state.items():
        module, role = _parse(key)
        if module is None or (shapes is not None and module not in shapes):
            unmatched.append(key)
        else:
            found.setdefault(module, {})[role] = tensor
    _refuse_foreign(list(state), found, source)
    modules = {}
    for module, parts in found.items():
        if not {"down", "up"} <= parts.keys():
            lacking = "lora_A (down)" if "down" not in parts else "lora_B (up)"
            raise LoRAError(f"{source} lacks {lacking} of {module}; it is incomplete, download it again")
        modules[module] = _weights(module, parts, settings or {}, source)
        if shapes is not None:
            _check_size(module, modules[module], shapes[module], source)
    return LoRA(modules, tuple(unmatched))


def to_host_names(lora: LoRA) -> dict[str, Tensor]:
    """The LoRA under the names that ComfyUI's core loader maps for every model:
    `diffusion_model.<module>.lora_A.weight`, ..., `.alpha`.
    """
    state = {}
    for module, weights in lora.modules.items():
        state[f"diffusion_model.{module}.lora_A.weight"] = weights.down
        state[f"diffusion_model.{module}.lora_B.weight"] = weights.up
        if weights.alpha is not None:
            state[f"diffusion_model.{module}.alpha"] = torch.tensor(float(weights.alpha))
    return state


def linear_shapes(state: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    """Module name -> weight shape for every two-dimensional `.weight` of a transformer's state dict."""
    return {
        name.removesuffix(".weight"): tuple(t.shape)
        for name, t in state.items()
        if name.endswith(".weight") and t.ndim == 2
    }


@torch.no_grad()
def merge_lora(model: nn.Module, lora: LoRA, strength: float = 1.0) -> None:
    """Add `lora` times `strength` to the weights of `model` (an `OmniGen2Transformer`), in fp32, stored in their dtype.

    Weights are replaced, not written into, so tensors shared with a mapped file stay as they are. Merging the same
    LoRA with the negative strength takes it out again, up to rounding. A packed weight stays as it is kept and gets the
    change each time it is used. Raises `LoRAError` if the model lacks a module or has another size.
    """
    parameters = dict(model.named_parameters())
    for module, weights in lora.modules.items():
        parameter = parameters.get(module + ".weight")
        if parameter is None:
            raise LoRAError(f"the LoRA changes {module}, which this model does not have; it was made for another model")
        _check_size(module, weights, tuple(parameter.shape), "the LoRA")
        if isinstance(parameter, PackedTensor):
            changed = parameter.followed_by(_Addition(weights, strength))
            model.get_submodule(module).weight = nn.Parameter(changed, requires_grad=False)
            continue
        change = weights.difference().to(parameter.device)
        parameter.data = (parameter.data.float() + strength * change).to(parameter.dtype)


@dataclass(frozen=True)
class _Addition:
    """A LoRA's change to the numbers of a packed weight."""

    weights: LoRAWeights
    strength: float

    def __call__(self, numbers: Tensor) -> Tensor:
        down, up = (half.to(numbers.device, torch.float32) for half in (self.weights.down, self.weights.up))
        scale = self.strength * self.weights.scale
        return torch.addmm(numbers.float(), up, down, alpha=scale).to(numbers.dtype)


def _parse(key: str) -> tuple[str | None, str]:
    """The module that a key belongs to (None: no module of this model) and its role."""
    for pattern, role in _ENDINGS:
        match = pattern.search(key)
        if match:
            return _module(key[: match.start()]), role
    return None, ""


def _module(name: str) -> str | None:
    flat = _FLAT_MODULE.fullmatch(name)
    if flat:
        stack, index, rest = flat.groups()
        name = (f"{stack}.{index}." if stack else "") + _FLAT[rest]
    else:
        name = name[_PREFIX.match(name).end() :]
    return name if _MODULE.fullmatch(name) else None


def _weights(module: str, parts: Mapping[str, Tensor], settings: Mapping, source: str) -> LoRAWeights:
    down, up = parts["down"], parts["up"]
    if down.ndim != 2 or up.ndim != 2 or down.shape[0] != up.shape[1]:
        raise LoRAError(
            f"{source} has halves that do not fit at {module} ({list(up.shape)} and {list(down.shape)}); the file is "
            "damaged"
        )
    return LoRAWeights(down, up, float(parts["alpha"]) if "alpha" in parts else _alpha(settings, module, len(down), source))


def _check_size(module: str, weights: LoRAWeights, shape: tuple[int, ...], source: str) -> None:
    made_for = (weights.up.shape[0], weights.down.shape[1])
    if made_for != tuple(shape):
        raise LoRAError(
            f"{source} was made for another model: {module} is {list(made_for)} in it and {list(shape)} here"
            f"{' (Lumina 2 has the same layer names)' if made_for[1] == 2304 else ''}; use it with the model it was "
            f"trained on, through {_CORE_NODE}"
        )


def _refuse_foreign(keys: list[str], found: Mapping, source: str) -> None:
    text = "\n".join(keys)
    if _DORA.search(text):
        raise LoRAError(f"{source} is a DoRA (it has magnitude vectors), not a plain LoRA; load it with {_CORE_NODE}")
    if _OTHER_METHOD.search(text):
        raise LoRAError(f"{source} is a LyCORIS file (LoHa, LoKr, ...), not a plain LoRA; load it with {_CORE_NODE}")
    boogu = "double_stream_layers" in text
    if found and not boogu:
        return
    for pattern, family in _FOREIGN:
        if re.search(pattern, text):
            raise LoRAError(
                f"{source} matches no layer of OmniGen2, it looks like a LoRA for {family}; load it with {_CORE_NODE} "
                "on that model"
            )
    if _ENCODER_LORA.search(text):
        raise LoRAError(
            f"{source} changes only a text encoder, no layer of OmniGen2's transformer; load it with core's "
            "LoraLoader, model and clip connected"
        )
    first = keys[0] if keys else "nothing"
    raise LoRAError(
        f"{source} matches no layer of OmniGen2 (its first key is {first}); check that it was trained on OmniGen2"
    )


def _alpha(settings: Mapping, module: str, rank: int, source: str) -> float | None:
    """What PEFT's settings say of a module's alpha; None if they say nothing.

    `alpha_pattern` names modules by the ends of their names. A rank-stabilised LoRA divides alpha by the root of the
    rank, so its alpha counts that much more.
    """
    named = settings.get("alpha_pattern") or {}
    alpha = next((value for end, value in named.items() if f".{module}".endswith(f".{end}")), settings.get("lora_alpha"))
    if alpha is None:
        return None
    if isinstance(alpha, bool) or not isinstance(alpha, (int, float)):
        raise LoRAError(
            f"{source} has adapter settings that make no sense (alpha of {module} is {alpha!r}); download it again"
        )
    return float(alpha) * (rank**0.5 if settings.get("use_rslora") else 1.0)


def _settings_beside(path: Path) -> dict | None:
    """The adapter_config.json that PEFT saves beside adapter_model.safetensors."""
    config = path.with_name("adapter_config.json")
    if path.name != "adapter_model.safetensors" or not config.is_file():
        return None
    return _parse_settings(config.read_text(encoding="utf-8"), f"adapter_config.json beside {path.name}")


def _settings_in(metadata: Mapping[str, str], source: str) -> dict:
    """The transformer's part of `lora_adapter_metadata`, which newer diffusers write into the file."""
    if "lora_adapter_metadata" not in metadata:
        return {}
    settings = _parse_settings(metadata["lora_adapter_metadata"], f"the adapter metadata of {source}")
    return {key.removeprefix("transformer."): value for key, value in settings.items()}


def _parse_settings(text: str, where: str) -> dict:
    try:
        settings = json.loads(text)
    except ValueError as error:
        raise LoRAError(f"{where} is not valid JSON ({error}); download it again") from error
    if not isinstance(settings, dict):
        raise LoRAError(f"{where} is not a JSON object; download it again")
    return settings
