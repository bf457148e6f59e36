"""The converted workflows of the archived packs open whole in the real frontend and send what their API files say."""
from __future__ import annotations

import json
from pathlib import Path

import pytest

FOLDER = Path(__file__).resolve().parent.parent.parent / "workflows" / "converted"
NAMES = sorted(file.stem for file in FOLDER.glob("*.json"))


def read(path: Path) -> dict:
    return json.loads(path.read_text(encoding="utf-8"))


def test_each_pack_has_both_of_its_uses():
    assert NAMES == [f"{pack}-{use}" for pack in ("Yuan-ManX", "neverbiasu") for use in ("edit", "text-to-image")]


@pytest.mark.parametrize("name", NAMES)
def test_it_opens_and_sends_its_api_file(canvas, name):
    canvas.load(read(FOLDER / f"{name}.json"))
    assert canvas.missing_nodes() == []
    assert canvas.prompt() == read(FOLDER / "api" / f"{name}.json")
    assert canvas.errors == []


@pytest.mark.parametrize("name", NAMES)
def test_it_asks_for_no_more_than_the_nodes_have(server, name):
    """Names of inputs, and choices, against what the server says of its nodes."""
    for node in read(FOLDER / "api" / f"{name}.json").values():
        definition = server.node(node["class_type"])["input"]
        known = {**definition["required"], **definition.get("optional", {})}
        assert {given.split(".")[0] for given in node["inputs"]} <= known.keys()
        for given, value in node["inputs"].items():
            kind, *rest = known.get(given, ["dynamic"])
            choices = kind if isinstance(kind, list) else rest[0].get("options", []) if kind == "COMBO" else []
            if choices and given not in ("image", "folder"):
                assert value in choices, f"{node['class_type']}.{given} = {value!r}"
