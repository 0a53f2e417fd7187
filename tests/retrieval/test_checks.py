"""Vectors that cannot be right are refused by page; pages that look the same are found."""

import numpy as np
import pytest

from vrag_jax.retrieval.checks import (
    SharedVectors,
    check_vectors,
    digest_of,
    tell_groups,
)

IDS = ('a', 'b', 'c', 'd')


def vectors(rows=4, dims=8):
    return np.random.default_rng(0).normal(size=(rows, dims)).astype(np.float32)


def test_different_vectors_are_fine():
    assert check_vectors(vectors(), IDS, IDS, 8) == []
    several = vectors(10)
    assert check_vectors(several, IDS, IDS, 8, np.array([0, 3, 4, 9, 10])) == []


def test_pages_of_different_content_with_the_same_vector_are_found():
    same = vectors()
    same[2] = same[0] + 1e-6
    assert check_vectors(same, IDS, IDS, 8) == [('a', 'c')]
    # Pages of the same content have the same vectors.
    assert check_vectors(same, IDS, ('x', 'y', 'x', 'z'), 8) == []
    several = np.concatenate([same, same[:3]])
    assert check_vectors(several, ('p', 'q', 'r'), IDS[:3], 8, np.array([0, 3, 4, 7])) == [
        ('p', 'r')]
    assert check_vectors(several, ('p', 'q'), IDS[:2], 8, np.array([0, 3, 7])) == []


def test_signs_of_zero_are_no_difference():
    zeros = vectors()
    zeros[0], zeros[1] = 0.0, -0.0
    assert check_vectors(zeros, IDS, IDS, 8) == [('a', 'b')]


def test_an_embedder_that_gives_all_pages_one_vector_is_refused():
    same = np.ones((4, 8), np.float32)
    with pytest.raises(ValueError, match="3 or more of 4 pages .* e.g. 'a' and 'b'"):
        check_vectors(same, IDS, IDS, 8)
    assert check_vectors(same, IDS, IDS, 8, most_shared=1.0) == [IDS]
    assert check_vectors(same, IDS, ('x',) * 4, 8) == []


def test_what_was_embedded_is_looked_at_only_where_vectors_are_shared():
    rows, looked = vectors(), []

    def content(name, told):
        return lambda: looked.append(name) or told

    shared = SharedVectors(8)
    for name, row, told in (('a', 0, 'x'), ('b', 1, 'y'), ('c', 2, 'z'), ('d', 3, 'w')):
        shared.add(name, digest_of(rows[row:row + 1]), content(name, told))
    assert shared.groups() == [] and looked == []
    shared.add('e', digest_of(rows[1:2]), content('e', 'y'))  # What the embedder sees of b, too.
    shared.add('f', digest_of(rows[1:2]), content('f', 'v'))
    shared.add('g', digest_of(rows[:1]), content('g', 'u'))
    shared.add('h', digest_of(rows[2:3]), content('h', 't'))
    assert looked == ['b', 'e', 'f', 'a', 'g', 'c', 'h']
    assert shared.groups() == [('a', 'g'), ('b', 'f'), ('c', 'h')]  # 3 of 7.


def test_many_pages_that_look_the_same_do_not_hide_that_the_others_have_their_vectors():
    shared = SharedVectors(10)
    for number in range(8):
        shared.add(f'blank{number}', digest_of(np.ones((1, 8))), lambda: 'blank')
    shared.add('x', digest_of(np.ones((1, 8))), lambda: 'x')
    with pytest.raises(ValueError, match="2 or more of 3 pages .* 'blank0' and 'x'"):
        shared.add('y', digest_of(np.ones((1, 8))), lambda: 'y')


def test_groups_are_listed_up_to_a_length():
    assert tell_groups([('a', 'b'), ('c', 'd')]) == 'a, b; c, d'
    many = tell_groups([tuple(map(str, range(12)))] * 13)
    assert many.count('9 and 2 more pages; ') == 10 and many.endswith('; and 3 more groups')


@pytest.mark.parametrize('change, message', [
    (lambda v: v[:, :7], r'expected \[N, 8\], got \(4, 7\)'),
    (lambda v: v[0], r'expected \[N, 8\]'),
    (lambda v: v[:3], '3 rows are not those of 4 pages'),
    (lambda v: np.where(np.arange(4)[:, None] == 2, np.nan, v), "page 'c' are not finite"),
    (lambda v: np.where(np.arange(4)[:, None] == 1, np.inf, v), "page 'b' are not finite")])
def test_what_is_wrong_is_named(change, message):
    with pytest.raises(ValueError, match=message):
        check_vectors(change(vectors()), IDS, IDS, 8)


@pytest.mark.parametrize('offsets, message', [
    ([0, 1, 2, 2, 4], "page 'c' has no vector"), ([0, 1, 2, 3, 5], 'rows are not those'),
    ([1, 2, 3, 4, 4], 'rows are not those'), ([0, 4], 'rows are not those')])
def test_offsets_must_be_those_of_the_pages(offsets, message):
    with pytest.raises(ValueError, match=message):
        check_vectors(vectors(), IDS, IDS, 8, np.array(offsets))
