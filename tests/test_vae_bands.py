"""Decoding and encoding in bands are those of the whole, however few rows there are at once."""

import pytest
import torch
from safetensors.torch import load_file

from omnigen2_core.checkpoints import ModelFolder
from omnigen2_core.nano.folder import WEIGHTS
from omnigen2_core.nano.world import Scene, Thing, render
from omnigen2_core.vae import AutoencoderKL, VAEConfig
from omnigen2_core.vae_bands import decode_in_bands, encode_in_bands
from test_vae import golden_vae

ROW = 1
"""Pixels of a band that has one row at any width."""


def built_in_vae():
    folder = ModelFolder(WEIGHTS)
    vae = AutoencoderKL(VAEConfig.from_dict(folder.config("vae")))
    [file] = folder.weight_files("vae")
    vae.load_state_dict({name: tensor.float() for name, tensor in load_file(file).items()})
    return vae.eval()


def picture(side):
    """[1, 3, side, side] of the built-in model's world."""
    things = (Thing(0, "red", "circle", "small"), Thing(2, "blue", "square", "large"), Thing(4, "green", "diamond", "large"))
    return torch.from_numpy(render(Scene("white", things), side, side)).permute(2, 0, 1)[None].float() / 127.5 - 1


@pytest.fixture(autouse=True)
def inference():
    with torch.inference_mode():
        yield


@pytest.mark.parametrize("pixels", [ROW, 300, 1500, 10**9])
def test_bands_of_any_height_make_the_whole_picture(pixels):
    vae = golden_vae()
    latents = torch.randn(2, vae.config.latent_channels, 9, 7, generator=torch.Generator().manual_seed(1))
    whole = vae.decode(latents)
    banded = decode_in_bands(vae, latents, pixels)
    assert banded.shape == whole.shape and (banded - whole).abs().max() < 2e-5 * whole.abs().max()


@pytest.mark.parametrize("pixels", [ROW, 300, 700, 1500, 10**9])
def test_encoding_in_bands_of_any_height_is_encoding_the_whole(pixels):
    vae = golden_vae()
    images = torch.rand(2, 3, 9 * vae.config.factor, 7 * vae.config.factor, generator=torch.Generator().manual_seed(3)) * 2 - 1
    whole, banded = vae.encode(images), encode_in_bands(vae, images, pixels)
    for found, expected in zip((banded.mean, banded.logvar), (whole.mean, whole.logvar)):
        assert found.shape == expected.shape and (found - expected).abs().max() < 2e-5 * expected.abs().max()


def test_a_picture_of_the_built_in_model_is_the_same_to_a_thousandth_of_a_level():
    vae = built_in_vae()
    latents = vae.encode(picture(256)).mean
    worst = (decode_in_bands(vae, latents, 64 * 64) - vae.decode(latents)).abs().max().item()
    assert worst * 127.5 < 0.01


def test_half_precision_is_no_further_off_than_the_whole_is():
    vae = built_in_vae()
    latents = vae.encode(picture(128)).mean
    exact = vae.decode(latents)
    vae.bfloat16()
    whole, banded = (make.float() for make in (vae.decode(latents.bfloat16()), decode_in_bands(vae, latents.bfloat16(), 2048)))
    errors = [(found - exact).square().mean().sqrt().item() for found in (whole, banded)]
    assert errors[1] < 1.3 * errors[0]


def test_no_convolution_sees_more_than_its_band():
    """Beside the band's own pixels one row above and below, or two where they are enlarged; what is at the latents'
    resolution is not counted."""
    vae, pixels = built_in_vae(), 16 * 64
    latents = vae.encode(picture(128)).mean
    seen = []

    def note(module, given):
        x = given[0]
        if x.shape[3] > latents.shape[3]:
            seen.append(x.numel() - 4 * x[0, :, 0].numel())

    for module in vae.decoder.modules():
        if isinstance(module, torch.nn.Conv2d):
            module.register_forward_pre_hook(note)
    decode_in_bands(vae, latents, pixels)
    # What is made twice as large is seen so by the convolution after it: four times as much.
    assert max(seen) <= 4 * pixels * vae.config.block_out_channels[0] < 128 * 128 * vae.config.block_out_channels[0]


def test_a_norm_that_casts_for_each_use_is_asked_and_not_read():
    """As a host's layers do, whose weight lies elsewhere and in another dtype."""
    vae = golden_vae()
    latents = torch.randn(1, vae.config.latent_channels, 6, 6, generator=torch.Generator().manual_seed(2))
    whole = vae.decode(latents)

    class Casting(torch.nn.Module):
        def __init__(self, layer):
            super().__init__()
            self.num_groups, self.eps, self.layer = layer.num_groups, layer.eps, layer.to(torch.float64)

        def forward(self, x):
            return torch.nn.functional.group_norm(x, self.num_groups, *self.cast(x.dtype), self.eps)

        def cast(self, dtype):
            return self.layer.weight.to(dtype), self.layer.bias.to(dtype)

    for stage in vae.decoder.up_blocks:
        for resnet in stage.resnets:
            resnet.norm1, resnet.norm2 = Casting(resnet.norm1), Casting(resnet.norm2)
    assert (decode_in_bands(vae, latents, 200) - whole).abs().max() < 2e-5 * whole.abs().max()
