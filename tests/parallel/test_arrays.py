"""Items that are put ahead of the one that works with them."""

import itertools
import threading

import pytest

from xgen_jax.parallel.arrays import Ahead


def test_items_come_in_order_and_one_is_ahead():
    """What has begun is not begun again, and nothing before it is asked for; a thread puts what has
    begun, and nothing else: it must not compute next to the steps."""
    puts, main, begun = [], threading.get_ident(), False

    def put(item):
        assert (threading.get_ident() != main) == begun
        puts.append(item)
        return -item

    with Ahead(itertools.count(3), put) as ahead:
        for step in range(3, 30):
            assert next(ahead) == (step, -step)
            assert puts == list(range(3, step + 1))
        begun = True
        ahead.begin()
        ahead.begin()
        assert next(ahead) == (30, -30)
        ahead.begin()
        assert next(ahead) == (31, -31)
    assert puts == list(range(3, 32))


@pytest.mark.parametrize("begun", [True, False])
@pytest.mark.parametrize("fails", ["read", "put"])
def test_an_error_comes_where_its_item_is_due(fails, begun):
    def items():
        yield from range(2)
        if fails == "read":
            raise OSError("cannot read 2")
        yield 2

    def put(item):
        if item == 2:
            raise OSError("cannot put 2")
        return item

    with Ahead(items(), put) as ahead:
        assert [next(ahead), next(ahead)] == [(0, 0), (1, 1)]
        if begun:
            ahead.begin()
        with pytest.raises(OSError, match=f"cannot {fails} 2"):
            next(ahead)


def test_the_end_waits_for_the_thread():
    """What the items are read from can be closed after it."""
    entered, release, done = threading.Event(), threading.Event(), []

    def put(item):
        entered.set()
        assert release.wait(60)
        done.append(item)

    with Ahead(itertools.count(), put) as ahead:
        ahead.begin()
        assert entered.wait(60) and not done
        threading.Timer(0.1, release.set).start()
    assert done == [0]
    assert not [t for t in threading.enumerate() if t.name.startswith("put")]
