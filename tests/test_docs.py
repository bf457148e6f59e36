"""The README and the help pages: what they point at exists, and the languages say the same."""

import json
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
DOCS = ROOT / "web" / "docs"
README = (ROOT / "README.md").read_text(encoding="utf-8")
NODES = sorted(
    node for file in (ROOT / "nodes").glob("*.py") for node in re.findall(r'node_id="(\w+)"', file.read_text(encoding="utf-8"))
)
LANGUAGES = ("ko", "zh")
LINK = re.compile(r"!?\[(?:[^\]]*)\]\(([^)\s]+)\)")
LARGEST_PICTURE = 40_000


def page(node, language=None):
    return (DOCS / (f"{node}/{language}.md" if language else f"{node}.md")).read_text(encoding="utf-8")


def links(text):
    return [link for link in LINK.findall(text) if not link.startswith(("http://", "https://", "#"))]


def anchors(text):
    """The names that GitHub gives to headings."""
    headings = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_there_are_nodes():
    assert len(NODES) == len(set(NODES)) >= 9


def test_every_page_belongs_to_a_node():
    assert sorted(file.stem for file in DOCS.glob("*.md")) == NODES
    for node in NODES:
        assert sorted(file.stem for file in (DOCS / node).iterdir()) == sorted(LANGUAGES)


@pytest.mark.parametrize("node", NODES)
def test_languages_say_the_same(node):
    """The same headings, table rows and items, and the same links."""
    english = page(node)

    def form(text):
        lines = text.splitlines()
        starts = [next((mark for mark in ("###", "##", "#", "|", "-", "!") if line.startswith(mark)), "") for line in lines]
        return [start for start, line in zip(starts, lines) if line]

    for language in LANGUAGES:
        translated = page(node, language)
        assert form(translated) == form(english), language
        assert sorted(LINK.findall(translated)) == sorted(LINK.findall(english)), language


@pytest.mark.parametrize("node", NODES)
def test_pictures_are_there_and_small(node):
    pictures = links(page(node))
    assert f"images/{node}.png" in pictures
    for picture in pictures:
        assert (DOCS / picture).stat().st_size <= LARGEST_PICTURE, picture


def test_pages_need_no_other_host():
    """ComfyUI may forbid pictures from elsewhere, and a page is read without a network too."""
    for file in DOCS.rglob("*.md"):
        assert not re.search(r"!\[[^\]]*\]\(https?:", file.read_text(encoding="utf-8")), file


def test_locales_are_complete_json_under_names_that_are_read():
    for file in (ROOT / "locales").rglob("*"):
        if file.is_file():
            assert file.name in {"main.json", "nodeDefs.json", "commands.json", "settings.json"}
            json.loads(file.read_text(encoding="utf-8"))


def test_the_readme_begins_with_the_two_commands():
    commands = re.findall(r"^python dev\.py \w+", README, re.MULTILINE)
    assert commands[:2] == ["python dev.py run", "python dev.py test"]
    assert README.index("python dev.py test") < README.index("\n## ")


def test_what_the_readme_links_to_exists():
    for link in links(README):
        assert (ROOT / link.split("#")[0]).exists(), link
    for link in LINK.findall(README):
        assert not link.startswith("#") or link[1:] in anchors(README), link


def test_commands_in_the_readme_exist():
    dev = (ROOT / "dev.py").read_text(encoding="utf-8")
    known = set(re.findall(r'add_parser\("(\w+)"', dev)) | set(re.findall(r'"(\w+)": "omnigen2_core\.', dev))
    used = set(re.findall(r"dev\.py (\w+)", README))
    assert used and used <= known
    for module in re.findall(r"python -m (omnigen2_core[\w.]*)", README):
        target = ROOT / module.replace(".", "/")
        assert target.with_suffix(".py").is_file() or (target / "__main__.py").is_file(), module


def test_files_and_tests_named_in_the_readme_exist():
    for name in re.findall(r"`((?:tests|workflows|subgraphs|nodes|omnigen2_core|web|locales)/[\w./-]+)`", README):
        file, _, _ = name.partition("::")
        assert (ROOT / file).exists(), name


def test_every_node_is_in_the_readme():
    assert [node for node in NODES if f"web/docs/{node}.md" not in README] == []


def test_the_code_in_the_readme_runs_as_far_as_names_go():
    """Every name that the library example imports is there; it needs weights to go further."""
    for block in re.findall(r"```python\n(.*?)```", README, re.DOTALL):
        compile(block, "README.md", "exec")
        for module, names in re.findall(r"^from (omnigen2_core[\w.]*) import (.+)$", block, re.MULTILINE):
            imported = __import__(module, fromlist=["x"])
            assert [name for name in names.split(", ") if not hasattr(imported, name)] == []
