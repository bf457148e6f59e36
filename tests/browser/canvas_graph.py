"""A graph for the canvas as readable Python: nodes with values and links by name, and a layout.

    graph = Graph("Two nodes")
    picture = graph.add("EmptyImage", width=64)
    save = graph.add("SaveImage", images=picture["IMAGE"])
    graph.layout = Row(Group("Picture", picture), Group("Result", save))

The frontend makes the nodes (see author.py); only then are their sizes known and can places be computed.
"""
from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

GAP = 30
"""Pixels between things that stand side by side or below each other; a node's title bar comes on top of it."""
TITLE = 30
GROUP_TITLE = 44
GROUP_MARGIN = 16


class Output(NamedTuple):
    """An output of a node, to be linked to."""

    node: int
    name: str


@dataclass
class Node:
    """A node before it is made. `index` is its place among the nodes of its graph."""

    index: int
    type: str
    title: str = ""
    box: tuple[int, int] = (300, 0)
    values: dict[str, object] = field(default_factory=dict)
    links: dict[str, Output] = field(default_factory=dict)
    properties: dict[str, object] = field(default_factory=dict)

    def __getitem__(self, output: str) -> Output:
        return Output(self.index, output)


class Graph:
    """Nodes, links and a layout under the name of a template."""

    def __init__(self, name: str):
        self.name = name
        self.nodes: list[Node] = []
        self.layout: Item | None = None

    def add(
        self, node_type: str, title: str = "", box: tuple[int, int] = (300, 0), *, models: list[dict] = (), **inputs
    ) -> Node:  # fmt: skip
        """Add a node. An input that is given an `Output` is linked, any other value is a widget's.

        A dotted name (`images.image_1`) is written with two underscores. `box` is the least width and height; the
        widgets may need more. `models` are the downloads that the frontend offers where a file is missing.
        """
        inputs = {name.replace("__", "."): value for name, value in inputs.items()}
        node = Node(
            len(self.nodes), node_type, title, box,
            values={name: value for name, value in inputs.items() if not isinstance(value, Output)},
            links={name: value for name, value in inputs.items() if isinstance(value, Output)},
            properties={"models": list(models)} if models else {},
        )
        self.nodes.append(node)
        return node

    def note(self, text: str, box: tuple[int, int] = (332, 300)) -> Node:
        """Add a note that the canvas shows as formatted text."""
        return self.add("MarkdownNote", "About this workflow", box, text=text)


class Row:
    """Things side by side, tops aligned."""

    def __init__(self, *items: Item):
        self.items = items


class Column:
    """Things below each other, left sides aligned."""

    def __init__(self, *items: Item):
        self.items = items


class Group:
    """A titled frame around a column of things."""

    def __init__(self, title: str, *items: Item, colour: str = "#3f789e"):
        self.title, self.content, self.colour = title, Column(*items), colour


Item = Node | Row | Column | Group


class Placed(NamedTuple):
    """A computed layout. nodes: (x, y) of each node's body by index; groups: (title, colour, [x, y, width, height])."""

    nodes: dict[int, tuple[float, float]]
    groups: list[tuple[str, str, list[float]]]


def place(layout: Item, sizes: list[list[float]]) -> Placed:
    """Compute where everything goes, given the size [width, height] of each node's body, without its title bar."""
    placed = Placed({}, [])
    _place(layout, 0, 0, sizes, placed)
    return placed


def _place(item: Item, x: float, y: float, sizes, placed: Placed) -> tuple[float, float]:
    """Place an item's upper left corner, title bar included, at (x, y); returns its width and height."""
    if isinstance(item, Node):
        placed.nodes[item.index] = (x, y + TITLE)
        width, height = sizes[item.index]
        return width, TITLE + height
    if isinstance(item, Group):
        entry = (item.title, item.colour, [x, y, 0, 0])
        placed.groups.append(entry)
        width, height = _place(item.content, x + GROUP_MARGIN, y + GROUP_TITLE, sizes, placed)
        entry[2][2:] = [width + 2 * GROUP_MARGIN, height + GROUP_TITLE + GROUP_MARGIN]
        return entry[2][2], entry[2][3]
    across = isinstance(item, Row)
    width = height = 0.0
    for child in item.items:
        gap = GAP if max(width, height) else 0
        if across:
            child_width, child_height = _place(child, x + width + gap, y, sizes, placed)
            width, height = width + gap + child_width, max(height, child_height)
        else:
            child_width, child_height = _place(child, x, y + height + gap, sizes, placed)
            width, height = max(width, child_width), height + gap + child_height
    return width, height
