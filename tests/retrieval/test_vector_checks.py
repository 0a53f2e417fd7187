"""Pages that look the same to a search are found; too many of them are an error."""

import numpy as np
import pytest

from vrag_jax.retrieval.vector_checks import (
    SharedVectors,
    digest_of,
    shared_vectors,
    tell_groups,
)

IDS = ('a', 'b', 'c', 'd')


def vectors():
    return np.random.default_rng(0).normal(size=(4, 8)).astype(np.float32)


def test_different_vectors_are_fine():
    assert shared_vectors(vectors(), IDS, IDS) == []


def test_pages_of_different_content_with_the_same_vector_are_found():
    same = vectors()
    same[2] = same[0] + 1e-6
    assert shared_vectors(same, IDS, IDS) == [('a', 'c')]
    # Pages of the same content have the same vectors.
    assert shared_vectors(same, IDS, ('x', 'y', 'x', 'z')) == []


def test_signs_of_zero_are_no_difference():
    zeros = vectors()
    zeros[0], zeros[1] = 0.0, -0.0
    assert shared_vectors(zeros, IDS, IDS) == [('a', 'b')]


def test_an_embedder_that_gives_all_pages_one_vector_is_refused():
    same = np.ones((4, 8), np.float32)
    with pytest.raises(ValueError, match="3 or more of 4 pages .* e.g. 'a' and 'b'"):
        shared_vectors(same, IDS, IDS)
    assert shared_vectors(same, IDS, ('x',) * 4) == []


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
