"""The golden sampling runs, replayed with whatever a run may remember."""

import json
from dataclasses import dataclass

import torch
from safetensors.torch import load_file

from omnigen2_core.acceleration.taylorseer import TaylorSeer
from omnigen2_core.acceleration.teacache import TeaCache
from omnigen2_core.guidance import Guidance, guided_denoiser
from omnigen2_core.sampler import sample


@dataclass
class Replay:
    """One golden trajectory and what it takes to run it."""

    about: dict
    tensors: dict

    @classmethod
    def load(cls, golden, name):
        tensors = load_file(golden / "sampling.safetensors")
        own = {key.removeprefix(name + "/"): value for key, value in tensors.items() if key.startswith(name + "/")}
        return cls(json.loads((golden / "sampling.json").read_text())[name], own)

    def make_cache(self):
        return TaylorSeer() if self.about.get("taylorseer") else TeaCache(self.about["teacache"])

    def predictor(self, model, run):
        references = [[self.tensors[f"ref.{j}"] for j in range(len(self.about["refs"]))]]

        def predict(branch, x, t, step):
            text = self.tensors["text" if branch == "cond" else "neg"]
            state = run.evaluation(branch, step, "prompt" if branch == "cond" else "negative")
            return model(x, torch.tensor([t]), text, None, None if branch == "uncond" else references, state=state)

        return predict

    def run(self, model, run, noise=None, **guidance):
        """The latents after each step, from the golden noise or another."""
        about = self.about
        settings = {"text": about["text_guidance_scale"], "image": about["image_guidance_scale"], **guidance}
        denoise = guided_denoiser(
            self.predictor(model, run),
            Guidance(**settings),
            steps=about["steps"],
            has_references=bool(about["refs"]),
            through=run.predict,
        )
        steps = []
        solver = "euler" if about["scheduler"] == "euler" else "dpmpp_2m"
        times = torch.cat((self.tensors["timesteps"], torch.ones(1)))
        noise = self.tensors["noise"] if noise is None else noise
        sample(denoise, noise, times, solver=solver, callback=lambda i, estimate, x: steps.append(x))
        return steps
