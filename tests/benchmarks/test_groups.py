"""Groups on their way through a file: what is read is what was written."""

import dataclasses

import numpy as np
import pytest

from benchmarks import groups
from vrag_jax.data.sequences import TokenSequence
from vrag_jax.models.common.images import ProcessedImage

PAGE = ProcessedImage('page', np.arange(12, dtype=np.uint8).reshape(4, 3), (1, 2, 2), 1)
CROP = ProcessedImage('crop', -np.arange(24, dtype=np.uint8).reshape(8, 3), (1, 2, 4), 2)


def sequence(seed, images, length):
    rng = np.random.default_rng(seed)
    return TokenSequence(
        tokens=rng.integers(0, 9, length).astype(np.int32),
        loss_mask=(rng.random(length) < 0.5).astype(np.float32),
        position_ids=rng.integers(0, 9, (3, length)).astype(np.int32),
        image_index=rng.integers(-1, 2, length).astype(np.int32), images=images,
        advantages=rng.normal(size=length).astype(np.float32),
        old_logprobs=rng.normal(size=length).astype(np.float32))


SEQUENCES = [sequence(0, (PAGE,), 5), sequence(1, (), 3), sequence(2, (CROP, PAGE), 8)]


def test_a_file_gives_back_what_was_written(tmp_path):
    groups.save_sequences(tmp_path / 'groups.npz', SEQUENCES)
    read = groups.load_sequences(tmp_path / 'groups.npz')
    for before, after in zip(SEQUENCES, read, strict=True):
        for field in ('tokens', 'loss_mask', 'position_ids', 'image_index', 'advantages',
                      'old_logprobs'):
            wanted, got = getattr(before, field), getattr(after, field)
            assert got.dtype == wanted.dtype
            np.testing.assert_array_equal(got, wanted)
        assert [image.key for image in after.images] == [image.key for image in before.images]
        for wanted, got in zip(before.images, after.images, strict=True):
            assert got.patches.dtype == np.uint8
            np.testing.assert_array_equal(got.patches, wanted.patches)
            assert (got.grid_thw, got.tokens) == (wanted.grid_thw, wanted.tokens)


def test_sequences_without_advantages_are_refused(tmp_path):
    plain = dataclasses.replace(SEQUENCES[0], advantages=None)
    with pytest.raises(ValueError, match='advantages'):
        groups.save_sequences(tmp_path / 'groups.npz', [plain])


def test_facts_count_by_hand():
    assert groups.facts(SEQUENCES) == {
        'trajectories': 3, 'tokens': 16, 'longest': 8, 'images': 3, 'unique_images': 2,
        'trained_tokens': int(sum(s.loss_mask[1:].sum() for s in SEQUENCES))}


def test_values_are_given_to_each_sequence():
    values = [np.full(len(s), n, np.float32) for n, s in enumerate(SEQUENCES)]
    given = groups.with_values(SEQUENCES, ref_logprobs=values)
    assert [s.ref_logprobs[0] for s in given] == [0, 1, 2]
    assert [s.tokens is t.tokens for s, t in zip(given, SEQUENCES, strict=True)] == [True] * 3
