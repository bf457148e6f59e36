"""What suits one family of weights."""

import pytest

from omnigen2_core.errors import CheckpointError
from omnigen2_core.profile import PUBLISHED, ModelProfile


def test_a_profile_survives_json():
    profile = ModelProfile(name="small", shift_base=4, max_side=128)
    assert ModelProfile.from_dict(profile.to_dict()) == profile


def test_what_a_file_does_not_say_is_as_published_and_what_nobody_knows_is_ignored():
    assert ModelProfile.from_dict({}) == PUBLISHED
    assert ModelProfile.from_dict({"steps": 20, "of_later_versions": 1}).steps == 20


@pytest.mark.parametrize("wrong", [{"steps": 0}, {"steps": 2.5}, {"max_side": "1024"}, {"shift_base": -1.0}, {"steps": True}, {"name": 3}, {"trained_reflection": 1}])
def test_values_of_no_use_are_refused_by_name(wrong):
    [(key, value)] = wrong.items()
    with pytest.raises(CheckpointError, match=f"{key} = {value!r}"):
        ModelProfile.from_dict(wrong)
