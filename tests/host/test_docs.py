"""What a user can read about a node on the canvas: tooltips, translations and the help page, for every node."""
from __future__ import annotations

import re
from collections.abc import Iterator

import pytest

from harness import PACK_NAME

LANGUAGES = ("ko", "zh")
# The frontend reads names and descriptions as templates, in which these have a meaning.
TEMPLATE_CHARACTERS = set("{}@|")


@pytest.fixture(scope="module")
def definitions(server) -> dict[str, dict]:
    """The pack's nodes as the frontend gets them."""
    module = f"custom_nodes.{PACK_NAME}"
    found = {name: node for name, node in server.get("/object_info").items() if node["python_module"] == module}
    assert found
    return found


@pytest.fixture(scope="module")
def translations(server) -> dict[str, dict]:
    return server.get("/i18n")


def inputs(definition: dict) -> Iterator[tuple[str, str | None]]:
    """Names and tooltips of all inputs, those of growing and switching ones included, named as in a prompt."""
    for group in ("required", "optional"):
        yield from _inputs(definition["input"].get(group, {}), "")


def _inputs(group: dict, prefix: str) -> Iterator[tuple[str, str | None]]:
    for name, (kind, *rest) in group.items():
        options = rest[0] if rest else {}
        yield prefix + name, options.get("tooltip")
        if kind == "COMFY_AUTOGROW_V3":
            template = options["template"]
            (_, member), = {**template["input"]["required"], **template["input"]["optional"]}.items()
            for member_name in template["names"]:
                yield f"{prefix}{name}.{member_name}", member[1].get("tooltip")
        if kind == "COMFY_DYNAMICCOMBO_V3":
            for choice in options["options"]:
                for inner in choice["inputs"].values():
                    yield from _inputs(inner, f"{prefix}{name}.")


def seeds(definition: dict) -> list[str]:
    """The widget that the frontend adds below a seed; it has a name and no tooltip."""
    given = [spec[1] for group in definition["input"].values() for spec in group.values() if len(spec) > 1]
    return ["control_after_generate"] if any(options.get("control_after_generate") for options in given) else []


def key(name: str) -> str:
    """An input's name as locale files write it."""
    return name.replace(".", "_")


def test_every_input_and_output_has_a_tooltip(definitions):
    silent = [f"{node}.{name}" for node, definition in definitions.items() for name, tooltip in inputs(definition) if not tooltip]
    for node, definition in definitions.items():
        assert len(definition["output_tooltips"]) == len(definition["output"])
        silent += [f"{node} output {i}" for i, tooltip in enumerate(definition["output_tooltips"]) if not tooltip]
        silent += [f"{node} description"] * (not definition["description"])
    assert silent == []


@pytest.mark.parametrize("language", LANGUAGES)
def test_a_locale_has_every_text_and_no_other(definitions, translations, language):
    texts = translations[language]["nodeDefs"]
    ours = {node: entry for node, entry in texts.items() if node.startswith("OmniGen2")}
    assert ours.keys() == definitions.keys()
    for node, definition in definitions.items():
        entry = ours[node]
        assert entry["display_name"] and entry["description"], node
        names = [key(name) for name, _ in inputs(definition)]
        assert entry["inputs"].keys() == {*names, *seeds(definition)}, node
        assert entry["outputs"].keys() == {str(i) for i in range(len(definition["output"]))}, node
        for name in names:
            assert entry["inputs"][name]["name"] and entry["inputs"][name]["tooltip"], f"{node}.{name}"
        for output in entry["outputs"].values():
            assert output["name"] and output["tooltip"], node


@pytest.mark.parametrize("language", LANGUAGES)
def test_names_and_descriptions_are_no_templates(translations, language):
    for node, entry in translations[language]["nodeDefs"].items():
        shown = [entry["display_name"], entry["description"], *(slot["name"] for slot in entry["inputs"].values()),
                 *(slot["name"] for slot in entry["outputs"].values())]
        assert not TEMPLATE_CHARACTERS & set("".join(shown)), node


@pytest.mark.parametrize("language", LANGUAGES)
def test_node_categories_are_translated(definitions, translations, language):
    assert {definition["category"].split("/")[0] for definition in definitions.values()} <= translations[language]["nodeCategories"].keys()


def test_the_slots_of_growing_inputs_have_english_tooltips(definitions, translations):
    """The frontend finds those only in a locale file; see `locales/en`."""
    english = translations["en"]["nodeDefs"]
    for node, definition in definitions.items():
        for name, _ in inputs(definition):
            if name.startswith("images."):
                assert english[node]["inputs"][key(name)]["tooltip"]


@pytest.mark.parametrize("page", ["{}.md", "{}/ko.md", "{}/zh.md"])
def test_every_node_has_a_help_page_with_a_picture_of_it(server, definitions, page):
    """At the addresses that the help panel asks for; it looks for pictures beside the English page."""
    for node, definition in definitions.items():
        text = server.get_bytes(f"/extensions/{PACK_NAME}/docs/{page.format(node)}").decode("utf-8")
        names = [name for name, _ in inputs(definition)] + definition["output_name"]
        absent = [name for name in names if f"`{name}`" not in text and not re.search(r"image_[2-4]$", name)]
        assert absent == [], f"{page.format(node)} says nothing about {absent}"
        pictures = re.findall(r"!\[[^\]]+\]\(([^)]+)\)", text)
        assert pictures, f"{page.format(node)} has no picture"
        for picture in pictures:
            assert len(server.get_bytes(f"/extensions/{PACK_NAME}/docs/{picture}")) > 1000
