"""The graph that most sampling tests vary: the golden model, a prompt, references, a few steps, a latent saved."""

from __future__ import annotations

import uuid

import torch
from harness import Graph, Result, Server
from PIL import Image
from safetensors.torch import save_file

WIDTH, HEIGHT, STEPS, SEED = 64, 48, 4, 5
TEXT_GUIDANCE, IMAGE_GUIDANCE = 3.0, 1.5


class Scene:
    """A graph with model, conditionings and latent; `sample` and `custom` add what turns them into a latent.

    references: names of pictures in the server's input folder.
    """

    def __init__(
        self, folder: str, references=(), *, prompt="a red cube", negative="blurry", width=WIDTH, height=HEIGHT, batch=1
    ):
        self.graph = Graph()
        self.loader = self.graph.add("OmniGen2LoadFolder", folder=folder, dtype="fp32")
        self.model, self.clip, self.vae = (self.loader[i] for i in range(3))
        pictures = {
            f"images.image_{i}": self.graph.add("LoadImage", image=name)[0] for i, name in enumerate(references, start=1)
        }
        self.encode = self.graph.add(
            "OmniGen2Encode", clip=self.clip, prompt=prompt, negative_prompt=negative, width=width, height=height,
            match_reference=False, max_pixels=0, max_side=0, encoder_sees_images=False, batch_size=batch,
            **({"vae": self.vae} if pictures else {}), **pictures,
        )  # fmt: skip
        self.positive, self.negative_ref, self.negative, self.latent = (self.encode[i] for i in range(4))
        self.record = None

    def add(self, class_type: str, **inputs) -> Graph.Node:
        return self.graph.add(class_type, **inputs)

    def text(self, prompt: str) -> list:
        """A conditioning by core's own node."""
        return self.add("CLIPTextEncode", clip=self.clip, text=prompt)[0]

    def count(self) -> None:
        """Note every evaluation of the model from here on; `evaluations` reads them."""
        counted = self.add("TestCountEvaluations", model=self.model)
        self.model, self.record = counted[0], counted[1]

    def accelerate(self, preset: str = "custom", **settings) -> None:
        """The model with OmniGen2 Accelerate from here on; settings of the custom choice that are not given are off."""
        off = {"context_refresh": 1, "guidance_every": 1, "disagreement": 0.0, "first_block": 0.0, "teacache": 0.0, "taylorseer": 1}
        chosen = {f"preset.{name}": value for name, value in (off | settings).items()} if preset == "custom" else {}
        self.model = self.add("OmniGen2Accelerate", model=self.model, preset=preset, **chosen)[0]

    def guidance(self, **changes) -> dict:
        """Inputs of sampler and guider that say how to guide."""
        settings = {
            "model": self.model, "positive": self.positive, "negative_ref": self.negative_ref, "negative": self.negative,
            "text_guidance": TEXT_GUIDANCE, "image_guidance": IMAGE_GUIDANCE, "guidance_start": 0.0, "guidance_end": 1.0,
        }  # fmt: skip
        return _changed(settings, changes)

    def sample(self, **changes) -> list:
        """The latent of OmniGen2 Sampler; an input set to None is left open."""
        settings = self.guidance() | {
            "latent": self.latent, "seed": SEED, "steps": STEPS, "solver": "euler", "shift": "auto", "denoise": 1.0,
        }  # fmt: skip
        return self.add("OmniGen2Sample", **_changed(settings, changes))[0]

    def sigmas(self, shift="auto", steps=STEPS, denoise=1.0, **more) -> list:
        return self.add(
            "OmniGen2Sigmas", model=self.model, latent=self.latent, steps=steps, shift=shift, denoise=denoise, **more
        )[0]

    def guider(self, **changes) -> list:
        return self.add("OmniGen2Guider", **self.guidance(**changes))[0]

    def dual_guider(self, positive=None, middle=None, negative=None, text=TEXT_GUIDANCE, image=IMAGE_GUIDANCE) -> list:
        """Core's guider as core's templates wire it."""
        return self.add(
            "DualCFGGuider", model=self.model, cond1=positive or self.positive, cond2=middle or self.negative_ref,
            negative=negative or self.negative, cfg_conds=text, cfg_cond2_negative=image, style="regular",
        )[0]  # fmt: skip

    def custom(self, guider: list, sampler="euler", sigmas=None, seed=SEED, latent=None) -> list:
        """The latent of core's SamplerCustomAdvanced."""
        return self.add(
            "SamplerCustomAdvanced", noise=self.add("RandomNoise", noise_seed=seed)[0], guider=guider,
            sampler=self.add("KSamplerSelect", sampler_name=sampler)[0], sigmas=sigmas or self.sigmas(),
            latent_image=latent or self.latent,
        )[0]  # fmt: skip

    def ksampler(self, **changes) -> list:
        """The latent of core's KSampler."""
        settings = {
            "model": self.model, "positive": self.positive, "negative": self.negative, "latent_image": self.latent,
            "seed": SEED, "steps": STEPS, "cfg": TEXT_GUIDANCE, "sampler_name": "euler", "scheduler": "simple", "denoise": 1.0,
        }  # fmt: skip
        return self.add("KSampler", **_changed(settings, changes))[0]

    def save(self, **values) -> Graph.Node:
        """Have latent=, image=, sigmas= or conditioning= saved, under a name that no other test writes to."""
        return self.add("TestSaveTensors", name=uuid.uuid4().hex, **values)

    def run(self, server: Server, latent: list, **options) -> torch.Tensor:
        """Run up to this latent and return it."""
        node = self.save(latent=latent)
        return server.tensors(server.run(self.graph, **options), node)["latent"]

    def evaluations(self, server: Server, latent: list, kind: str = "forwards") -> list[int]:
        """Batch rows of every evaluation that this latent took; `count` comes first in the graph."""
        node = self.add("TestReadRecord", record=self.record, after=latent)
        return server.records(server.run(self.graph), node)[kind]

    def fails(self, server: Server, latent: list) -> str:
        """The message with which the run up to this latent ends."""
        self.save(latent=latent)
        result: Result = server.run(self.graph, check=False)
        assert result.status == "error", f"it ran ({result.status})"
        return result.error


def save_picture(server: Server, name: str, width: int, height: int, seed: int) -> str:
    """A smooth random picture in the server's input folder."""
    noise = torch.randint(0, 256, (3, 4, 3), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)
    return server.save_input(name, Image.fromarray(noise.numpy()).resize((width, height), Image.Resampling.BICUBIC))


def save_latent(server: Server, name: str, latent: torch.Tensor) -> str:
    """A latent for TestLoadLatent."""
    save_file({"latent": latent}, server.input / name)
    return name


def compare(server: Server, scene: Scene, *latents: list) -> list[torch.Tensor]:
    """The latents, from one run."""
    nodes = [scene.save(latent=latent) for latent in latents]
    result = server.run(scene.graph)
    return [server.tensors(result, node)["latent"] for node in nodes]


def difference(a: torch.Tensor, b: torch.Tensor) -> float:
    """Largest absolute difference."""
    assert a.shape == b.shape
    return (a - b).abs().max().item()


def _changed(settings: dict, changes: dict) -> dict:
    return {name: value for name, value in (settings | changes).items() if value is not None}
