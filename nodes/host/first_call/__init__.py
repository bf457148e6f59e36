"""A custom node pack that the bench's servers are given: notes when models are called and dropped, and ends the run at the
diffusion model's first call."""

import time
import weakref
from pathlib import Path

import comfy.model_management


class BenchFirstCall:
    """Writes to `file` what happens to the models, a line each: what, and when in seconds since 1970.

    "encoder" and "diffusion": the model is called; the run is interrupted at the second. "encoded": the encoder answers.
    "dropped": one of the two models is not in memory any more.
    """

    RETURN_TYPES = ("MODEL", "CLIP")
    FUNCTION = "watch"
    CATEGORY = "bench"

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"model": ("MODEL",), "clip": ("CLIP",), "file": ("STRING",)}}

    def watch(self, model, clip, file):
        def note(name: str) -> None:
            with Path(file).open("a", encoding="utf-8") as lines:
                lines.write(f"{name} {time.time()!r}\n")

        def end(*_) -> None:
            note("diffusion")
            raise comfy.model_management.InterruptProcessingException()

        encoder, diffusion = clip.cond_stage_model.transformer, model.model.diffusion_model
        encoder.register_forward_pre_hook(lambda *_: note("encoder"))
        encoder.register_forward_hook(lambda *_: note("encoded"))
        diffusion.register_forward_pre_hook(end)
        for watched in (encoder, diffusion):
            weakref.finalize(watched, note, "dropped").atexit = False
        return model, clip


NODE_CLASS_MAPPINGS = {"BenchFirstCall": BenchFirstCall}
