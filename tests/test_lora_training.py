"""A LoRA is trained as the reference trains it: only its own weights move, and its file is read by every loader."""

import pytest
import torch
from make_checkpoints import golden_config, golden_weights
from safetensors import safe_open
from safetensors.torch import load_file

from omnigen2_core.checkpoints import linear_shapes, load_lora, merge_lora, to_host_names
from omnigen2_core.errors import LoRAError
from omnigen2_core.training import Recipe, Trainer, add_lora, save_lora
from omnigen2_core.transformer import OmniGen2Config, OmniGen2Transformer


@pytest.fixture
def make_model(golden):
    def make():
        model = OmniGen2Transformer(OmniGen2Config.from_dict(golden_config(golden, "transformer")))
        model.load_state_dict(golden_weights(golden, "transformer"))
        return model.float().eval()

    return make


@pytest.fixture
def case(golden):
    """Latents, time and text of a golden case."""
    tensors = load_file(golden / "dit_cases.safetensors")
    return tensors["t2i/latents.0"][None], tensors["t2i/timestep"], tensors["t2i/text"], tensors["t2i/text_mask"]


class Case:
    """The same case in every step."""

    def __init__(self, case):
        self.case = case

    def batch(self, step, rng):
        return [self.case]


def train(model, case, folder, steps=3):
    """A few steps toward velocity 0; the LoRA's parameters."""
    parameters = add_lora(model, rank=4)

    def loss(part, generator):
        error = model(*part).square().mean()
        return error, {"error": error.item()}

    recipe = Recipe(steps=steps, learning_rate=0.02, warmup=0, ema=0, bf16=False)
    Trainer(parameters, Case(case), loss, recipe, folder).run()
    return parameters


def test_the_layers_are_the_references(golden, make_model):
    names = {name.removeprefix("transformer.") for name in load_file(golden / "lora_weights.safetensors")}
    assert set(add_lora(make_model())) == names


@torch.no_grad()
def test_nothing_changes_before_the_first_step(make_model, case):
    model = make_model()
    before = model(*case)[0]
    parameters = add_lora(model)
    assert torch.equal(model(*case)[0], before)
    assert all(p.any() == name.endswith("lora_A.weight") for name, p in parameters.items())


def test_only_the_lora_moves(make_model, case, tmp_path):
    model, untouched = make_model(), make_model().state_dict()
    parameters = train(model, case, tmp_path)
    after = {name.replace(".base.", "."): w for name, w in model.state_dict().items()}
    assert set(after) == set(untouched) | set(parameters)
    assert all(torch.equal(after[name], w) for name, w in untouched.items())
    moved = {name for name, p in parameters.items() if name.endswith("lora_B.weight") and p.any()}
    # No reference is in the case, so what refines references has nothing to learn from it.
    assert moved == {name for name in parameters if name.endswith("lora_B.weight") and not name.startswith("ref_image_refiner")}


def test_the_file_merged_into_the_model_is_what_was_trained(make_model, case, tmp_path):
    model, fresh = make_model(), make_model()
    before = fresh(*case)[0]
    save_lora(train(model, case, tmp_path), tmp_path / "trained.safetensors", torch.float32)
    merge_lora(fresh, load_lora(tmp_path / "trained.safetensors", linear_shapes(fresh.state_dict())))
    assert (before - fresh(*case)[0]).abs().max() > 0.05
    assert torch.allclose(fresh(*case)[0], model(*case)[0], atol=1e-5)


def test_the_file_has_the_references_names_and_those_of_core_follow(make_model, tmp_path):
    path = tmp_path / "loras" / "trained.safetensors"
    save_lora(add_lora(make_model(), rank=4), path)
    with safe_open(path, "pt") as file:
        names = set(file.keys())
        assert file.get_tensor("transformer.layers.0.attn.to_out.0.lora_A.weight").dtype == torch.bfloat16
        assert file.get_slice("transformer.layers.0.attn.to_out.0.lora_B.weight").get_shape() == [96, 4]
    assert all(name.startswith("transformer.") and name.endswith((".lora_A.weight", ".lora_B.weight")) for name in names)
    lora = load_lora(path)
    assert lora.unmatched == () and {weights.scale for weights in lora.modules.values()} == {1.0}
    assert set(to_host_names(lora)) == {name.replace("transformer.", "diffusion_model.", 1) for name in names}


def test_a_frozen_model_in_bfloat16_can_be_trained_on(make_model, case, tmp_path):
    model = make_model().bfloat16()
    latents, time, text, mask = case
    parameters = train(model, (latents.bfloat16(), time, text.bfloat16(), mask), tmp_path, steps=1)
    assert {p.dtype for p in parameters.values()} == {torch.float32}


def test_a_model_without_such_layers_is_refused():
    with pytest.raises(LoRAError, match="to_k, to_q"):
        add_lora(torch.nn.Sequential(torch.nn.Linear(2, 2)))
    with pytest.raises(LoRAError, match="not 0"):
        add_lora(torch.nn.Sequential(torch.nn.Linear(2, 2)), rank=0, targets=("0",))
