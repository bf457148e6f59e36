"""Speed against score as a picture: each method by itself, and the presets.

Where something has drawn fewer problems than the plain path, the difference between problems would pass for one between
methods. So everything stands at the plain path's rate plus its own change on the problems that both have drawn.
"""

from __future__ import annotations

from ..acceleration.presets import PRESETS
from .candidates import ALONE, PLAIN, of_preset, parse
from .curves import COLOURS, Panel, floor_of, picture
from .results import Results
from .trade_off import Cell, cell

WIDTH, HEIGHT, MARGIN_X, MARGIN_Y = 400, 230, 64, 78
TICKS = (1, 1.5, 2, 3, 4, 6, 8, 12, 16, 24)
TITLES = {0: "Text to image", 1: "Edit", 3: "Three references"}
PRESET_COLOUR = "#111"


def draw_figure(results: Results, world: str = "") -> str:
    """The results of a world, by default the first, as an SVG picture, a panel for each kind of problem; presets on others as rings."""
    first = world or results.worlds()[0]
    others = [other for other in results.worlds() if other != first]
    kinds = results.kinds(first)
    parts = []
    for i, (kind, references) in enumerate(kinds.items()):
        left, top = MARGIN_X + (i % 2) * (WIDTH + MARGIN_X), 40 + (i // 2) * (HEIGHT + MARGIN_Y)
        elsewhere = [(world, name) for world in others for name, count in results.kinds(world).items() if count == references]
        parts += _panel(results, (first, kind), elsewhere, TITLES.get(references, f"{references} references"), left, top)
    at = len(kinds)
    parts += _legend(others, MARGIN_X + (at % 2) * (WIDTH + MARGIN_X), 40 + (at // 2) * (HEIGHT + MARGIN_Y))
    rows = at // 2 + 1
    return picture(2 * (WIDTH + MARGIN_X) + 30, rows * (HEIGHT + MARGIN_Y) + 10, parts)


def _panel(results: Results, place: tuple[str, str], elsewhere: list[tuple[str, str]], title: str, left: int, top: int) -> list[str]:
    lines = {method: _cells(results, settings, place) for method, settings in ALONE.items()}
    presets = {name: cell(results, str(of_preset(preset)), *place) for name, preset in PRESETS.items()}
    candidates = [str(of_preset(preset)) for preset in PRESETS.values() if of_preset(preset) != PLAIN]
    rings = [found for where in elsewhere for candidate in candidates if (found := cell(results, candidate, *where))]
    plain = cell(results, str(PLAIN), *place)
    shown = [one for cells in lines.values() for one in cells] + [one for one in presets.values() if one]
    if not shown or plain is None:
        return []

    def height(one: Cell) -> float:
        return plain.right["rate"] + (one.change["rate"] if one.change else 0.0)

    fastest = max(one.speed for one in [*shown, *rings])
    lowest = floor_of([height(one) for one in [*shown, *rings]])
    panel = Panel(left, top, WIDTH, HEIGHT, (0.95, 1.1 * fastest), lowest, log=True)
    parts = panel.frame(title, "times less arithmetic than 50 plain steps", [tick for tick in TICKS if tick <= fastest])
    for cells, colour in zip(lines.values(), COLOURS):
        if cells:
            parts += panel.line([one.speed for one in cells], [height(one) for one in cells], colour)
    parts += [panel.ring(one.speed, height(one), PRESET_COLOUR) for one in rings]
    for name, one in presets.items():
        if one:
            parts.append(panel.interval(one.speed, one.right["low"], one.right["high"], PRESET_COLOUR))
            parts.append(panel.diamond(one.speed, one.right["rate"], PRESET_COLOUR))
            parts.append(panel.note(one.speed, one.right["rate"], name, PRESET_COLOUR))
    return parts


def _cells(results: Results, settings: tuple[str, ...], place: tuple[str, str]) -> list[Cell]:
    """What is known of some settings, by rising speed."""
    found = [one for text in settings if (one := cell(results, str(parse(text)), *place))]
    return sorted(found, key=lambda one: one.speed)


def _legend(others: list[str], left: int, top: int) -> list[str]:
    """Each method with its values, in the colour of its line."""
    parts = []
    for row, ((method, settings), colour) in enumerate(zip(ALONE.items(), COLOURS)):
        y = top + 18 * row
        values = ", ".join(text.partition("=")[2].partition(",")[0] for text in settings)
        parts.append(f'<line x1="{left}" y1="{y}" x2="{left + 26}" y2="{y}" stroke="{colour}" stroke-width="2"/>')
        parts.append(f'<text x="{left + 34}" y="{y + 4}" fill="{colour}">{method}: {values}</text>')
    told = "black: the presets, with the 95 % interval" + (f"; rings: on {', '.join(others)}" if others else "")
    parts.append(f'<text x="{left}" y="{top + 18 * len(ALONE) + 8}" fill="{PRESET_COLOUR}">{told}</text>')
    return parts
