"""What the tests need of the machine they run on."""

import os
from typing import NoReturn

import pytest


def missing(what: str) -> NoReturn:
    """Ends the test: a skip on a user's machine, a failure where CI=true, which promises everything there is."""
    (pytest.fail if os.environ.get("CI", "").lower() == "true" else pytest.skip)(what)
