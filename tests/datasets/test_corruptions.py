import numpy as np
import pytest
import torch

from genval.datasets.corruptions import CORRUPTIONS, SEVERITIES, corrupt
from genval.runtime.errors import GenValError


@pytest.fixture
def street():
    rows = np.linspace(200, 60, 48)[:, None, None]
    noise = np.random.default_rng(0).integers(-30, 30, (48, 96, 3))
    return np.clip(rows + noise, 0, 255).astype(np.uint8)


@pytest.mark.parametrize("domain", CORRUPTIONS)
def test_a_seed_gives_an_image_whatever_was_drawn_before(street, domain):
    torch.manual_seed(1)
    first = corrupt(street, domain, 3, seed=7)
    state = torch.get_rng_state()
    torch.rand(5)
    assert (corrupt(street, domain, 3, seed=7) == first).all()
    assert first.shape == street.shape and first.dtype == np.uint8
    torch.set_rng_state(state)
    expected = torch.rand(3)
    torch.set_rng_state(state)
    corrupt(street, domain, 3, seed=8)
    assert (torch.rand(3) == expected).all()  # the caller's generator is as it was
    if domain != "snow":  # which draws nothing
        assert (corrupt(street, domain, 3, seed=8) != first).any()


@pytest.mark.parametrize("domain", CORRUPTIONS)
def test_a_higher_severity_changes_more(street, domain):
    changes = [np.abs(corrupt(street, domain, s, 0).astype(int) - street).mean() for s in SEVERITIES]
    assert changes[0] > 1
    assert changes == sorted(changes)


def test_each_does_what_its_name_says(street):
    made = {domain: corrupt(street, domain, 3, 0).astype(float) for domain in CORRUPTIONS}
    assert made["night"].mean() < 0.5 * street.mean()
    assert made["snow"].mean() > street.mean()
    # Haze is grey: contrast between the light top and the dark bottom goes.
    assert np.ptp(made["fog"].mean((1, 2))) < np.ptp(street.mean((1, 2)))
    streaks = (made["rain"] == 200).all(-1).mean()
    assert 0.03 < streaks < 0.1


def test_what_is_not_there_is_refused(street):
    with pytest.raises(GenValError, match="fog, night, rain, snow"):
        corrupt(street, "hail", 3, 0)
    with pytest.raises(GenValError, match="severity of 1 to 5"):
        corrupt(street, "fog", 0, 0)
    with pytest.raises(GenValError, match="at least 16x16"):
        corrupt(street[:8], "fog", 3, 0)
