"""A LoRA works under any naming in use, at any strength, and one for another model is an error that says so."""

import json

import pytest
import torch
from make_checkpoints import FOREIGN, golden_config, golden_weights, write_pickle, write_sparse
from safetensors.torch import load_file, save_file

from omnigen2_core.checkpoints import linear_shapes, load_lora, merge_lora, normalise_lora, to_host_names
from omnigen2_core.errors import CheckpointError, LoRAError
from omnigen2_core.transformer import OmniGen2Config, OmniGen2Transformer

TRAINED = "transformer."


@pytest.fixture(scope="module")
def trained(golden):
    """The LoRA as the reference's trainer saves it."""
    return load_file(golden / "lora_weights.safetensors")


@pytest.fixture
def model(golden):
    model = OmniGen2Transformer(OmniGen2Config.from_dict(golden_config(golden, "transformer")))
    model.load_state_dict(golden_weights(golden, "transformer"))
    return model.float().eval().requires_grad_(False)


def renamed(trained, name):
    return {name(key): tensor for key, tensor in trained.items()}


def kohya(trained, alpha):
    """lora_unet_layers_0_attn_to_q.lora_down.weight, with alpha keys."""
    state = {}
    for key, tensor in trained.items():
        module, half, _ = key.removeprefix(TRAINED).rsplit(".", 2)
        flat = "lora_unet_" + module.replace(".", "_")
        state[f"{flat}.lora_{'down' if half == 'lora_A' else 'up'}.weight"] = tensor
        state[f"{flat}.alpha"] = torch.tensor(float(alpha))
    return state


NAMINGS = {
    "reference, EditScore": lambda key: key,
    "UMO": lambda key: key.removeprefix(TRAINED).replace(".weight", ".default.weight"),
    "UMO for ComfyUI": lambda key: "diffusion_model." + key.removeprefix(TRAINED),
    "no prefix": lambda key: key.removeprefix(TRAINED),
    "PEFT": lambda key: "base_model.model." + key.removeprefix(TRAINED),
    "PEFT inside a pipeline": lambda key: "base_model.model." + key,
    "PEFT with an adapter name": lambda key: key.replace(".weight", ".edit.weight"),
    "full checkpoint": lambda key: "model.diffusion_model." + key.removeprefix(TRAINED),
    "down and up": lambda key: key.replace("lora_A", "lora_down").replace("lora_B", "lora_up"),
    "old diffusers": lambda key: key.replace("lora_A", "lora.down").replace("lora_B", "lora.up"),
}


@pytest.mark.parametrize("naming", NAMINGS)
def test_every_naming_gives_the_same_lora(trained, naming):
    lora = normalise_lora(renamed(trained, NAMINGS[naming]))
    assert lora.unmatched == ()
    assert len(lora.modules) == 36
    for key, tensor in trained.items():
        module, half, _ = key.removeprefix(TRAINED).rsplit(".", 2)
        weights = lora.modules[module]
        assert torch.equal(weights.down if half == "lora_A" else weights.up, tensor)
        assert weights.scale == 1.0


def test_kohya_names_with_alpha_scale_by_alpha_over_rank(trained):
    lora = normalise_lora(kohya(trained, alpha=4))
    assert lora.unmatched == ()
    assert lora.modules.keys() == normalise_lora(trained).modules.keys()
    assert {weights.scale for weights in lora.modules.values()} == {0.5}


@pytest.mark.parametrize(
    "module",
    [
        "layers.31.feed_forward.linear_2",
        "layers.31.norm1.linear",
        "context_refiner.1.attn.to_out.0",
        "time_caption_embed.timestep_embedder.linear_1",
        "time_caption_embed.caption_embedder.1",
        "norm_out.linear_2",
        "x_embedder",
        "ref_image_patch_embedder",
    ],
)
@pytest.mark.parametrize("flat", [False, True])
def test_layers_beyond_attention_are_known_too(module, flat):
    name = "lora_unet_" + module.replace(".", "_") if flat else f"transformer.{module}"
    state = {f"{name}.lora_down.weight": torch.zeros(2, 6), f"{name}.lora_up.weight": torch.zeros(4, 2)}
    assert list(normalise_lora(state).modules) == [module]


def test_an_alpha_in_the_files_settings_holds_for_every_module(tmp_path, trained):
    settings = json.dumps({"transformer.lora_alpha": 16, "transformer.r": 8, "transformer.lora_dropout": 0.0})
    save_file(trained, tmp_path / "lora.safetensors", metadata={"lora_adapter_metadata": settings})
    assert {weights.scale for weights in load_lora(tmp_path / "lora.safetensors").modules.values()} == {2.0}


def test_an_alpha_in_pefts_adapter_config_holds_for_every_module(tmp_path, trained):
    save_file(renamed(trained, NAMINGS["PEFT"]), tmp_path / "adapter_model.safetensors")
    (tmp_path / "adapter_config.json").write_text(json.dumps({"r": 8, "lora_alpha": 4}))
    assert {weights.scale for weights in load_lora(tmp_path / "adapter_model.safetensors").modules.values()} == {0.5}


def test_alphas_of_single_modules_and_of_rank_stabilised_loras_are_those_of_peft():
    state = {}
    for name in ("layers.0.attn.to_q", "layers.1.attn.to_q", "layers.1.attn.to_k"):
        state |= {f"{name}.lora_A.weight": torch.zeros(4, 6), f"{name}.lora_B.weight": torch.zeros(6, 4)}
    settings = {"lora_alpha": 8, "alpha_pattern": {"1.attn.to_q": 2, "to_k": 12}}
    scales = {name: lora.scale for name, lora in normalise_lora(state, settings=settings).modules.items()}
    assert scales == {"layers.0.attn.to_q": 2.0, "layers.1.attn.to_q": 0.5, "layers.1.attn.to_k": 3.0}
    stabilised = normalise_lora(state, settings={"lora_alpha": 8, "use_rslora": True})
    assert {lora.scale for lora in stabilised.modules.values()} == {8 / 4**0.5}


def test_settings_that_make_no_sense_are_refused(trained):
    with pytest.raises(LoRAError, match="is 'much'"):
        normalise_lora(trained, settings={"lora_alpha": "much"})


def test_host_names_are_the_ones_that_core_maps(trained):
    names = to_host_names(normalise_lora(kohya(trained, alpha=4)))
    assert torch.equal(
        names["diffusion_model.layers.0.attn.to_q.lora_A.weight"],
        trained["transformer.layers.0.attn.to_q.lora_A.weight"],
    )
    assert torch.equal(
        names["diffusion_model.layers.0.attn.to_out.0.lora_B.weight"],
        trained["transformer.layers.0.attn.to_out.0.lora_B.weight"],
    )
    assert names["diffusion_model.layers.0.attn.to_q.alpha"].item() == 4
    assert len(names) == 3 * 36


def test_host_names_leave_alpha_out_where_the_file_has_none(trained):
    assert len(to_host_names(normalise_lora(trained))) == 2 * 36


# Merged into the model


@pytest.mark.parametrize("scale", [1.0, 0.5])
@pytest.mark.parametrize("case", ["t2i", "ref1", "ref3"])
def test_a_merged_lora_gives_the_references_velocity(golden, model, trained, case, scale):
    merge_lora(model, normalise_lora(trained, shapes=linear_shapes(model.state_dict())), scale)
    tensors = load_file(golden / "dit_cases.safetensors")
    expected = load_file(golden / "lora_cases.safetensors")
    about = [name for name in tensors if name.startswith(f"{case}/ref.0.")]
    references = [tensors[f"{case}/ref.0.{j}"][None] for j in range(len(about))]
    velocity = model(
        tensors[f"{case}/latents.0"][None],
        tensors[f"{case}/timestep"],
        tensors[f"{case}/text"],
        tensors[f"{case}/text_mask"],
        [[reference[0] for reference in references]] if references else None,
    )
    error = (velocity[0] - expected[f"{case}/scale_{scale}/velocity.0"]).abs().max()
    assert error <= 5e-5


def test_merging_with_the_negative_strength_takes_a_lora_out(golden, model, trained):
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    lora = normalise_lora(trained)
    merge_lora(model, lora, 0.7)
    changed = [name for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])]
    assert len(changed) == 36
    merge_lora(model, lora, -0.7)
    assert all(torch.allclose(tensor, before[name], atol=1e-6) for name, tensor in model.state_dict().items())


def test_merging_leaves_tensors_shared_with_a_file_alone(golden, trained):
    weights = golden_weights(golden, "transformer")
    kept = {name: tensor.clone() for name, tensor in weights.items()}
    model = OmniGen2Transformer(OmniGen2Config.from_dict(golden_config(golden, "transformer")), device="meta")
    model.load_state_dict(weights, assign=True)
    merge_lora(model, normalise_lora(trained))
    assert all(torch.equal(weights[name], kept[name]) for name in kept)
    assert model.layers[0].attn.to_q.weight.dtype == torch.bfloat16


# What is not for this model


def refusal(ask) -> str:
    with pytest.raises(CheckpointError) as caught:
        ask()
    message = str(caught.value)
    assert "\n" not in message
    return message


def pair(module, rank=2, width=3072):
    return {f"{module}.lora_A.weight": torch.zeros(rank, width), f"{module}.lora_B.weight": torch.zeros(width, rank)}


@pytest.mark.parametrize(
    ("module", "family"),
    [
        ("transformer.single_transformer_blocks.0.attn.to_q", "FLUX"),
        ("lora_unet_double_blocks_0_img_attn_qkv", "FLUX"),
        ("transformer_blocks.0.attn.add_q_proj", "Qwen-Image"),
        ("transformer_blocks.0.img_mlp.net.2", "Qwen-Image"),
        ("lora_unet_down_blocks_1_attentions_0_proj_in", "Stable Diffusion"),
        ("diffusion_model.layers.0.attention.qkv", "Lumina 2"),
        ("diffusion_model.blocks.0.cross_attn.k", "Wan"),
        ("double_stream_layers.0.img_instruct_attn.processor.img_to_q", "Boogu-Image"),
    ],
)
def test_a_lora_for_another_model_is_refused_by_name(tmp_path, module, family):
    save_file(pair(module), tmp_path / "style.safetensors")
    message = refusal(lambda: load_lora(tmp_path / "style.safetensors"))
    assert message.startswith("style.safetensors matches no layer of OmniGen2")
    assert f"LoRA for {family}" in message
    assert "LoraLoaderModelOnly" in message


def test_a_boogu_lora_is_refused_although_some_layers_have_our_names():
    state = pair("double_stream_layers.0.img_instruct_attn.processor.img_to_q") | pair("layers.0.attn.to_q")
    assert "LoRA for Boogu-Image" in refusal(lambda: normalise_lora(state))


def test_a_lora_for_a_text_encoder_is_sent_to_cores_node():
    assert "only a text encoder" in refusal(lambda: normalise_lora(pair("lora_te_text_model_encoder_layers_0_mlp_fc1")))
    assert "only a text encoder" in refusal(lambda: normalise_lora(pair("model.layers.0.self_attn.q_proj")))


def test_a_lora_of_another_size_is_refused_with_both_sizes(model):
    state = pair("transformer.layers.0.attn.to_q", width=2304)
    message = refusal(
        lambda: normalise_lora(state, shapes=linear_shapes(model.state_dict()), source="lumina.safetensors")
    )
    assert (
        "lumina.safetensors was made for another model: layers.0.attn.to_q is [2304, 2304] in it and [96, 96] here"
        in message
    )
    assert "Lumina 2" in message


def test_keys_that_match_nothing_are_reported_beside_those_that_do(trained, model):
    state = trained | pair("transformer.layers.77.attn.to_q", width=96) | {"note": torch.zeros(1)}
    lora = normalise_lora(state, shapes=linear_shapes(model.state_dict()))
    assert len(lora.modules) == 36
    assert set(lora.unmatched) == {
        "transformer.layers.77.attn.to_q.lora_A.weight",
        "transformer.layers.77.attn.to_q.lora_B.weight",
        "note",
    }


def test_half_a_lora_is_refused(trained):
    state = {key: tensor for key, tensor in trained.items() if key != "transformer.layers.1.attn.to_k.lora_B.weight"}
    assert "lacks lora_B (up) of layers.1.attn.to_k" in refusal(lambda: normalise_lora(state))


def test_other_methods_are_sent_to_cores_node(trained):
    dora = trained | {"transformer.layers.0.attn.to_q.lora_magnitude_vector": torch.ones(96)}
    assert "is a DoRA" in refusal(lambda: normalise_lora(dora))
    lokr = {
        "lycoris_layers_0_attn_to_q.lokr_w1": torch.ones(2, 2),
        "lycoris_layers_0_attn_to_q.lokr_w2": torch.ones(2, 2),
    }
    message = refusal(lambda: normalise_lora(lokr))
    assert "LyCORIS" in message
    assert "LoraLoaderModelOnly" in message


def test_a_whole_model_in_the_lora_folder_is_sent_to_its_node(tmp_path, golden):
    message = refusal(lambda: load_lora(golden / "dit_weights.safetensors"))
    assert "the OmniGen2 diffusion model itself, not a LoRA" in message
    assert "OmniGen2 Load Diffusion Model" in message
    write_sparse(tmp_path / "flux.safetensors", FOREIGN["flux"])
    assert "is a FLUX transformer, not a LoRA" in refusal(lambda: load_lora(tmp_path / "flux.safetensors"))


def test_a_pickled_lora_is_never_loaded(tmp_path):
    assert "is a pickled PyTorch file" in refusal(lambda: load_lora(write_pickle(tmp_path / "lora.safetensors")))


def test_merging_into_a_model_without_the_layer_is_refused(model):
    lora = normalise_lora(pair("layers.77.attn.to_q", width=96))
    with pytest.raises(LoRAError, match="changes layers.77.attn.to_q, which this model does not have"):
        merge_lora(model, lora)
