"""The template's reflection on the built-in model in a real server, stopped in its second picture and gone on with."""

import json

import numpy as np
import pytest
from built_in_choices import FEW_STEPS, REFLECT_PROMPT, REFLECT_SCENE, REFLECT_SEED
from built_in_graphs import scene_of
from studio import Studio, interrupted, picture_of, rounds, told, values_of
from template_parts import BUILT_IN, MENDING_LORA

from omnigen2_core.nano.judge import look

SETTINGS = {
    "prompt": REFLECT_PROMPT, "width": 96, "height": 96, "seed": REFLECT_SEED, "reflect_by": "auto", **FEW_STEPS,
}  # fmt: skip


class Template(Studio):
    """The template's graph."""

    def __init__(self):
        super().__init__(BUILT_IN)
        self.model = self.graph.add("OmniGen2LoadLoRA", model=self.model, lora_name=MENDING_LORA, strength=1.0)[0]

    def run(self, server, **inputs) -> dict:
        node = self.loop(**SETTINGS, **inputs)
        return rounds(server.run(self.graph), node)


@pytest.fixture(scope="module")
def whole(server):
    return Template().run(server)


def right(server, made) -> list[bool]:
    """Which pictures are what was asked for, by their pixels."""
    ground, *things = REFLECT_SCENE
    return [look(np.asarray(picture_of(server, name))).scene == scene_of(ground, things) for name in made["pictures"]]


def test_its_own_words_find_the_fault_and_mend_it(server, whole):
    assert whole["stop"] == "the picture is right"
    assert not right(server, whole)[0] and right(server, whole)[whole["best"]]
    assert whole["rounds"][0]["reflection"]["correction"]


def test_stopped_in_the_second_picture_it_keeps_the_first_and_goes_on_from_there(server, whole):
    studio = Template()
    studio.model = studio.graph.add("TestSlowModel", model=studio.model, seconds=1.0)[0]
    studio.loop(**SETTINGS)
    drawing = []

    def second_picture(kind, data):
        if kind == "omnigen2.rounds" and (data["stage"], data["round"]) == ("draw", 1):
            drawing.append(True)
        return kind == "progress" and bool(drawing) and data["value"] >= 1

    left = told(interrupted(server, studio.graph, second_picture))[-1]["rounds"]
    assert (left["stop"], len(left["rounds"])) == ("stopped before the end", 1)
    assert picture_of(server, left["pictures"][0]).tobytes() == picture_of(server, whole["pictures"][0]).tobytes()
    made = Template().run(server, pick=0, earlier_rounds=json.dumps(left))
    assert values_of(made, "origin", "prompt", "seed") == values_of(whole, "origin", "prompt", "seed")
    assert made["stop"] == "the picture is right" and right(server, made)[made["best"]]
