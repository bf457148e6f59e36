"""A custom node pack that the bench's servers are given: notes when a model is first called, and ends the run there."""

import time
from pathlib import Path

import comfy.model_management


class BenchFirstCall:
    """Writes to `file` when the encoder and the diffusion model are first called, a line each: its name, seconds since
    1970. The run is interrupted at the second."""

    RETURN_TYPES = ("MODEL", "CLIP")
    FUNCTION = "watch"
    CATEGORY = "bench"

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"model": ("MODEL",), "clip": ("CLIP",), "file": ("STRING",)}}

    def watch(self, model, clip, file):
        def note(name: str, interrupt: bool) -> None:
            with Path(file).open("a", encoding="utf-8") as lines:
                lines.write(f"{name} {time.time()!r}\n")
            if interrupt:
                raise comfy.model_management.InterruptProcessingException()

        clip.cond_stage_model.transformer.register_forward_pre_hook(lambda *_: note("encoder", False))
        model.model.diffusion_model.register_forward_pre_hook(lambda *_: note("diffusion", True))
        return model, clip


NODE_CLASS_MAPPINGS = {"BenchFirstCall": BenchFirstCall}
