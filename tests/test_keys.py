"""Names of the AnnData slots."""

import pytest

from amilst_lite import keys
from amilst_lite.errors import InputError


def test_names_are_those_of_the_design():
    names = keys.ResultKeys()
    assert names.slots == {
        "obs": ("amilst_domain", "amilst_domain_refined", "amilst_confidence"),
        "obsm": ("X_amilst", "X_amilst_latent", "X_amilst_pca"),
        "obsp": ("amilst_connectivities", "amilst_distances"),
        "uns": ("amilst", "amilst_domain_colors", "amilst_domain_refined_colors", "amilst_neighbors"),
    }


def test_all_names_are_derived_from_key_added():
    first, second = keys.ResultKeys("a").slots, keys.ResultKeys("b").slots
    for place in first:
        assert not set(first[place]) & set(second[place])


@pytest.mark.parametrize("key", ["", "  ", None, 3, "a/b", "spatial"])
def test_unusable_keys_are_refused(key):
    with pytest.raises(InputError, match="key_added must be a non-empty string"):
        keys.ResultKeys(key)
