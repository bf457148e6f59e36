"""Helpers that rebuild the tiny golden DiT and the inputs of its cases."""

import json
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

from omnigen2_core.transformer import OmniGen2Config, OmniGen2Transformer

CASES = ("t2i", "ref1", "ref3", "ref5", "batch2_mixed", "batch2_sizes", "batch3_timesteps")


def tiny_dit(golden: Path, dtype: torch.dtype = torch.float32, largest: dict[str, float] | None = None):
    """The golden DiT; weights whose name ends with a key of `largest` are scaled until that is their maximum."""
    config = OmniGen2Config.from_dict(json.loads((golden / "dit_config.json").read_text()))
    weights = {name: tensor.float() for name, tensor in load_file(golden / "dit_weights.safetensors").items()}
    for ending, maximum in (largest or {}).items():
        names = [name for name in weights if name.endswith(ending)]
        assert names, ending
        for name in names:
            weights[name] *= maximum / weights[name].abs().max()
    model = OmniGen2Transformer(config, dtype=dtype)
    model.load_state_dict(weights)
    return model.eval().requires_grad_(False)


class DitCases:
    """Inputs and outputs of the golden DiT cases by name."""

    def __init__(self, golden: Path):
        self.tensors = load_file(golden / "dit_cases.safetensors")
        self.about = json.loads((golden / "dit_cases.json").read_text())

    def inputs(self, name: str, dtype: torch.dtype = torch.float32) -> dict:
        case = self.about[name]
        latents = [self.tensors[f"{name}/latents.{i}"].to(dtype) for i in range(case["batch"])]
        references = [
            None if sizes is None else [self.tensors[f"{name}/ref.{i}.{j}"] for j in range(len(sizes))]
            for i, sizes in enumerate(case["refs_per_sample"])
        ]
        return {
            "latents": latents if case["images_given_as_list"] else torch.stack(latents),
            "timestep": self.tensors[f"{name}/timestep"],
            "text": self.tensors[f"{name}/text"],
            "text_mask": self.tensors[f"{name}/text_mask"],
            "references": references,
        }

    def sample(self, name: str, index: int) -> dict:
        """One sample of a case as a batch of one, its text cut to its true length."""
        inputs = self.inputs(name)
        length = int(inputs["text_mask"][index].sum())
        return {
            "latents": inputs["latents"][index][None],
            "timestep": inputs["timestep"][index : index + 1],
            "text": inputs["text"][index : index + 1, :length],
            "references": [inputs["references"][index]],
        }

    def velocities(self, name: str) -> list[Tensor]:
        return [self.tensors[f"{name}/velocity.{i}"] for i in range(self.about[name]["batch"])]

    def debug(self, name: str, what: str) -> Tensor:
        return self.tensors[f"{name}/dbg.{what}"]


def max_error(got, want) -> float:
    return max(float((a.float() - b).abs().max()) for a, b in zip(got, want, strict=True))


def relative_rms(got, want) -> float:
    error = sum(float((a.float() - b).square().sum()) for a, b in zip(got, want, strict=True))
    return (error / sum(float(b.square().sum()) for b in want)) ** 0.5
