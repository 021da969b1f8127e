"""Documents to pieces to windows: every token is predicted exactly once, nothing is dropped, cut or put in twice."""

import random
from collections import Counter
from functools import cache
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from ftkit.tasks.tokens import Tokens
from ftkit.tasks.windows import IGNORED, Layout, Pieces, Windows, pack, repeated

START, END = 1_000_001, 1_000_002
LENGTHS = st.lists(st.integers(0, 40), min_size=1, max_size=12)


def tokens_of(lengths) -> Tokens:
    """Documents whose tokens are all different: 0, 1, 2, …"""
    return Tokens(np.arange(sum(lengths)), np.cumsum(lengths))


def sequences(tokens: Tokens, start, end) -> list[list[int]]:
    around = ([] if start is None else [start]), ([] if end is None else [end])
    return [[*around[0], *tokens.of(document).tolist(), *around[1]] for document in range(len(tokens))]


@given(
    lengths=LENGTHS,
    max_length=st.integers(2, 12),
    start=st.sampled_from([None, START]),
    end=st.sampled_from([None, END]),
)
@example(lengths=[0], max_length=2, start=None, end=None)
@example(lengths=[3, 4, 5], max_length=4, start=START, end=END)
def test_every_token_but_the_first_of_a_sequence_is_predicted_exactly_once(lengths, max_length, start, end):
    tokens = tokens_of(lengths)
    pieces = Pieces(tokens, Layout(max_length, start, end))
    windows = Windows(pieces, packed=False)
    predicted: dict[int, list[tuple[int, int]]] = {document: [] for document in range(len(lengths))}
    for piece in range(len(pieces)):
        row = windows[piece]
        assert row["input_ids"] == pieces.ids(piece)
        assert 2 <= len(row["input_ids"]) == pieces.length[piece] <= max_length
        assert row["position_ids"] == list(range(len(row["input_ids"])))
        assert row["labels"] == [IGNORED, *row["input_ids"][1:]]
        assert pieces.predicted()[piece] == sum(label != IGNORED for label in row["labels"])
        document = predicted[int(pieces.document[piece])]
        document += list(zip(row["input_ids"], row["labels"][1:], strict=False))  # what stands before, what comes
    for document, sequence in enumerate(sequences(tokens, start, end)):
        assert predicted[document] == list(pairwise(sequence))


@given(lengths=LENGTHS, max_length=st.integers(4, 12), both=st.booleans())
def test_closed_every_token_stands_in_exactly_one_piece_between_its_own_specials(lengths, max_length, both):
    tokens = tokens_of(lengths)
    layout = Layout(max_length, START, END if both else None, overlap=0, closed=True)
    pieces = Pieces(tokens, layout)
    inside: list[int] = []
    for piece in range(len(pieces)):
        ids = pieces.ids(piece)
        assert len(ids) == pieces.length[piece] <= max_length
        assert ids[0] == START
        assert (ids[-1] == END) == both
        own = ids[1 : len(ids) - both]
        assert own
        assert not {START, END} & set(own)
        document = int(pieces.document[piece])
        assert set(own) <= set(tokens.of(document).tolist())
        inside += own
    assert inside == list(range(sum(lengths)))
    assert len(pieces) == sum(-(-length // layout.room) for length in lengths)


@settings(max_examples=60)
@given(lengths=LENGTHS, max_length=st.integers(2, 12))
def test_packed_windows_hold_every_piece_once_each_with_positions_of_its_own(lengths, max_length):
    pieces = Pieces(tokens_of(lengths), Layout(max_length, START, END))
    windows = Windows(pieces, packed=True)
    seen: list[int] = []
    for number in range(len(windows)):
        row = windows[number]
        members = windows.members(number)
        seen += members
        assert row["input_ids"] == [token for piece in members for token in pieces.ids(piece)]
        assert row["position_ids"] == [at for piece in members for at in range(int(pieces.length[piece]))]
        assert row["labels"] == [label for piece in members for label in (IGNORED, *pieces.ids(piece)[1:])]
        assert len(row["input_ids"]) == windows.lengths[number] <= max_length
    assert sorted(seen) == list(range(len(pieces)))
    assert sum(windows.lengths) == pieces.length.sum()


def test_windows_of_some_pieces_hold_these_as_often_as_they_were_chosen():
    pieces = Pieces(tokens_of([5, 9, 3, 1]), Layout(8, START, END))
    chosen = np.array([4, 0, 0, 2, 4, 4])
    for packed in (False, True):
        windows = Windows(pieces, packed=packed, chosen=chosen)
        members = [piece for number in range(len(windows)) for piece in windows.members(number)]
        assert Counter(members) == Counter(chosen.tolist())
        assert windows.lengths == [len(windows[number]["input_ids"]) for number in range(len(windows))]
    assert Windows(pieces, packed=False, chosen=chosen).members(1) == [0]


@pytest.mark.parametrize("packed", [False, True])
def test_a_window_that_is_not_there_is_no_window(packed):
    windows = Windows(Pieces(tokens_of([5, 9]), Layout(8, START, END)), packed=packed)
    for number in (-1, len(windows)):
        with pytest.raises(IndexError):
            windows[number]
    none = Windows(Pieces(tokens_of([0, 0]), Layout(8, START, None)), packed=packed)
    assert (len(none), none.lengths) == (0, [])


def fewest(lengths: list[int], room: int) -> int:
    """The fewest windows possible, by trying all."""

    @cache
    def best(left: tuple[int, ...], space: int) -> int:
        """Further windows needed for what is left, where the last one has ``space``."""
        if not left:
            return 0
        options = []
        for number, length in enumerate(left):
            rest = left[:number] + left[number + 1 :]
            options.append(best(rest, space - length) if length <= space else 1 + best(rest, room - length))
        return min(options)

    return best(tuple(sorted(lengths)), 0)


@settings(max_examples=60, deadline=None)
@given(lengths=st.lists(st.integers(2, 20), min_size=0, max_size=7))
@example(lengths=[11, 11, 11, 6, 6, 6])
@example(lengths=[10, 10, 5, 5, 5, 5])
def test_packing_takes_few_windows_more_than_must_be(lengths):
    order, starts = pack(lengths, 20)
    assert sorted(order.tolist()) == list(range(len(lengths)))
    assert (starts[0], starts[-1]) == (0, len(lengths))
    windows = [order[begin:end].tolist() for begin, end in pairwise(starts)]
    assert all(window and sum(lengths[piece] for piece in window) <= 20 for window in windows)
    assert len(windows) <= 11 / 9 * fewest(lengths, 20) + 1


def test_packing_of_many_pieces_wastes_next_to_nothing():
    chance = random.Random(5)
    lengths = [min(512, 2 + int(chance.expovariate(1 / 90))) for _ in range(20_000)]
    _, starts = pack(lengths, 512)
    assert len(starts) - 1 <= 1.005 * sum(lengths) / 512 + 1


def test_packing_is_best_fit_with_the_longest_first():
    order, starts = pack([2, 6, 3, 7], 10)
    assert [order[begin:end].tolist() for begin, end in pairwise(starts)] == [[3, 2], [1, 0]]


@given(
    sizes=st.lists(st.lists(st.integers(1, 50), min_size=1, max_size=30), min_size=2, max_size=4),
    data=st.data(),
    seed=st.integers(0, 99),
)
def test_repeated_sources_have_their_share_of_the_tokens_within_a_piece(sizes, data, seed):
    weights = data.draw(st.lists(st.floats(0.05, 5), min_size=len(sizes), max_size=len(sizes)))
    sources = np.repeat(np.arange(len(sizes)), [len(own) for own in sizes])
    flat = np.array([size for own in sizes for size in own])
    chosen = repeated(sources, flat, weights, seed=seed)
    tokens = np.bincount(sources[chosen], weights=flat[chosen], minlength=len(sizes))
    totals = np.array([sum(own) for own in sizes])
    passes = np.array(weights) / totals
    expected = passes / passes.min() * totals
    longest = np.array([max(own) for own in sizes])
    assert (np.abs(tokens - expected) <= longest + 1e-6 * expected).all()
    times = Counter(chosen.tolist())
    least = int(passes.argmin())
    assert all(times[piece] == 1 for piece in np.flatnonzero(sources == least))
    for source in range(len(sizes)):  # no piece twice as often as it needs to be: all passes but the last are whole
        own = [times[piece] for piece in np.flatnonzero(sources == source)]
        assert max(own) - min(own) <= 1
        assert min(own) >= 1
    assert repeated(sources, flat, weights, seed=seed).tolist() == chosen.tolist()


@pytest.mark.parametrize("weights", [[3, 1], [0.3, 0.1], [49, 7], [0.7, 0.1], [1, 1]])
def test_whole_passes_are_whole(weights):
    sources, sizes = np.repeat([0, 1], 49), np.full(98, 7)
    times = Counter(repeated(sources, sizes, weights, seed=1)[:].tolist())
    assert [times[piece] for piece in range(98)] == [round(weights[0] / weights[1])] * 49 + [1] * 49


def test_the_seed_decides_what_the_last_pass_holds():
    sources, sizes = np.repeat([0, 1], 50), np.full(100, 4)
    found = [sorted(repeated(sources, sizes, [3, 2], seed=seed)) for seed in (1, 2)]
    assert [len(chosen) for chosen in found] == [125, 125]
    assert found[0] != found[1]
