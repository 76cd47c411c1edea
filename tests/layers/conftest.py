"""Tests that ask for `face` run for every class of `cram_jax.layers` that holds a layer: six blocks, six mixers."""

import pytest
from face_cases import FACES, Face


@pytest.fixture(params=FACES)
def face(request) -> Face:
    return FACES[request.param]
