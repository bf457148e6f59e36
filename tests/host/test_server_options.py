"""The same graph under other options of the server, and after the server was killed in the middle of a run."""
from __future__ import annotations

import pytest
import torch
import websocket
from scenes import Scene
from small_models import install_folder


def latent_of(server, golden) -> torch.Tensor:
    scene = Scene(install_folder(server.models, golden), prompt="options")
    return scene.run(server, scene.sample())


def test_without_a_cache_everything_runs_again_and_a_killed_server_comes_back(server, start_server, golden):
    expected = latent_of(server, golden)
    other = start_server("--cache-none")
    scene = Scene(install_folder(other.models, golden), prompt="options")
    node = scene.save(latent=scene.sample())
    for _ in range(2):
        result = other.run(scene.graph)
        assert set(result.executed) == set(scene.graph.prompt) and result.cached == []
        assert torch.equal(other.tensors(result, node)["latent"], expected)

    long = Scene(install_folder(other.models, golden), prompt="options")
    sampled = long.sample(steps=1000)
    long.save(latent=sampled)

    def kill(kind, data, result):
        if kind == "progress" and data["node"] == sampled[0]:
            other.kill()

    with pytest.raises((websocket.WebSocketException, OSError)):
        other.run(long.graph, on_event=kill)
    other.start()
    assert torch.equal(latent_of(other, golden), expected)


@pytest.mark.parametrize("flag", ["--lowvram", "--novram", "--gpu-only"])
def test_memory_options_change_no_number(start_server, golden, flag):
    if not torch.cuda.is_available():
        pytest.skip(f"{flag} needs a graphics card: ComfyUI takes it or --cpu, never both")
    plain, other = start_server(cpu=False), start_server(flag, cpu=False)
    difference = (latent_of(other, golden) - latent_of(plain, golden)).abs().max()
    assert difference < 1e-4
