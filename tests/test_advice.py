"""What is said about references before sampling, and when nothing is."""

import pytest

from omnigen2_core.advice import names_a_picture, notes_on_references, notes_on_size


@pytest.mark.parametrize(
    "prompt",
    [
        "the cat from image 1",
        "put image_1 on image_2",
        "Image-2 in the style of Image 1",
        "picture no. 2",
        "reference number two",
        "image (1)",
        "<img1> and <img2>",
        "images 1 and 2",
        "the second photo",
        "all of it from the first reference image",
        "combine both pictures",
        "mix all the images",
        "把图1里的猫放到图2里",
        "图像1和图像2",
        "照片1里的人",
        "参考2的沙发",
        "第一张照片",
        "两张图合在一起",
        "이미지 1의 고양이",
        "1번 이미지의 고양이",
        "두 번째 사진",
        "첫번째 그림",
        "두 이미지를 합쳐 줘",
    ],
)
def test_a_prompt_that_says_which_picture_it_means(prompt):
    assert names_a_picture(prompt)


@pytest.mark.parametrize(
    "prompt", ["put the cat on the sofa", "make an image of 2 cats", "the second person waves", "把猫放到沙发上", "고양이를 소파에"]
)
def test_a_prompt_that_does_not(prompt):
    assert not names_a_picture(prompt)


def test_only_several_references_have_to_be_named():
    assert notes_on_references("put the cat on the sofa", [(512, 512)], 512) == []
    assert "names none of them" in notes_on_references("put the cat on the sofa", [(512, 512)] * 2, 512)[0]


def test_small_references_are_listed_by_their_number():
    note, = notes_on_references("image 1 and image 2", [(512, 511), (512, 512)], 512)
    assert "reference 1 (512x511)" in note and "reference 2" not in note


@pytest.mark.parametrize(
    ("asked", "made", "edited", "said"),
    [
        ((500, 700), (496, 688), None, "500x700 became 496x688, because sides are multiples of 16"),
        ((4096, 4096), (1024, 1024), None, "beyond max_pixels"),
        ((512, 512), (512, 512), (512, 768), "512x512 pixels but the reference is read as 512x768"),
    ],
)
def test_a_size_that_is_not_the_one_expected_is_told(asked, made, edited, said):
    note, = notes_on_size(asked, made, edited, 16)
    assert said in note


def test_a_size_that_is_kept_needs_no_note():
    assert notes_on_size((512, 768), (512, 768), (512, 768), 16) == []
