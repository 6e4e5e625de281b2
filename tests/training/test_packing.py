"""Packing by hand: windows, targets at boundaries, positions, masks; every token once per epoch; any batch at any time."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from latentlm.errors import UserError
from latentlm.interface import Batch
from latentlm.training.data.packing import PackedStream, TokenStore, best_fit, permutation, windows_of

END = 99


def store(*documents: list[int]) -> TokenStore:
    return TokenStore.of([np.array(document, dtype=np.uint16) for document in documents], end_of_text=END)


def numbered(*lengths: int) -> TokenStore:
    """Documents of the given lengths whose tokens are all different: 1000, 1001, ..., then 2000, ..."""
    return store(*(list(range(1000 * (d + 1), 1000 * (d + 1) + n)) for d, n in enumerate(lengths)))


def fields(batch: Batch) -> tuple[torch.Tensor, ...]:
    return batch.inputs, batch.targets, batch.documents, batch.positions, batch.target_mask


def pairs(stream: PackedStream, epoch: int = 0) -> list[tuple[int, int]]:
    """All (input, target) of an epoch; needs rows_per_batch 1."""
    assert stream.rows_per_batch == 1
    found = []
    for row in range(epoch * stream.rows_per_epoch, (epoch + 1) * stream.rows_per_epoch):
        batch = stream.batch(row)
        found += zip(batch.inputs[batch.target_mask].tolist(), batch.targets[batch.target_mask].tolist(), strict=True)
    return sorted(found)


def test_two_short_documents_share_a_row_each_ending_in_end_of_text() -> None:
    batch = PackedStream(store([1, 2], [5, 6, 7]), context=8, batch=1, seed=0).batch(0)
    assert batch.inputs.tolist() == [[END, 5, 6, 7, END, 1, 2, 0]]
    assert batch.targets.tolist() == [[5, 6, 7, END, 1, 2, END, 0]]
    assert batch.documents.tolist() == [[0, 0, 0, 0, 1, 1, 1, -1]]
    assert batch.positions.tolist() == [[0, 1, 2, 3, 0, 1, 2, 0]]
    assert batch.target_mask.tolist() == [[True] * 7 + [False]]
    assert batch.inputs.dtype == batch.documents.dtype == batch.positions.dtype == torch.long


def test_a_long_document_is_cut_into_windows_with_one_token_of_context() -> None:
    stream = PackedStream(store([1, 2, 3, 4, 5, 6]), context=3, batch=3, seed=0)
    assert stream.rows_per_epoch == 3
    rows = sorted(zip(stream.batch(0).inputs.tolist(), stream.batch(0).targets.tolist(), strict=True))
    assert rows == [([3, 4, 5], [4, 5, 6]), ([6, 0, 0], [END, 0, 0]), ([END, 1, 2], [1, 2, 3])]
    assert stream.batch(0).positions.max() == 2


def test_a_window_shorter_than_the_context_shares_its_row_with_another_document() -> None:
    stream = PackedStream(store([1, 2, 3, 4], [7, 8]), context=4, batch=2, seed=0)
    batch = stream.batch(0)
    rows = sorted(zip(batch.inputs.tolist(), batch.targets.tolist(), batch.documents.tolist(), strict=True))
    assert rows == [
        ([END, 1, 2, 3], [1, 2, 3, 4], [0, 0, 0, 0]),
        ([END, 7, 8, 4], [7, 8, END, END], [0, 0, 0, 1]),
    ]


def test_without_packing_each_row_is_one_window_padded_to_the_longest_of_the_batch() -> None:
    stream = PackedStream(store([1, 2], [5, 6, 7]), context=8, batch=2, seed=0, packing=False)
    batch = stream.batch(0)
    rows = sorted(zip(batch.inputs.tolist(), batch.targets.tolist(), batch.documents.tolist(), strict=True))
    assert rows == [
        ([END, 1, 2, 0], [1, 2, END, 0], [0, 0, 0, -1]),
        ([END, 5, 6, 7], [5, 6, 7, END], [0, 0, 0, 0]),
    ]
    assert torch.equal(batch.target_mask, batch.documents >= 0)


@settings(max_examples=40, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 30), min_size=1, max_size=12),
    context=st.integers(2, 12),
    packing=st.booleans(),
    epoch=st.integers(0, 2),
)
def test_every_token_is_a_target_exactly_once_per_epoch(lengths: list[int], context: int, packing: bool, epoch: int) -> None:
    tokens = numbered(*lengths)
    expected = []
    for index in range(len(lengths)):
        document = [END, *tokens.document(index).tolist(), END]
        expected += itertools.pairwise(document)
    stream = PackedStream(tokens, context=context, batch=1, seed=3, packing=packing)
    assert pairs(stream, epoch) == sorted(expected)
    assert stream.targets_per_epoch == len(expected)


@settings(max_examples=30, deadline=None)
@given(lengths=st.lists(st.integers(1, 30), min_size=1, max_size=12), context=st.integers(2, 12))
def test_within_a_row_documents_are_whole_windows(lengths: list[int], context: int) -> None:
    """Each entry of a row starts at position 0, counts up, and each input but the first is the target before it."""
    stream = PackedStream(numbered(*lengths), context=context, batch=len(lengths), seed=0)
    batch = stream.batch(0)
    for row in range(batch.inputs.shape[0]):
        for number in range(int(batch.documents[row].max()) + 1):
            here = batch.documents[row] == number
            assert batch.positions[row][here].tolist() == list(range(int(here.sum())))
            assert batch.inputs[row][here][1:].tolist() == batch.targets[row][here][:-1].tolist()
        real = batch.documents[row][batch.documents[row] >= 0]
        assert (real.diff() >= 0).all()


def test_the_windows_of_held_out_documents_are_those_of_training() -> None:
    tokens = numbered(10, 3, 8)
    stream = PackedStream(tokens, context=4, batch=1, seed=0, packing=False)
    trained = []
    for row in range(stream.rows_per_epoch):
        batch = stream.batch(row)
        trained.append((batch.inputs[0].tolist(), batch.targets[0].tolist()))
    scored = [
        (window.inputs, window.targets)
        for index in range(3)
        for window in windows_of(tokens.document(index), end_of_text=END, context=4)
    ]
    assert sorted(trained) == sorted(scored)


def test_a_document_that_fills_the_context_exactly_is_one_window() -> None:
    (window,) = windows_of([1, 2, 3], end_of_text=END, context=4)
    assert (window.inputs, window.targets) == ([END, 1, 2, 3], [1, 2, 3, END])
    assert len(windows_of([1, 2, 3, 4], end_of_text=END, context=4)) == 2


def test_any_batch_is_the_same_in_a_fresh_stream() -> None:
    tokens = numbered(40, 3, 5, 17, 9, 2, 30)
    stream = PackedStream(tokens, context=8, batch=4, seed=1)
    seen = [stream.batch(index) for index in range(20)]
    for index in (13, 2, 19):
        fresh = PackedStream(tokens, context=8, batch=4, seed=1).batch(index)
        for ours, theirs in zip(fields(seen[index]), fields(fresh), strict=True):
            assert torch.equal(ours, theirs)


def test_each_epoch_and_each_seed_has_an_order_of_its_own() -> None:
    tokens = numbered(*[7] * 50)
    one, other = (PackedStream(tokens, context=8, batch=50, seed=seed) for seed in (0, 1))
    orders = [one.batch(0), one.batch(1), other.batch(0)]
    firsts = [tuple(batch.inputs[:, 1].tolist()) for batch in orders]
    assert len(set(firsts)) == 3
    assert len({tuple(sorted(first)) for first in firsts}) == 1


def test_which_documents_share_a_row_changes_from_epoch_to_epoch() -> None:
    tokens = numbered(*[3] * 40)
    stream = PackedStream(tokens, context=8, batch=20, seed=0)
    together = [{frozenset(row[[1, 5]].tolist()) for row in stream.batch(epoch).inputs} for epoch in (0, 1)]
    assert stream.rows_per_epoch == 20
    assert together[0] != together[1]


def test_rows_are_not_sorted_by_length() -> None:
    stream = PackedStream(numbered(*range(1, 31)), context=40, batch=30, seed=0, packing=False)
    lengths = [stream.batch(epoch).target_mask.sum(dim=1).tolist() for epoch in (0, 1)]
    assert sorted(lengths[0]) == sorted(lengths[1]) == list(range(2, 32))
    assert lengths[0] != lengths[1]


def test_a_batch_may_run_on_into_the_next_epoch() -> None:
    tokens = numbered(7, 7, 7)
    stream = PackedStream(tokens, context=8, batch=2, seed=0)
    single = PackedStream(tokens, context=8, batch=1, seed=0)
    rows = torch.cat([single.batch(row).inputs for row in range(6)])
    assert torch.equal(torch.cat([stream.batch(index).inputs for index in range(3)]), rows)
    assert sorted(rows[:3, 1].tolist()) == sorted(rows[3:, 1].tolist()) == [1000, 2000, 3000]


def test_the_row_order_is_pinned() -> None:
    """Runs of one release must be resumable, and comparable, with the next."""
    assert permutation(8, 0, "rows", 0).tolist() == [6, 1, 5, 2, 3, 0, 7, 4]


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(1, 10), min_size=1, max_size=40))
def test_bins_hold_what_fits_and_no_bin_could_be_emptied_into_another(lengths: list[int]) -> None:
    ordered = np.array(sorted(lengths, reverse=True))
    bins = best_fit(ordered, room=10)
    loads = np.bincount(bins, weights=ordered)
    assert loads.max() <= 10
    assert (loads > 0).all()
    assert (np.sort(loads)[:2].sum() > 10) or len(loads) == 1


def test_best_fit_takes_the_tightest_bin() -> None:
    assert best_fit(np.array([10, 7, 6, 3, 2]), room=10).tolist() == [0, 1, 2, 1, 2]


def test_sizes_that_make_no_batch_are_refused() -> None:
    with pytest.raises(UserError, match="1 row of 2 tokens"):
        PackedStream(numbered(3), context=1, batch=1, seed=0)


def test_the_share_of_filled_positions_and_batches_per_epoch_are_told() -> None:
    stream = PackedStream(numbered(7, 3, 2), context=8, batch=2, seed=0)
    assert (stream.rows_per_epoch, stream.targets_per_epoch) == (2, 15)
    assert stream.filled == 15 / 16
    assert (stream.batches(1), stream.batches(1.5)) == (1, 2)
