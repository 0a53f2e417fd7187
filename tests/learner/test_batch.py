"""Packed micro-batches hold every sequence once, shifted to what each token predicts."""

import dataclasses

import numpy as np
import pytest

from vrag_jax.learner.batch import BatchLayout, fit_rows, micro_batches
from vrag_jax.models.common.patch_packing import count_windows

LAYOUT = BatchLayout(rows=2, length=80, windows=6, span=2)


def brute_force(batch, sequence, row, start):
    """Checks one sequence of a batch token by token."""
    last = len(sequence) - 1
    for i in range(len(sequence)):
        at = row, start + i
        assert batch.tokens[at] == sequence.tokens[i]
        assert tuple(batch.position_ids[:, *at]) == tuple(sequence.position_ids[:, i])
        assert (batch.image_index[at] >= 0) == (sequence.image_index[i] >= 0)
        # What is predicted at a token is the next one; at the last token nothing is.
        assert batch.targets[at] == (sequence.tokens[i + 1] if i < last else 0)
        assert batch.weights[at] == (sequence.loss_mask[i + 1] if i < last else 0)
        for name in ('advantages', 'old_logprobs', 'ref_logprobs'):
            want = getattr(sequence, name)[i + 1] if i < last else 0
            assert getattr(batch, name)[at] == want


def test_every_sequence_is_in_one_place(sequences, model_config):
    placed = []
    for micro in micro_batches(sequences, LAYOUT, model_config):
        covered = np.zeros((LAYOUT.rows, LAYOUT.length), bool)
        for place in micro.placements:
            sequence = sequences[place.sequence]
            assert place.length == len(sequence)
            brute_force(micro.batch, sequence, place.row, place.start)
            span = (place.row, slice(place.start, place.start + place.length))
            assert not covered[span].any()
            segments = micro.batch.segment_ids[span]
            assert segments[0] > 0 and (segments == segments[0]).all()
            assert (micro.batch.segment_ids[place.row] == segments[0]).sum() == place.length
            covered[span] = True
            placed.append(place.sequence)
        assert (micro.batch.segment_ids[~covered] == 0).all()
        assert (micro.batch.weights[~covered] == 0).all()
        assert (micro.batch.image_index[~covered] == -1).all()
    assert sorted(placed) == list(range(len(sequences)))


def test_all_micro_batches_have_the_same_shapes(sequences, model_config):
    shapes = {
        tuple(np.shape(leaf) for leaf in (
            *(getattr(m.batch, f.name) for f in dataclasses.fields(m.batch) if f.name != 'images'),
            m.batch.images.pixels, m.batch.images.order))
        for m in micro_batches(sequences, LAYOUT, model_config)}
    assert len(shapes) == 1


def encoded_pixels(packed, row):
    """Patches of a merged row of the features, as the vision tower would take them."""
    area = 4
    flat = packed.pixels.reshape(-1, area, packed.pixels.shape[-1])
    return flat[packed.order[row]]


def test_image_rows_point_to_the_images_own_features(sequences, model_config):
    seen = 0
    for micro in micro_batches(sequences, LAYOUT, model_config):
        for place in micro.placements:
            sequence = sequences[place.sequence]
            patches = [image.patches.reshape(image.tokens, 4, -1)
                       for image in sequence.images]
            want = iter(np.concatenate(patches)) if patches else iter(())
            rows = micro.batch.image_index[place.row, place.start : place.start + place.length]
            for row in rows[rows >= 0]:
                np.testing.assert_array_equal(
                    encoded_pixels(micro.batch.images, row), next(want))
                seen += 1
            assert next(want, None) is None
    assert seen == sum(image.tokens for s in sequences for image in s.images)


def test_an_image_that_several_sequences_show_is_packed_once(make_sequence, model_config):
    same = [make_sequence(seed, (0,)) for seed in range(4)]
    micro, = micro_batches(same, LAYOUT, model_config)
    assert (micro.batch.images.order >= 0).sum() == same[0].images[0].tokens


def test_rows_of_a_feature_cache_are_used_as_given(sequences, images, model_config):
    rows_of = {image.key: 100 * i + np.arange(image.tokens)[::-1]
               for i, image in enumerate(images)}
    for micro in micro_batches(sequences, LAYOUT, model_config, lambda _: rows_of):
        assert micro.batch.images is None
        for place in micro.placements:
            sequence = sequences[place.sequence]
            want = [row for image in sequence.images for row in rows_of[image.key].tolist()]
            rows = micro.batch.image_index[place.row, place.start : place.start + place.length]
            assert rows[rows >= 0].tolist() == want


def test_scatter_takes_values_back_to_the_tokens_they_are_about(sequences, model_config):
    got = {}
    for micro in micro_batches(sequences, LAYOUT, model_config):
        # The ids of the predicted tokens stand in for their log-probs.
        got |= micro.scatter(micro.batch.targets.astype(np.float32), sequences)
    for index, sequence in enumerate(sequences):
        np.testing.assert_array_equal(got[index], [0, *sequence.tokens[1:]])


def test_images_past_the_windows_begin_a_new_micro_batch(make_sequence, model_config):
    # Each row's image takes two windows: two rows fill four, the third does not fit.
    layout = BatchLayout(rows=8, length=80, windows=4, span=2)
    distinct = []
    for seed in range(5):
        sequence = make_sequence(seed, (2,), text=40)
        image = dataclasses.replace(sequence.images[0], key=f'own{seed}')
        distinct.append(dataclasses.replace(sequence, images=(image,)))
    batches = list(micro_batches(distinct, layout, model_config))
    assert [len(micro.placements) for micro in batches] == [2, 2, 1]
    for micro in batches:
        grids = {i.key: i.grid_thw for p in micro.placements for i in distinct[p.sequence].images}
        assert count_windows(grids.values(), model_config.vision) <= layout.windows
    # With a cache there is no such limit.
    rows = {f'own{seed}': 24 * seed + np.arange(24) for seed in range(5)}
    assert len(list(micro_batches(distinct, layout, model_config, lambda _: rows))) == 1


def test_images_of_one_row_that_do_not_fit_are_refused(make_sequence, model_config):
    layout = BatchLayout(rows=2, length=80, windows=1, span=1)
    with pytest.raises(ValueError, match='windows'):
        list(micro_batches([make_sequence(0, (2,))], layout, model_config))


def test_a_sequence_longer_than_a_row_is_refused(make_sequence, model_config):
    sequence = make_sequence(0, (), text=30)
    with pytest.raises(ValueError, match='sequence 1 has 30 tokens.*length = 29'):
        list(micro_batches([make_sequence(1), sequence], BatchLayout(length=29), model_config))
    exact = BatchLayout(rows=1, length=30)
    assert len(list(micro_batches([sequence], exact, model_config))) == 1


def test_a_small_micro_batch_may_have_fewer_rows(make_sequence, model_config):
    layout = BatchLayout(rows=8, length=20, windows=4, span=2, row_buckets=(4, 2))
    assert [layout.size_for(n)[0] for n in (1, 2, 3, 4, 5, 8)] == [2, 2, 4, 4, 8, 8]
    assert [layout.next_rows(n) for n in (1, 2, 3, 4, 7, 8, 99)] == [2, 2, 2, 4, 4, 8, 8]
    assert [layout.positions(n) // 20 for n in (1, 5, 8, 11)] == [2, 6, 8, 12]
    # Each sequence fills a row: eleven make micro-batches of eight, two and one rows.
    full = [make_sequence(seed, (), text=20) for seed in range(11)]
    batches = list(micro_batches(full, layout, model_config))
    assert [micro.batch.tokens.shape for micro in batches] == [(8, 20), (2, 20), (2, 20)]
    assert [micro.positions for micro in batches] == [160, 40, 40]
    for micro in batches:
        for place in micro.placements:
            brute_force(micro.batch, full[place.sequence], place.row, place.start)


def test_fewer_rows_may_go_with_fewer_windows(make_sequence, model_config):
    layout = BatchLayout(
        rows=8, length=20, windows=6, span=1, row_buckets=(4, 2), window_buckets=(5, 1))
    sizes = [layout.size_for(*need) for need in ((1, 0), (2, 2), (4, 5), (4, 6), (5, 1), (8, 6))]
    assert sizes == [(2, 1), (4, 5), (4, 5), (8, 6), (8, 6), (8, 6)]
    # Two rows with one window each do not fit into the smallest size.
    pair = [make_sequence(0, (0,), text=10), make_sequence(1, (1,), text=10)]
    (micro,) = micro_batches(pair, layout, model_config)
    assert micro.batch.tokens.shape == (4, 20) and len(micro.batch.images.pixels) == 5
    for place in micro.placements:
        brute_force(micro.batch, pair[place.sequence], place.row, place.start)


@pytest.mark.parametrize(('rows', 'windows'), [((4,), (1, 2)), ((4,), (0,)), ((4,), (9,))])
def test_fewer_windows_go_with_fewer_rows(rows, windows):
    with pytest.raises(ValueError, match='window_buckets'):
        BatchLayout(rows=8, windows=6, row_buckets=rows, window_buckets=windows)


@pytest.mark.parametrize('fewer', [(8,), (0,), (2, 9)])
def test_fewer_rows_are_fewer(fewer):
    with pytest.raises(ValueError, match='row_buckets'):
        BatchLayout(rows=8, row_buckets=fewer)


@pytest.mark.parametrize('field', ['rows', 'length', 'windows', 'span'])
def test_empty_layouts_are_refused(field):
    with pytest.raises(ValueError, match=field):
        BatchLayout(**{field: 0})


def test_the_length_with_the_least_padding_is_taken():
    layout = BatchLayout(rows=2, length=120, length_buckets=(40, 60), row_buckets=(1,), span=1)
    assert [(one.length, one.rows, one.row_buckets) for one in layout.lengths()] == [
        (40, 6, (3,)), (60, 4, (2,)), (120, 2, (1,))]
    for lengths, want in ((6 * [40], 40), (6 * [60], 60), (8 * [30], 60), (4 * [61], 120),
                          ([100, 20, 70, 50], 120)):
        one, rows = fit_rows(lengths, layout)
        assert one.length == want, lengths
        assert sorted(i for row in rows for i in row) == list(range(len(lengths)))
        assert max(sum(lengths[i] for i in row) for row in rows) <= want
    with pytest.raises(ValueError, match='length_buckets'):
        BatchLayout(length=120, length_buckets=(50,))
