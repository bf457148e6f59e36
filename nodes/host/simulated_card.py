"""A card of any size that is not there: what ComfyUI's own memory management does with a model on it.

ComfyUI is told of a device with so much memory, moves weights there and away as it finds right, whole or in part, and what
would lie there is counted. ComfyUI's modules are changed while it lasts, so nothing else may run beside it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

import comfy.model_management as management
import torch
from PIL import Image

from ...omnigen2_core.bench.allocations import DEVICE, CountingDevice, counting
from ...omnigen2_core.checkpoints import FileKind
from ...omnigen2_core.prompts import chat_prompt
from ..encode import empty_latent, with_references
from ..loaders import _clip, _model, _vae
from ..sampling import sample_latent
from .assistant import assistant_of
from .parts import part_of_file
from .prompt import encode_prompt, profile_of_clip
from .references import encode_reference

HOST_MEMORY = 64e9
"""Bytes that ComfyUI is told the host has: so many that it loads there first, as beside most cards."""
PROMPT_WORD = " lighthouse"
"""Repeated, until a prompt has as many tokens as the bench's."""
QUESTION = "What is in this picture?"
WORDS = 8
"""Tokens of the answer, each of which passes through the whole encoder. The room is planned for as many."""


@dataclass(frozen=True)
class Phase:
    """What the card held in one phase of a run, in bytes.

    weights: by model, when the phase had ended. whole: whether all of a model's weights were there. peak: of everything
    together. planned: what ComfyUI made room for beside the weights.
    """

    name: str
    weights: Mapping[str, int]
    whole: Mapping[str, bool]
    peak: int
    planned: float

    @property
    def activations(self) -> int:
        """What was held beside weights at the most; weights that are brought for one layer's use are part of it."""
        return self.peak - sum(self.weights.values())


@contextmanager
def simulated_card(size: float) -> Iterator[CountingDevice]:
    """ComfyUI with a card of `size` bytes that computes in bf16, and nothing else on it."""
    with counting(size) as device:

        def free(dev: torch.device | None = None, torch_free_too: bool = False):
            left = size - device.live if dev in (None, DEVICE) else HOST_MEMORY
            return (left, 0) if torch_free_too else left

        def total(dev: torch.device | None = None, torch_total_too: bool = False):
            found = size if dev in (None, DEVICE) else HOST_MEMORY
            return (found, found) if torch_total_too else found

        yes, no = (lambda *_, **__: True), (lambda *_, **__: False)
        changes = {
            "get_torch_device": lambda: DEVICE,
            "get_all_torch_devices": lambda *_, **__: [DEVICE],
            "get_free_memory": free,
            "get_total_memory": total,
            "should_use_fp16": yes,
            "should_use_bf16": yes,
            "supports_fp8_compute": no,
            "pytorch_attention_flash_attention": yes,
            "cpu_state": management.CPUState.GPU,
            "vram_state": management.VRAMState.NORMAL_VRAM,
            "NUM_STREAMS": 0,
        }
        with mock.patch.multiple(management, **changes):
            yield device
            management.unload_all_models()


def edit_phases(files: Mapping[FileKind, Path], size: float, side: int, tokens: int) -> list[Phase]:
    """An edit of one picture of `side` x `side` pixels, one step, on a card of `size` bytes; then a question about
    that picture, as OmniGen2 Ask puts it, and the same edit again: encoder and transformer make room for each other.

    tokens: of each prompt, about. Raises torch.OutOfMemoryError where the card is too small.
    """
    with torch.inference_mode(), simulated_card(size) as device:

        def read(kind: FileKind, path: Path):
            return part_of_file(path, kind)

        device.is_counting = False
        model = _model(read, FileKind.DIT, files[FileKind.DIT], "auto")
        clip = _clip(read, FileKind.ENCODER, files[FileKind.ENCODER], "auto")
        vae = _vae(read, FileKind.VAE, files[FileKind.VAE])
        device.is_counting = True
        profile = profile_of_clip(clip)
        limits = {"max_pixels": profile.max_pixels, "max_side": profile.max_side, "multiple": profile.size_multiple}
        picture = Image.new("RGB", (side, side))
        phases: list[Phase] = []

        def phase(name: str, action: Callable[[], object]) -> object:
            device.restart()
            asked: list[float] = []
            real_load = management.load_models_gpu

            def load(models, memory_required=0, *args, **kwargs):
                asked.append(memory_required)
                return real_load(models, memory_required, *args, **kwargs)

            with mock.patch.object(management, "load_models_gpu", load):
                out = action()
            weights, whole = {}, {}
            for loaded in management.current_loaded_models:
                part = type(loaded.model.model).__name__.lstrip("_")
                weights[part] = loaded.model_loaded_memory()
                whole[part] = weights[part] >= loaded.model_memory()
            phases.append(Phase(name, weights, whole, device.peak, max(asked, default=0)))
            return out

        text = PROMPT_WORD * tokens
        prompts = phase("encode text", lambda: [encode_prompt(clip, text).conditioning for _ in range(2)])
        latents = [phase("encode the reference", lambda: encode_reference(vae, picture, **limits))]
        positive, negative = prompts

        def sample():
            return sample_latent(
                model, with_references(positive, latents), with_references(negative, latents), negative,
                empty_latent(side, side, 1), seed=0, steps=1, solver="euler", text_guidance=5.0, image_guidance=2.0,
                shift={"shift": "auto"},
            ).samples  # fmt: skip

        latent = phase("sample", sample)
        phase("decode", lambda: vae.decode(latent))
        chat = chat_prompt(QUESTION, 1)
        phase("ask", lambda: assistant_of(clip).write([chat], [[picture]], max_new_tokens=WORDS))
        phase("sample again", sample)
    return phases
