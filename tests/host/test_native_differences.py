"""What ComfyUI's own OmniGen2 does not do, run on it and on ours with the same weights."""

import pytest
import torch
from harness import Graph
from make_checkpoints import write_single
from native_model import install_native
from scenes import STEPS, Scene, compare, difference, save_picture
from small_models import install_folder


@pytest.fixture(scope="module")
def folder(server, golden):
    return install_folder(server.models, golden)


@pytest.fixture(params=["native", "ours"])
def scene(request, server, folder, golden):
    """A scene on either MODEL; `scene.native` says which."""
    file = install_native(server.models, golden)
    made = Scene(folder)
    made.native = request.param == "native"
    if made.native:
        made.model = made.add("TestLoadNativeModel", file=file)[0]
    else:
        made.model = made.add("OmniGen2LoadDiffusionModel", unet_name=file, dtype="fp32")[0]
    return made


def test_easycache_skips_only_with_ours(server, scene):
    scene.model = scene.add(
        "EasyCache", model=scene.model, reuse_threshold=3.0, start_percent=0.1, end_percent=0.95, verbose=False
    )[0]
    mark = len(server.log)
    scene.run(server, scene.ksampler(steps=8))
    assert ("EasyCache - skipped 0/8 steps" in server.log_after(mark)) is scene.native


def test_block_patches_reach_only_ours(server, scene):
    plain = scene.ksampler()
    scene.model = scene.add(
        "SkipLayerGuidanceDiT", model=scene.model, double_layers="", single_layers="1", scale=2.0, start_percent=0.0,
        end_percent=1.0, rescaling_scale=0.0,
    )[0]  # fmt: skip
    patched, plain = compare(server, scene, scene.ksampler(), plain)
    change = difference(patched, plain)
    assert change < 1e-3 if scene.native else change > 1e-2


def test_text_to_image_by_the_template_s_guider_costs_a_third_evaluation_only_with_core_s(server, scene):
    """Core's template gives the guider the negative prompt twice: without a reference, and with none."""
    scene.count()
    guider = scene.dual_guider(middle=scene.negative)
    # Core's module cannot be watched, and computes all that it is asked for.
    kind = "calls" if scene.native else "forwards"
    assert sum(scene.evaluations(server, scene.custom(guider), kind)) == (3 if scene.native else 2) * STEPS


def test_the_shift_follows_the_size_only_with_ours(server, scene):
    """Core's schedule is not told the size and is that of 2.6; ours knows it, on either model."""
    assert "LATENT" not in str(server.node("BasicScheduler")["input"])
    core = scene.add("BasicScheduler", model=scene.model, scheduler="simple", steps=STEPS, denoise=1.0)[0]
    nodes = [scene.save(sigmas=core), scene.save(sigmas=scene.sigmas())]
    scene.latent = scene.add("EmptySD3LatentImage", width=512, height=512, batch_size=1)[0]
    nodes.append(scene.save(sigmas=scene.sigmas()))
    result = server.run(scene.graph)
    core, small, large = (server.tensors(result, node)["sigmas"] for node in nodes)
    even = torch.linspace(1, 0, STEPS + 1)
    assert difference(core, 2.6 * even / (1 + 1.6 * even)) < 1e-3
    assert (large - small)[1:-1].min() > 0.05


def test_fp16_overflows_only_with_core_s(server, scene, golden):
    """A checkpoint whose feed-forward product fp16 cannot hold, computed in fp16 by either."""
    file = install_native(
        server.models, golden, "overflowing.safetensors",
        {"feed_forward.linear_1.weight": 300.0, "feed_forward.linear_3.weight": 300.0},
    )  # fmt: skip
    load = ("TestLoadNativeModel", "file", "float16") if scene.native else ("OmniGen2LoadDiffusionModel", "unet_name", "fp16")
    node, name, dtype = load
    scene.model = scene.add(node, **{name: file}, dtype=dtype)[0]
    latent = scene.run(server, scene.ksampler(steps=2))
    if scene.native:
        assert not torch.isfinite(latent).all()
        return
    assert torch.isfinite(latent).all()
    scene.model = scene.add(node, **{name: file}, dtype="fp32")[0]
    full = scene.run(server, scene.ksampler(steps=2))
    assert (latent - full).norm() < 0.02 * full.norm()


def test_a_file_in_the_wrong_place_is_named_only_by_ours(server, golden):
    write_single(server.models / "diffusion_models" / "misplaced.safetensors", golden, "mllm")

    def error(node: str, **more) -> str:
        graph = Graph()
        graph.add("PreviewAny", source=graph.add(node, unet_name="misplaced.safetensors", **more)[0])
        result = server.run(graph, check=False)
        assert result.status == "error"
        return result.error

    core, own = error("UNETLoader", weight_dtype="default"), error("OmniGen2LoadDiffusionModel", dtype="auto")
    assert "Could not detect model type" in core and "text_encoders" not in core
    assert "Qwen2.5-VL" in own and "models/text_encoders" in own and "OmniGen2 Load Encoder" in own


def test_a_concatenated_conditioning_is_read_only_by_ours(server, scene):
    joined = scene.add("ConditioningConcat", conditioning_to=scene.positive, conditioning_from=scene.negative)[0]
    latent = scene.ksampler(positive=joined)
    if scene.native:
        assert scene.fails(server, latent)
    else:
        assert torch.isfinite(scene.run(server, latent)).all()


def test_a_batch_of_prompts_of_unequal_length_is_right_only_with_ours(server, scene):
    other = scene.text("a much longer prompt about a blue ball")
    batch = scene.add("TestBatchConditionings", first=scene.positive, second=other)[0]
    two = scene.add("RepeatLatentBatch", samples=scene.latent, amount=2)[0]
    latent = scene.ksampler(positive=batch, latent_image=two, cfg=1.0)
    if scene.native:
        assert scene.fails(server, latent)
        return
    both, alone = compare(server, scene, latent, scene.ksampler(positive=other, latent_image=two, cfg=1.0))
    assert difference(both[1], alone[1]) < 1e-4 * max(1.0, alone.abs().max().item())


def test_a_sixth_reference_is_refused_on_either(server, scene):
    picture = save_picture(server, "sixth.png", 32, 32, seed=50)
    encoded = scene.add("VAEEncode", pixels=scene.add("LoadImage", image=picture)[0], vae=scene.vae)[0]
    positive = scene.positive
    for _ in range(6):
        positive = scene.add("ReferenceLatent", conditioning=positive, latent=encoded)[0]
    message = scene.fails(server, scene.sample(positive=positive))
    assert "6 references" in message and "at most 5" in message
