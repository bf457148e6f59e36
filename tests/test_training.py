"""The training loop: it learns, it resumes exactly, it moves only what it is told, and its objective is the paper's."""

import json
import random

import pytest
import torch
from torch import nn

from omnigen2_core.errors import CheckpointError, OmniGen2Error
from omnigen2_core.training import ExponentialAverage, Muon, Recipe, Trainer, build_optimizers, draw_times, flow_loss, interpolate
from omnigen2_core.training.optimizers import orthogonalise


class Lines:
    """Points on a hidden linear map."""

    def batch(self, step, rng):
        generator = torch.Generator().manual_seed(rng.randrange(2**31))
        x = torch.randn(16, 4, generator=generator)
        return [(x[:8], x[:8] @ self.map), (x[8:], x[8:] @ self.map)]

    map = torch.arange(12.0).view(4, 3) / 6


def make(tmp_path, model=None, **changes):
    settings = {"steps": 40, "learning_rate": 0.05, "warmup": 2, "bf16": False, "ema": 0.9, "save_every": 20, "log_every": 10, **changes}
    if model is None:
        torch.manual_seed(0)
        model = nn.Linear(4, 3)

    def loss(part, generator):
        x, y = part
        noise = 0.01 * torch.randn(y.shape, generator=generator)
        value = (model(x) + noise - y).square().mean()
        return value, {"error": value.item()}

    return model, Trainer(dict(model.named_parameters()), Lines(), loss, Recipe(**settings), tmp_path, hidden=["weight"])


@pytest.mark.parametrize("muon", [0.0, 0.3])
def test_it_learns_and_logs(tmp_path, muon):
    _, trainer = make(tmp_path, steps=200, muon_learning_rate=muon, weight_decay=0.0)
    trainer.run()
    rows = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert rows[-1]["error"] < 0.05 * rows[0]["error"]
    assert rows[-1]["step"] == 200
    assert Recipe.from_dict(json.loads((tmp_path / "recipe.json").read_text())) == trainer.recipe


@pytest.mark.parametrize("muon", [0.0, 0.02])
def test_an_interrupted_run_ends_where_an_uninterrupted_one_does(tmp_path, muon):
    straight, trainer = make(tmp_path / "a", muon_learning_rate=muon)
    trainer.run()
    _, first = make(tmp_path / "b", muon_learning_rate=muon)
    first.run(until=25)
    resumed, second = make(tmp_path / "b", muon_learning_rate=muon)
    assert second.step == 25
    second.run()
    for a, b in zip(straight.parameters(), resumed.parameters()):
        assert torch.equal(a, b)
    for name in trainer.average.weights:
        assert torch.equal(trainer.average.weights[name], second.average.weights[name])


def test_only_the_given_parameters_move(tmp_path):
    torch.manual_seed(0)
    model = nn.Linear(4, 3)
    model.bias.requires_grad_(False)
    before = model.bias.clone()

    def loss(part, generator):
        return model(part[0]).square().mean(), {}

    Trainer({"weight": model.weight}, Lines(), loss, Recipe(steps=3, bf16=False), tmp_path).run()
    assert torch.equal(model.bias, before)


def test_a_checkpoint_of_other_parameters_is_refused(tmp_path):
    make(tmp_path)[1].run(until=1)
    with pytest.raises(CheckpointError, match="other parameters"):
        make(tmp_path, model=nn.Linear(4, 3, bias=False))


def test_a_loss_that_is_not_finite_stops_the_run(tmp_path):
    model = nn.Linear(4, 3)
    trainer = Trainer(
        dict(model.named_parameters()), Lines(), lambda part, g: (model(part[0]).sum() * float("nan"), {}), Recipe(steps=3, bf16=False), tmp_path
    )
    with pytest.raises(OmniGen2Error, match="step 0"):
        trainer.run()


def test_checkpoints_hold_no_pickle(tmp_path):
    make(tmp_path)[1].run(until=1)
    assert {p.suffix for p in (tmp_path / "checkpoint").iterdir()} == {".safetensors", ".json"}


def test_averaged_weights_are_lent_and_given_back(tmp_path):
    model, trainer = make(tmp_path)
    trainer.run(until=10)
    own = model.weight.detach().clone()
    with trainer.averaged():
        assert torch.equal(model.weight, trainer.average.weights["weight"])
    assert torch.equal(model.weight, own)


def test_an_average_of_constant_weights_is_those_weights():
    p = nn.Parameter(torch.randn(5))
    average = ExponentialAverage({"p": p})
    average.update({"p": p}, 0.9)
    assert torch.allclose(average.weights["p"], p)


def test_the_rate_rises_stays_and_falls():
    recipe = Recipe(steps=100, warmup=10, decay=0.5, final_rate=0.1)
    assert recipe.rate(0) == pytest.approx(0.1)
    assert recipe.rate(10) == recipe.rate(49) == 1
    assert recipe.rate(75) == pytest.approx(0.55)
    assert recipe.rate(100) == pytest.approx(0.1)


def test_bad_recipes_are_refused():
    with pytest.raises(OmniGen2Error, match="steps=0"):
        Recipe(steps=0)
    with pytest.raises(OmniGen2Error, match="'lerning_rate'"):
        Recipe.from_dict({"steps": 1, "lerning_rate": 1})


@pytest.mark.parametrize("shape", [(8, 16), (16, 8), (12, 12)])
def test_muon_makes_all_directions_count_alike(shape):
    torch.manual_seed(0)
    matrix = torch.randn(2, *shape) * torch.logspace(0, -1, shape[1])
    before = torch.linalg.svdvals(matrix)
    after = torch.linalg.svdvals(orthogonalise(matrix))
    assert (before[:, 0] / before[:, -1]).min() > 3
    assert after.max() < 1.35 and after.min() > 0.4


def test_muon_takes_only_the_hidden_matrices():
    model = nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4))
    parameters = dict(model.named_parameters())
    adam, muon = build_optimizers(parameters, Recipe(steps=1, muon_learning_rate=0.01), hidden=["0.weight", "0.bias"])
    assert isinstance(muon, Muon)
    assert [id(p) for g in muon.param_groups for p in g["params"]] == [id(parameters["0.weight"])]
    assert sum(len(g["params"]) for g in adam.param_groups) == 3


def test_paths_run_straight_from_noise_to_image():
    image, noise = torch.randn(3, 2, 4, 4), torch.randn(3, 2, 4, 4)
    assert torch.equal(interpolate(image, noise, torch.zeros(3)), noise)
    assert torch.equal(interpolate(image, noise, torch.ones(3)), image)
    step = interpolate(image, noise, torch.full((3,), 0.6)) - interpolate(image, noise, torch.full((3,), 0.5))
    assert torch.allclose(step * 10, image - noise, atol=1e-5)


def test_the_loss_is_the_squared_velocity_error():
    image, noise = torch.randn(2, 2, 4, 4), torch.randn(2, 2, 4, 4)
    assert flow_loss(image - noise, image, noise) == 0
    assert flow_loss(image - noise + 2, image, noise) == pytest.approx(4)


def test_times_are_logit_normal_and_shifted_to_noise_by_size():
    generator = torch.Generator().manual_seed(0)
    plain = draw_times([(40, 40)] * 20000, generator, 40.0)
    assert 0 < plain.min() and plain.max() < 1
    logits = torch.logit(plain)
    assert logits.mean().abs() < 0.05 and (logits.std() - 1).abs() < 0.05
    shifted = draw_times([(120, 120)] * 20000, generator, 40.0)
    # A shift of m turns t into t / (m - m t + t): its logit falls by ln m.
    assert torch.logit(shifted).mean() == pytest.approx(-torch.tensor(3.0).log().item(), abs=0.05)


def test_batches_depend_on_seed_and_step_alone():
    seen = []

    class Spy(Lines):
        def batch(self, step, rng):
            seen.append((step, rng.random()))
            return super().batch(step, random.Random(0))

    assert seen == []
    model = nn.Linear(4, 3)
    import tempfile

    for _ in range(2):
        with tempfile.TemporaryDirectory() as folder:
            Trainer(dict(model.named_parameters()), Spy(), lambda p, g: (model(p[0]).sum(), {}), Recipe(steps=3, bf16=False), folder).run()
    assert seen[:3] == seen[3:] and len(set(seen)) == 3
