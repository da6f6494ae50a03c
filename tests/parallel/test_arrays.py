"""Items that are put ahead of the one that works with them."""

import itertools
import threading

import pytest

from xgen_jax.parallel.arrays import put_ahead


def test_items_come_in_order_and_one_is_ahead():
    """A thread puts; no more than one waits."""
    puts, main = [], threading.get_ident()

    def put(item):
        assert threading.get_ident() != main
        puts.append(item)
        return -item

    found = put_ahead(itertools.count(3), put)
    assert not puts  # nothing is read before the first is asked for
    for step in range(3, 30):
        assert next(found) == (step, -step)
        assert len(puts) <= step - 3 + 2
    found.close()
    assert puts == list(range(3, 31))


@pytest.mark.parametrize("fails", ["items", "put"])
def test_an_error_comes_where_its_item_is_due(fails):
    def items():
        yield from range(2)
        if fails == "items":
            raise OSError("cannot read 2")
        yield 2

    def put(item):
        if item == 2:
            raise OSError("cannot put 2")
        return item

    found = put_ahead(items(), put)
    assert [next(found), next(found)] == [(0, 0), (1, 1)]
    with pytest.raises(OSError, match=f"cannot {'read' if fails == 'items' else 'put'} 2"):
        next(found)


def test_closing_waits_for_the_thread():
    """What the items read from can be closed after it."""
    entered, release = threading.Event(), threading.Event()

    def put(item):
        if item == 1:
            entered.set()
            assert release.wait(60)
        return item

    found = put_ahead(itertools.count(), put)
    assert next(found) == (0, 0) and entered.wait(60)
    closed = threading.Thread(target=found.close)
    closed.start()
    closed.join(0.1)
    assert closed.is_alive()
    release.set()
    closed.join(60)
    assert not closed.is_alive()
    assert not [t for t in threading.enumerate() if t.name.startswith("put")]
