"""Old names of keys and values, in runs on disk and in fingerprints."""

import pytest

from xgen_jax.config.build import rename
from xgen_jax.errors import UserError


@pytest.mark.parametrize(
    "group, old, new",
    [
        ("model", {"released": True}, {"opensora_compat": True}),
        ("model", {"clip_conditions": True}, {"micro_cond": True}),
        ("loss", {"caption_drop": 0.2}, {"cond_drop_prob": 0.2}),
        ("loss", {"one_step_share": 0.5}, {"one_step_fraction": 0.5}),
        ("loss", {"windows": "moved"}, {"windows": "shifted"}),
    ],
)
def test_a_key_of_an_older_release_is_renamed_and_said(group, old, new):
    said = []
    assert rename({group: old}, said.append) == {group: new}
    assert len(said) == 1 and f"{group}.{next(iter(old))}" in said[0]
    assert rename({group: new}, said.append) == {group: new} and len(said) == 1


def test_a_key_under_both_names_is_refused():
    with pytest.raises(UserError, match="loss.caption_drop is called loss.cond_drop_prob now"):
        rename({"loss": {"caption_drop": 0.2, "cond_drop_prob": 0.1}})
