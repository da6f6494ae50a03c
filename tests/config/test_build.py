"""Keys and values of older releases under their new names."""

import copy

import pytest

from xgen_jax.config import build
from xgen_jax.config.build import rename
from xgen_jax.errors import UserError


@pytest.fixture
def table(monkeypatch):
    monkeypatch.setattr(build, "RENAMED", {"a.old": "a.new", "b": "c.d", "a.items.k": "a.items.p"})
    monkeypatch.setattr(build, "RENAMED_VALUES", {"a.items.mode": {"moved": "shifted"}})


def test_keys_are_renamed_in_groups_and_in_each_item_of_a_list(table):
    values = {
        "a": {"old": 1, "items": ({"k": 2, "mode": "moved"}, {"p": 3}, {"k": 4, "mode": "x"})},
        "b": 5,
    }
    before, said = copy.deepcopy(values), []
    assert rename(values, said.append) == {
        "a": {"new": 1, "items": ({"mode": "shifted", "p": 2}, {"p": 3}, {"mode": "x", "p": 4})},
        "c": {"d": 5},
    }
    assert values == before
    assert said == [
        "a.old is called a.new now",
        "b is called c.d now",
        "a.items.k is called a.items.p now",
        "a.items.mode='moved' is called 'shifted' now",
    ]


@pytest.mark.parametrize("values", [{}, {"a": {"new": 1}}, {"a": 3}, {"a": {"items": [1, "k"]}}])
def test_what_has_its_name_is_left_alone(table, values):
    said = []
    assert rename(values, said.append) == values and said == []


def test_both_names_are_refused_unless_they_agree(table):
    assert rename({"a": {"old": 1, "new": 1}}) == {"a": {"new": 1}}
    assert rename({"a": {"old": None, "new": 1}}) == {"a": {"new": 1}}
    with pytest.raises(UserError, match="a.old is called a.new now, and both are given"):
        rename({"a": {"old": 1, "new": 2}})


def test_a_bucket_of_an_older_release_is_read():
    old = {"data": {"buckets": [{"frames": 1, "keep": 0.5}, {"frames": 5}]}}
    assert rename(old)["data"]["buckets"] == [{"frames": 1, "keep_prob": 0.5}, {"frames": 5}]
