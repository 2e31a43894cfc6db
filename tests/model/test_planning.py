"""plan(): pieces hold every token once, in order, and stop at every selection boundary."""

from hypothesis import given
from hypothesis import strategies as st

from bmojo_neuron.planning import FREE_CHUNK, Piece, plan

rows = st.lists(st.tuples(st.integers(0, 200), st.integers(0, 90)), min_size=1, max_size=4)
periods = st.one_of(st.none(), st.integers(1, 40))


@given(rows=rows, period=periods, chunk=st.integers(1, 64))
def test_pieces_hold_every_token_and_cross_no_boundary(rows, period, chunk):
    at, length = ([row[i] for row in rows] for i in (0, 1))
    left = list(length)
    for piece in plan(at, length, period, chunk):
        assert any(piece.take)
        for b, take in enumerate(piece.take):
            assert 0 <= take <= min(chunk, left[b])
            stands = period is not None and at[b] % period == 0
            assert piece.at_boundary[b] == (stands and take > 0)
            if period and take:
                assert at[b] // period == (at[b] + take - 1) // period
            at[b] += take
            left[b] -= take
    assert left == [0] * len(rows)


@given(rows=rows, period=periods, chunk=st.integers(1, 64))
def test_no_piece_is_shorter_than_it_must_be(rows, period, chunk):
    at, length = ([row[i] for row in rows] for i in (0, 1))
    for piece in plan(list(at), list(length), period, chunk):
        for b, take in enumerate(piece.take):
            to_boundary = period - at[b] % period if period else chunk
            assert take == min(length[b], chunk, to_boundary)
            at[b], length[b] = at[b] + take, length[b] - take


def test_the_example_of_the_docstring():
    assert list(plan([50], [100], 64)) == [
        Piece((False,), (14,)),
        Piece((True,), (64,)),
        Piece((True,), (22,)),
    ]


def test_without_a_period_pieces_are_as_long_as_the_free_chunk():
    taken = [piece.take for piece in plan([3], [FREE_CHUNK + 5], None)]
    assert taken == [(FREE_CHUNK,), (5,)]


def test_nothing_to_feed_needs_no_piece():
    assert list(plan([0, 64], [0, 0], 64)) == []
