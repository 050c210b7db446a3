"""The first of the hostile calls that `make fuzz` makes."""

import fuzz
import numpy as np
import pytest


@pytest.mark.cpu("the oracle is numpy's")
@pytest.mark.parametrize("seed", range(5))
def test_hostile_calls(seed):
    outcomes = [fuzz.attempt(seed, number) for number in range(100)]
    assert outcomes.count("values") > 30
    assert outcomes.count("sentence") > 10


@pytest.mark.cpu("the oracle is numpy's")
@pytest.mark.parametrize("name", ["y", "dx", "dcoeffs"])
def test_a_wrong_value_is_noticed(name):
    rng, noticed = np.random.default_rng(0), 0
    for call in (fuzz.draw(rng) for _ in range(200)):
        try:
            got = fuzz.run_public(call)
        except fuzz.ERRORS:
            continue
        if call.coeffs.shape[-1] < 9 and got["y"].numel() and got[name].isfinite().all():
            got[name] = got[name] + 0.5 * (1 + got[name].abs().max())
            noticed += fuzz.wrong_values(call, got) is not None
    assert noticed > 20
