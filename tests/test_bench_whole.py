"""Whole runs of the bench: every path beside the plain one, the presets as recorded, the authors' code from a checkout."""

import sys
from argparse import Namespace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from authors_checkout import write_checkout

from omnigen2_core.acceleration.presets import PRESETS
from omnigen2_core.acceleration.protocol import Work
from omnigen2_core.bench import cases, command, patterns, replay, whole
from omnigen2_core.bench.inputs import Inputs, random_weights
from omnigen2_core.bench.reference import load_reference, reference_velocity
from omnigen2_core.bench.results import Results
from omnigen2_core.bench.timing import in_rounds
from omnigen2_core.bench.verdict import HOLDS
from omnigen2_core.errors import OmniGen2Error
from omnigen2_core.transformer import OmniGen2Config, OmniGen2Transformer

CPU = torch.device("cpu")
SMALL = OmniGen2Config(
    hidden_size=24, num_layers=3, num_refiner_layers=2, num_attention_heads=4, num_kv_heads=2, multiple_of=8,
    axes_dim_rope=(2, 2, 2), text_feat_dim=20,
)  # fmt: skip
CASES = [cases.Case(references, 64, 32) for references in cases.TASKS.values()]


@pytest.fixture(autouse=True)
def inference():
    with torch.inference_mode():
        yield


@pytest.fixture
def inputs():
    return Inputs(SMALL, torch.float32, CPU)


def model():
    made = OmniGen2Transformer(SMALL)
    made.load_state_dict(random_weights(SMALL, torch.float32, CPU))
    return made.eval()


def native_velocity(model, inputs, case, branch):
    """What the bench asks of ComfyUI's transformer, by one that shares nothing."""
    text, references = inputs.text(branch), inputs.references(case, branch)
    return lambda latents, time: model(latents, time, text, None, [references])


HOST = SimpleNamespace(
    OPERATIONS=torch.nn, attention=lambda: None, build_native=lambda config, weights: model(), native_velocity=native_velocity
)


# Every path beside the plain one


def table_of(case, checkout=None, steps=(3,)):
    results = Results({})
    options = Namespace(dtype="fp32", device=CPU, seconds=0.0, reference=checkout)
    for _ in command._whole(SMALL, [case], steps, options.seconds, options, HOST, results, "small"):
        pass
    return results


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.task)
def test_the_table_has_every_path_and_how_far_it_is_from_the_plain_one(case):
    results = table_of(case, steps=(3, 2))
    each = ["plain path", "ours", "native"] + ["native, core's template"] * (case.task == "t2i")
    paths = [(row.path, row.steps) for row in results.runs]
    assert paths == [(name, steps) for steps in (3, 2) for name in each] + [("exact", 50), ("balanced", 16), ("turbo", 10)]
    found = {claim.what: claim for claim in results.claims}
    assert found[f"{case.title}, 3 steps, small: ours against the plain path, largest error of the latents"].verdict == HOLDS
    assert found[f"{case.title}, 3 steps, small: ours against the plain path, PSNR of the latents"].found.value > 80
    for what in ("ours against the plain path", "ours against native"):
        assert found[f"{case.title}, 3 steps, small: {what}"].found.value > 0
    assert found[f"{case.title}, small: turbo against our plain 50 steps"].bar is None, "a CPU's bars are those of real width"
    told = [note for note in results.notes if "native against the plain path: largest error" in note]
    assert len(told) == (2 if case.references < 2 else 0)
    assert sum("turbo against our plain 50 steps: largest error" in note for note in results.notes) == 1


def test_three_rounds_are_the_least_and_every_other_goes_backwards():
    order = []
    actions = {name: lambda name=name: order.append(name) for name in "ab"}
    in_rounds(actions, 3, CPU)
    assert "".join(order) == "ab" + "ba" + "ab" and whole.LEAST_ROUNDS == 3


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.task)
def test_the_plain_path_is_ours_by_separate_evaluations(case, inputs):
    ours = model()
    latents = [
        whole.whole_run(start, case, case.branches, 3, inputs)
        for start in (whole.start_plainly(ours, inputs), whole.start_ours(ours, inputs, None))
    ]
    assert torch.allclose(*latents, atol=1e-4)


def test_psnr_is_of_the_range_of_what_is_expected():
    expected = torch.tensor([0.0, 2.0, 4.0])
    assert whole.psnr(expected + 0.4, expected) == pytest.approx(20.0, abs=1e-3)
    assert whole.psnr(expected, expected) > 190


# Presets


@pytest.mark.parametrize("name", PRESETS)
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.task)
def test_a_preset_does_what_it_did_on_the_built_in_model(case, name, inputs):
    records = {tuple(record) for record in patterns.kept_patterns().records[name, case.task]}
    for record in records:
        latents = replay.replayed(model(), inputs, None, case, PRESETS[name], record)
        assert latents.shape == inputs.latents(case).shape


def test_a_preset_that_computes_something_else_is_not_timed(inputs):
    case = CASES[1]
    [record, *_] = patterns.kept_patterns().records["turbo", "edit"]
    other = [work._replace(kind="full", context=True) if work.kind == "image" else work for work in record]
    with pytest.raises(OmniGen2Error, match="something else than was recorded"):
        replay.replayed(model(), inputs, None, case, PRESETS["turbo"], other)


def test_where_everything_is_computed_a_replay_is_a_run_of_ours(inputs):
    case = CASES[1]
    preset = PRESETS["exact"]
    record = [Work(step, branch, "full", 3, True) for step in range(preset.steps) for branch in case.branches]
    expected = whole.whole_run(whole.start_ours(model(), inputs, None), case, case.branches, preset.steps, inputs)
    assert torch.allclose(replay.replayed(model(), inputs, None, case, preset, record), expected, atol=1e-4)


# The authors' code


@pytest.fixture
def checkout(tmp_path):
    yield write_checkout(tmp_path / "OmniGen2")
    for name in [name for name in sys.modules if name.split(".")[0] == "omnigen2"]:
        del sys.modules[name]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.task)
def test_the_transformer_of_a_checkout_runs_beside_ours(checkout, case, inputs):
    """With the same weights by their published names, masks, references and rotary tables as the authors' pipeline gives."""
    reference = load_reference(checkout, SMALL, random_weights(SMALL, torch.float32, CPU))
    theirs = whole.start_others(reference_velocity(reference, inputs))
    latents = [
        whole.whole_run(start, case, case.branches, 3, inputs) for start in (theirs, whole.start_ours(model(), inputs, None))
    ]
    assert torch.allclose(*latents, atol=1e-4)
    assert str(checkout) not in sys.path


def test_the_table_has_the_authors_code_where_there_is_a_checkout(checkout):
    results = table_of(CASES[0], checkout)
    assert "reference" in [row.path for row in results.runs]
    assert any(claim.what.endswith("ours against the authors' code") for claim in results.claims)
    assert any("reference against the plain path: largest error" in note for note in results.notes)


def test_a_folder_that_is_no_checkout_is_refused(tmp_path):
    with pytest.raises(OmniGen2Error, match="holds no folder omnigen2"):
        load_reference(tmp_path, SMALL, {})


def test_a_checkout_that_cannot_be_imported_is_refused_with_what_to_install(checkout):
    file = checkout / "omnigen2" / "models" / "transformers" / "transformer_omnigen2.py"
    file.write_text("import not_there_at_all\n", encoding="utf-8")
    with pytest.raises(OmniGen2Error, match="requirements.txt"):
        load_reference(checkout, SMALL, {})


# What the command takes


@pytest.mark.parametrize("option", [["--reference", "OmniGen2"], ["--steps", "20"]])
@pytest.mark.parametrize("names", [["edit-512x512"], ["formats"], ["memory", "start"]])
def test_what_only_whole_runs_can_use_is_refused_without_any(capsys, option, names):
    with pytest.raises(SystemExit):
        command._parse([*names, *option])
    assert f"{option[0]} is for whole runs, and none of {' '.join(names)} is one" in capsys.readouterr().err


def test_whole_runs_take_both(capsys):
    options = command._parse(["built-in", "--reference", "OmniGen2", "--steps", "5", "--steps", "9"])
    assert (options.reference, options.steps) == (Path("OmniGen2"), [5, 9])
    assert command._parse(["--reference", "OmniGen2"]).reference, "built-in is part of what is measured without names"
    with pytest.raises(SystemExit):
        command._parse(["built-in", "--steps", "0"])
    assert "--steps is 0; give at least 1" in capsys.readouterr().err
