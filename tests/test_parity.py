"""The replay of golden data: it holds where it should, fails where it should, and takes any folder of the layout."""

import json
import shutil

import pytest
import torch
from make_checkpoints import golden_weights
from safetensors.torch import load_file, save_file

from omnigen2_core.errors import CheckpointError
from omnigen2_core.parity import Setup, all_hold, encoder, replay_folder
from omnigen2_core.parity.__main__ import find_tokenizer, main
from omnigen2_core.parity.core_model import CoreModel
from omnigen2_core.parity.dit import replay_velocities
from omnigen2_core.parity.encoder import replay_encoder
from omnigen2_core.parity.folder import GoldenFolder, NotReplayed
from omnigen2_core.parity.report import Row, Ruler
from omnigen2_core.parity.trajectories import replay_trajectories
from omnigen2_core.transformer import OmniGen2Config, OmniGen2Transformer

DIT_FILES = ("dit_config.json", "dit_cases.json", "dit_cases.safetensors", "dit_weights.safetensors")
LARGEST_FOLDER = 12_000_000


@pytest.fixture(scope="module")
def complete(golden, tmp_path_factory):
    """The golden data as they came, with the VAE's weights in both layouts."""
    folder = shutil.copytree(golden, tmp_path_factory.mktemp("golden") / "complete")
    save_file(golden_weights(golden, "vae_bfl"), folder / "vae_weights_bfl.safetensors")
    return folder


@pytest.fixture(scope="module")
def rows(complete):
    return list(replay_folder(complete))


@pytest.fixture
def dit_folder(golden, tmp_path):
    for name in DIT_FILES:
        shutil.copy(golden / name, tmp_path)
    return tmp_path


def rows_of(rows, part):
    return [row for row in rows if row.part == part]


def test_everything_holds_in_fp32(rows):
    assert [row for row in rows if row.ok is False] == []
    assert all_hold(rows)


def test_every_case_of_every_json_is_replayed(rows, golden):
    def names(file):
        return list(json.loads((golden / file).read_text()))

    assert [row.case for row in rows_of(rows, "dit")] == names("dit_cases.json")
    assert {row.case for row in rows_of(rows, "sampling")} >= set(names("sampling.json"))
    assert [row.case for row in rows_of(rows, "lora")] == list(json.loads((golden / "lora.json").read_text())["cases"])
    assert len(rows_of(rows, "schedule")) == len(json.loads((golden / "schedule.json").read_text())["tables"])
    assert {"(bfl)" in row.case for row in rows_of(rows, "vae") if row.ok} == {True, False}
    parts = {row.part for row in rows if row.ok}
    assert parts >= {"sizes", "pixels", "shapes", "prompts", "vision", "encoder", "vae", "dit inner"}


def test_the_schedule_is_exact_to_the_bit(rows):
    assert {row.error for row in rows_of(rows, "schedule")} == {0.0}


def test_caches_skip_the_steps_that_the_reference_skips(rows):
    patterns = [row for row in rows_of(rows, "sampling") if row.case.endswith("branches")]
    assert sum("cache" in row.case or "taylor" in row.case for row in patterns) == 7
    assert all(row.ok for row in patterns)


@pytest.mark.parametrize("dtype, limit", [(torch.bfloat16, 2e-2), (torch.float16, 5e-3)])
def test_everything_holds_in_smaller_dtypes(golden, dtype, limit):
    rows = list(replay_folder(golden, Setup(dtype=dtype)))
    assert [row for row in rows if row.ok is False] == []
    velocities = rows_of(rows, "dit")
    assert len(velocities) >= 7
    assert all(row.tolerance == limit and 1e-5 < row.relative <= limit for row in velocities)


def test_the_encoder_reads_text_in_bf16_and_says_how_far_off_it_sees_images_so(golden, monkeypatch):
    folder, cpu = GoldenFolder(golden), torch.device("cpu")
    judged = {row.case: row for row in replay_encoder(folder, cpu, torch.bfloat16)}
    for name in ("img1 text_embeds", "img2 text_embeds", "batch2 last_hidden_full"):
        figure, _, what = judged[name].note.partition(" ")
        assert what == "with activations in bf16"
        assert judged[name].relative <= judged[name].tolerance < float(figure) < 4e-2
    assert not judged["text last_hidden"].note
    build = encoder._built
    monkeypatch.setattr(encoder, "_built", lambda *arguments: build(*arguments[:-1], torch.float32))
    rounded = next(encoder.replay_encoder(folder, cpu, torch.bfloat16))
    assert rounded.case == "text last_hidden" and rounded.relative < judged["text last_hidden"].relative <= 2e-2


def test_a_wrong_weight_is_noticed(dit_folder):
    weights = load_file(dit_folder / "dit_weights.safetensors")
    weights["layers.1.attn.norm_k.weight"] = weights["layers.1.attn.norm_k.weight"] * 1.01
    save_file(weights, dit_folder / "dit_weights.safetensors")
    judged = [row for row in replay_folder(dit_folder) if row.part == "dit"]
    assert judged and all(row.ok is False and row.error > row.tolerance for row in judged)


def test_parts_that_the_folder_lacks_are_listed_and_not_failed(dit_folder):
    rows = list(replay_folder(dit_folder))
    assert all_hold(rows)
    missing = {row.part: row.note for row in rows if row.ok is None}
    assert missing["vae"] == "vae_config.json is not in this folder"
    assert set(missing) == {
        "schedule", "sizes", "pixels", "shapes", "prompts", "vision", "encoder", "vae", "lora", "sampling",
    }  # fmt: skip


def test_case_names_come_from_the_json(dit_folder):
    cases = json.loads((dit_folder / "dit_cases.json").read_text())
    (dit_folder / "dit_cases.json").write_text(json.dumps({"of another name": cases["ref1"]}))
    tensors = load_file(dit_folder / "dit_cases.safetensors")
    renamed = {name.replace("ref1/", "of another name/"): value for name, value in tensors.items() if "ref1/" in name}
    save_file(renamed, dit_folder / "dit_cases.safetensors")
    assert [(row.case, row.ok) for row in replay_folder(dit_folder) if row.part == "dit"] == [("of another name", True)]


def test_other_weights_and_sizes_are_replayed(dit_folder):
    values = json.loads((dit_folder / "dit_config.json").read_text())
    values.update(hidden_size=64, num_attention_heads=2, num_kv_heads=1, axes_dim_rope=[8, 12, 12], num_layers=2)
    values.update(text_feat_dim=24, ffn_dim_multiplier=None)
    torch.manual_seed(1)
    model = OmniGen2Transformer(OmniGen2Config.from_dict(values)).eval()
    inputs = {
        "latents.0": torch.randn(16, 14, 4),
        "timestep": torch.tensor([0.3]),
        "text": torch.randn(1, 5, 24),
        "text_mask": torch.tensor([[1, 1, 1, 0, 0]]),
        "ref.0.0": torch.randn(16, 2, 8),
    }
    with torch.no_grad():
        references = [[inputs["ref.0.0"]]]
        velocity = model(inputs["latents.0"][None], *(inputs[n] for n in ("timestep", "text", "text_mask")), references)
    (dit_folder / "dit_config.json").write_text(json.dumps(values))
    (dit_folder / "dit_cases.json").write_text(json.dumps({"mine": {"batch": 1}}))
    tensors = {**inputs, "velocity.0": velocity[0].contiguous()}
    save_file({f"mine/{name}": value for name, value in tensors.items()}, dit_folder / "dit_cases.safetensors")
    save_file(model.state_dict(), dit_folder / "dit_weights.safetensors")
    assert [(row.case, row.ok) for row in replay_folder(dit_folder) if row.part == "dit"] == [("mine", True)]


def test_a_damaged_part_fails_and_does_not_hide_the_others(dit_folder, golden):
    shutil.copy(golden / "schedule.json", dit_folder)
    (dit_folder / "dit_cases.json").write_text("{")
    rows = list(replay_folder(dit_folder))
    assert [row.ok for row in rows_of(rows, "dit")] == [False]
    assert "no valid JSON" in rows_of(rows, "dit")[0].note
    assert all(row.ok for row in rows_of(rows, "schedule"))


class Blind:
    """A model that cannot run anything, as a host may be."""

    def load(self, config, weights):
        self.loaded = True

    def velocity(self, case):
        raise NotReplayed("no way to run it")

    def trajectory(self, case):
        raise NotReplayed("no way to run it")


def test_another_model_can_replay_the_same_cases(golden):
    folder, model = GoldenFolder(golden), Blind()
    rows = [
        *replay_velocities(folder, model, torch.float32, tolerance=1e-4),
        *replay_trajectories(folder, model, torch.float32, tolerance=1e-4),
    ]
    assert model.loaded and len(rows) == 7 + 21
    assert all(row.ok is None and row.note == "no way to run it" for row in rows)


def test_the_tolerance_is_the_callers(golden):
    folder = GoldenFolder(golden)
    with torch.no_grad():
        model = CoreModel(torch.device("cpu"), torch.float32)
        assert not any(row.ok for row in replay_velocities(folder, model, torch.float32, tolerance=1e-9))


def test_values_that_are_not_numbers_never_hold():
    ruler = Ruler("part")
    assert ruler.close("nan", [(torch.tensor([float("nan")]), torch.ones(1))], 1e9).ok is False
    assert Ruler("part", torch.float16).close("nan", [(torch.tensor([float("nan")]), torch.ones(1))], 1.0).ok is False
    assert ruler.close("shape", [(torch.ones(2), torch.ones(3))], 1.0).note == "shape [2] where [3] is expected"


def test_nothing_replayed_is_not_a_success():
    assert not all_hold([])
    assert not all_hold([Row("part", "case", None)])
    assert not all_hold([Row("part", "a", True), Row("part", "b", False)])


def test_the_command_prints_a_line_a_case_and_its_status_says_whether_all_hold(dit_folder, capsys):
    assert main([str(dit_folder)]) == 0
    printed = capsys.readouterr().out
    assert "max abs error" in printed and "tolerance" in printed
    assert any(line.split()[:2] == ["dit", "ref3"] and line.endswith("holds") for line in printed.splitlines())
    tensors = load_file(dit_folder / "dit_cases.safetensors")
    tensors["ref3/velocity.0"][0, 0, 0] += 1e-3
    save_file(tensors, dit_folder / "dit_cases.safetensors")
    assert main([str(dit_folder)]) == 1
    assert "DOES NOT HOLD" in capsys.readouterr().out


def test_the_command_refuses_what_is_no_folder_of_golden_data(tmp_path, capsys):
    assert main([str(tmp_path)]) == 2
    assert main([str(tmp_path / "nowhere")]) == 2
    assert "is no folder" in capsys.readouterr().err
    with pytest.raises(CheckpointError):
        next(replay_folder(tmp_path / "nowhere"))


@pytest.mark.parametrize("device", ["gpu", "xpu:7"])
def test_a_device_that_cannot_compute_is_refused_in_a_sentence(dit_folder, capsys, device):
    with pytest.raises(SystemExit) as ended:
        main([str(dit_folder), "--device", device])
    assert ended.value.code == 2
    assert f"cannot compute on '{device}': " in capsys.readouterr().err


def test_the_tokenizer_is_found_in_the_private_host(tmp_path):
    assert find_tokenizer(tmp_path) is None
    folder = tmp_path / ".host" / "ComfyUI" / "comfy" / "text_encoders" / "qwen25_tokenizer"
    folder.mkdir(parents=True)
    assert find_tokenizer(tmp_path) == folder


def test_the_repository_carries_its_golden_data_within_its_limit(golden):
    assert sum(path.stat().st_size for path in golden.iterdir()) <= LARGEST_FOLDER
