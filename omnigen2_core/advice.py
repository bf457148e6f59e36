"""What is worth saying about a prompt and its pictures before sampling: notes, never a reason to stop.

The limits come from the OmniGen2 paper (section on limitations): small references, prompts that do not say which
picture is meant, and a result whose size differs from the picture being edited.
"""

from __future__ import annotations

import re

_PICTURE_WORDS = r"(?:image|img|picture|photo|photograph|reference|figure|subject)s?"
_NAMES_A_PICTURE = re.compile(
    rf"\b{_PICTURE_WORDS}(?:\s*(?:no\.|number))?[\s#:_(-]*(?:\d|(?:one|two|three|four|five)\b)"
    rf"|\b(?:first|second|third|fourth|fifth|1st|2nd|3rd|4th|5th|both|each|all|these|two|three|four|five)\s+(?:\w+\s+)?"
    rf"{_PICTURE_WORDS}\b"
    r"|(?:[图圖][片像]?|照片|[参參]考)\s*[一二三四五1-5]|第\s*[一二三四五1-5]\s*[张張幅个個]|[两兩二三四五]\s*[张張幅]"
    r"|(?:이미지|사진|그림)\s*[1-5]|(?:(?:첫|두|세|네|다섯)\s*번째|[1-5]\s*번째?|첫|두|세|네|다섯)\s*(?:이미지|사진|그림)",
    re.IGNORECASE,
)


def names_a_picture(prompt: str) -> bool:
    """Whether the prompt says which picture it means, as "image 1", "the second photo", "图2" or "두 번째 사진" do."""
    return bool(_NAMES_A_PICTURE.search(prompt))


def notes_on_references(prompt: str, sizes: list[tuple[int, int]], least_side: int) -> list[str]:
    """Notes for references of the given sizes (width, height) in pixels."""
    small = [f"reference {i} ({w}x{h})" for i, (w, h) in enumerate(sizes, start=1) if min(w, h) < least_side]
    notes = []
    if small:
        notes.append(
            f"Smaller than {least_side} pixels a side: {', '.join(small)}. The model was trained on larger "
            "references, so details may be lost; use larger pictures if there are any."
        )
    if len(sizes) > 1 and not names_a_picture(prompt):
        notes.append(
            f"There are {len(sizes)} references but the prompt names none of them. Say which is meant, "
            'as in "the cat from image 1 on the sofa from image 2".'
        )
    return notes


def notes_on_size(
    asked: tuple[int, int], made: tuple[int, int], edited: tuple[int, int] | None, multiple: int
) -> list[str]:
    """Notes where the picture to be made is not of the size asked for, or not of the edited picture's size."""
    notes = []
    if asked != made:
        kept = all(side - multiple < result <= side for side, result in zip(asked, made))
        reason = f"sides are multiples of {multiple}" if kept else "larger pictures are beyond max_pixels"
        notes.append(f"The size {asked[0]}x{asked[1]} became {made[0]}x{made[1]}, because {reason}.")
    if edited is not None and edited != made:
        notes.append(
            f"The picture will be {made[0]}x{made[1]} pixels but the reference is read as {edited[0]}x{edited[1]}. "
            "An edit keeps its place best at the same size: turn match_reference on."
        )
    return notes
