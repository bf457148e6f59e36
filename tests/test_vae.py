"""The autoencoder equals the reference on the golden cases and has the published parameters."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from omnigen2_core.errors import CheckpointError, SizeError
from omnigen2_core.vae import AutoencoderKL, VAEConfig

GOLDEN = Path(__file__).parent / "golden"
TOLERANCE = 2e-5


def golden_vae() -> AutoencoderKL:
    config = VAEConfig.from_dict(json.loads((GOLDEN / "vae_config.json").read_text()))
    vae = AutoencoderKL(config)
    vae.load_state_dict(load_file(GOLDEN / "vae_weights.safetensors"))
    return vae.eval()


@pytest.fixture(scope="module")
def cases():
    return load_file(GOLDEN / "vae_cases.safetensors")


def difference(a, b):
    assert a.shape == b.shape
    return (a - b).abs().max().item()


@pytest.mark.parametrize("index", [0, 1, 2])
@torch.no_grad()
def test_encoding_and_decoding_match_the_reference(cases, index):
    vae = golden_vae()
    posterior = vae.encode(cases[f"{index}/image"])
    assert difference(posterior.mean, cases[f"{index}/mean"]) <= TOLERANCE
    assert difference(posterior.logvar, cases[f"{index}/logvar"]) <= TOLERANCE
    assert difference(vae.scale_latents(posterior.mean), cases[f"{index}/latent_from_mean"]) <= TOLERANCE
    sampled = vae.scale_latents(posterior.sample(cases[f"{index}/posterior_noise"]))
    assert difference(sampled, cases[f"{index}/latent_sampled"]) <= TOLERANCE
    decoded = vae.decode(vae.unscale_latents(cases[f"{index}/latent_to_decode"]))
    assert difference(decoded, cases[f"{index}/decoded"]) <= TOLERANCE


def test_full_size_parameters_equal_the_published_list():
    published = json.loads((GOLDEN / "real_keys.json").read_text())["flux_vae_diffusers"]
    vae = AutoencoderKL(VAEConfig(), device="meta")
    assert {name: list(value.shape) for name, value in vae.state_dict().items()} == published


@torch.no_grad()
def test_attention_in_slices_changes_nothing(cases, monkeypatch):
    vae = golden_vae()
    monkeypatch.setattr("omnigen2_core.vae.ATTENTION_SCORES", 7)
    decoded = vae.decode(vae.unscale_latents(cases["1/latent_to_decode"]))
    assert difference(decoded, cases["1/decoded"]) <= TOLERANCE


@pytest.mark.parametrize("dtype, tolerance", [(torch.bfloat16, 2e-2), (torch.float16, 5e-3)])
@torch.no_grad()
def test_half_precision_stays_close(cases, dtype, tolerance):
    vae = golden_vae().to(dtype)
    decoded = vae.decode(vae.unscale_latents(cases["1/latent_to_decode"]).to(dtype)).float()
    error = (decoded - cases["1/decoded"]).pow(2).mean().sqrt() / cases["1/decoded"].pow(2).mean().sqrt()
    assert error.isfinite() and error <= tolerance


def test_every_weight_sits_in_a_layer_of_the_given_operations():
    class Counted:
        Conv2d = type("Conv2d", (torch.nn.Conv2d,), {})
        GroupNorm = type("GroupNorm", (torch.nn.GroupNorm,), {})
        Linear = type("Linear", (torch.nn.Linear,), {})

    vae = AutoencoderKL(VAEConfig(), operations=Counted, dtype=torch.bfloat16, device="meta")
    kinds = (Counted.Conv2d, Counted.GroupNorm, Counted.Linear)
    assert all(isinstance(m, kinds) for m in vae.modules() if list(m.parameters(recurse=False)))
    assert {p.dtype for p in vae.parameters()} == {torch.bfloat16}


def test_gradients_flow_through_encoder_and_decoder(cases):
    vae = golden_vae()
    vae.decode(vae.encode(cases["2/image"]).mean).sum().backward()
    assert all(p.grad is not None for name, p in vae.named_parameters())


def test_an_image_that_does_not_fit_the_grid_is_refused():
    with pytest.raises(SizeError, match="30x16"):
        golden_vae().encode(torch.zeros(1, 3, 16, 30))


def test_an_autoencoder_of_another_kind_is_refused():
    with pytest.raises(CheckpointError, match="use_quant_conv"):
        VAEConfig.from_dict({"use_quant_conv": True})
