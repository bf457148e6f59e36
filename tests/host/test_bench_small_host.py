"""`dev.py bench memory runs start`, small: that the machinery works. The figures are the command's."""

import json
import sys

import pytest
from test_bench_host import call


PHASES = ["encode text", "encode the reference", "sample", "decode", "ask", "sample again"]


def found(what: str) -> dict:
    done = call("compare_small.py", what)
    assert done.returncode == 0, done.stdout + done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.fixture(scope="module")
def phases():
    return found("memory")


def test_a_large_card_holds_whole_models_and_a_small_one_a_part(phases):
    large, small = ({phase["name"]: phase for phase in phases[name]} for name in ("large", "small"))
    assert list(large) == list(small) == PHASES
    assert large["sample"]["whole"]["OmniGen2Model"] and not small["sample"]["whole"]["OmniGen2Model"]
    assert large["sample"]["weights"]["OmniGen2Model"] == pytest.approx(2.3e9, rel=0.1)
    assert all(phase["peak"] <= 2.2e9 for phase in small.values())


def test_encoder_and_transformer_take_turns_on_a_small_card(phases):
    """What answers a question makes room for itself, whatever was there, and the transformer comes back as it was."""
    large, small = ({phase["name"]: phase for phase in phases[name]} for name in ("large", "small"))
    asked = small["ask"]
    assert asked["weights"]["OmniGen2Encoder"] > small["sample"]["weights"].get("OmniGen2Encoder", 0)
    assert asked["weights"].get("OmniGen2Model", 0) < small["sample"]["weights"]["OmniGen2Model"]
    again = small["sample again"]
    assert again["weights"]["OmniGen2Model"] == pytest.approx(small["sample"]["weights"]["OmniGen2Model"], rel=0.05)
    assert again["weights"].get("OmniGen2Encoder", 0) < asked["weights"]["OmniGen2Encoder"]
    # A large one keeps both.
    assert large["ask"]["whole"]["OmniGen2Encoder"] and large["sample again"]["whole"]["OmniGen2Model"]


def test_what_comfyui_plans_beside_weights_is_enough_and_not_far_too_much(phases):
    sample = {phase["name"]: phase for phase in phases["large"]}["sample"]
    # ComfyUI leaves so much in any case.
    assert 0 < sample["activations"] < max(sample["planned"], 0.8 * 2**30)
    assert sample["planned"] < 8 * sample["activations"]


@pytest.mark.skipif(sys.platform == "win32", reason="the bench's servers are given links to folders")
def test_runs_in_a_row_are_run_and_their_memory_compared():
    told = found("runs")
    (claim,) = told["claims"]
    assert claim["bar"]["limit"] == 2.0 and claim["verdict"] and abs(claim["found"]["value"]) < 50
    assert "runs were cancelled" in told["notes"][0]


@pytest.mark.skipif(sys.platform == "win32", reason="the bench's servers are given links to folders")
def test_a_click_is_followed_to_the_first_calls():
    told = found("start")
    warm = [claim for claim in told["claims"] if "warm" in claim["what"]]
    assert [bool(claim["bar"]) for claim in warm] == [True, False, False]
    assert 0 < warm[0]["found"]["value"] < warm[1]["found"]["value"] < warm[2]["found"]["value"]
