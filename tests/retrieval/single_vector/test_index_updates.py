"""An index of changed vectors finds what one built of them finds; filters leave enough hits."""

import dataclasses

import numpy as np
import pytest

from tests.corpus.page_stores import needs_scann
from tests.retrieval.single_vector.stored import load, save
from vrag_jax.retrieval.single_vector.index import IndexConfig, ScannIndex

EXACT = IndexConfig()
QUANTISED = IndexConfig(exact_below=100, compact_share=0.5)
TREE = IndexConfig(exact_below=100, tree_from=100, leaves_searched=0.5, compact_share=0.5)
ALL = pytest.mark.parametrize('config', [EXACT, QUANTISED, TREE],
                              ids=['exact', 'quantised', 'tree'])


def clustered(count, dims=32, seed=0):
    rng = np.random.default_rng(seed)
    centres = np.random.default_rng(99).normal(size=(20, dims))
    vectors = centres[rng.integers(20, size=count)] + 0.4 * rng.normal(size=(count, dims))
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


def names(start, stop):
    return [f'v{i}' for i in range(start, stop)]


QUERIES = clustered(40, seed=1)


def best(vectors, ids, k=10):
    order = np.argsort(-(QUERIES @ vectors.T), axis=1)[:, :k]
    return [[ids[row] for row in rows] for rows in order]


def recall(found, expected):
    return np.mean([len(set(a) & set(b)) / len(b) for a, b in zip(found, expected, strict=True)])


@ALL
def test_added_vectors_are_found_and_deleted_ones_are_not(config):
    vectors, more = clustered(1000), clustered(80, seed=2)
    index = ScannIndex.build(vectors, names(0, 1000), 'e', config)
    gone = {f'v{i}' for i in range(0, 1000, 9)}
    changed = index.updated(more, names(1000, 1080), gone)
    again = changed.updated(np.zeros((0, 32)), [], ['v1001', 'v1'])
    for state, missing in ((index, set()), (changed, gone), (again, {*gone, 'v1', 'v1001'})):
        ids = [i for i in names(0, 1080 if missing else 1000) if i not in missing]
        rows = [int(i[1:]) for i in ids]
        assert state.ids == tuple(ids) and state.encoder == 'e'
        found, scores = state.search_batched(QUERIES, 10)
        both = np.concatenate([vectors, more])
        assert recall(found, best(both[rows], ids)) >= (1 if config is EXACT else 0.93)
        for query, row, values in zip(QUERIES, found, scores, strict=True):
            assert len(set(row)) == 10 and set(row) <= set(ids)
            np.testing.assert_allclose(values, both[[int(i[1:]) for i in row]] @ query, atol=1e-4)


@ALL
def test_the_last_vector_is_not_taken_for_a_deleted_one(config):
    # ScaNN's own `delete` gives the last row the number of the deleted one.
    vectors = clustered(300)
    index = ScannIndex.build(vectors, names(0, 300), config=config).updated(
        np.zeros((0, 32)), [], ['v0'])
    found, _ = index.search_batched(vectors[[299, 1, 0]], 1)
    assert found[:2] == [['v299'], ['v1']] and found[2] != ['v0']


@ALL
def test_a_replaced_vector_is_found_where_it_is_now(config):
    vectors = clustered(300)
    index = ScannIndex.build(vectors, names(0, 300), config=config)
    replaced = index.updated(-vectors[:1], ['v0'], ['v0'])
    assert replaced.search_batched(-vectors[:1], 1)[0] == [['v0']]
    assert 'v0' not in replaced.search_batched(vectors[:1], 50)[0][0]


@ALL
def test_an_updated_index_is_read_back_as_it_was(config, tmp_path):
    index = ScannIndex.build(clustered(400), names(0, 400), 'e', config).updated(
        clustered(30, seed=3), names(400, 430), names(5, 25))
    save(index, tmp_path)
    read = load(tmp_path)
    assert (read.ids, read.recall) == (index.ids, index.recall)
    allowed = np.random.default_rng(0).random(410) < 0.4
    for mask in (None, allowed):
        for a, b in zip(index.search_batched(QUERIES, 20, mask),
                        read.search_batched(QUERIES, 20, mask), strict=True):
            np.testing.assert_array_equal(np.concatenate(a), np.concatenate(b))
    found = read.updated(clustered(300, seed=4), names(500, 800)).search_batched(QUERIES, 10)[0]
    assert any(int(i[1:]) >= 500 for row in found for i in row)  # Built anew from the file.


@needs_scann
@pytest.mark.parametrize('keep', [True, False], ids=['kept', 'not kept'])
def test_many_changes_build_anew(keep):
    config = dataclasses.replace(QUANTISED, compact_share=0.1)
    vectors, more = clustered(300), clustered(40, seed=2)
    index = ScannIndex.build(vectors, names(0, 300), '', config, keep_vectors=keep)
    few = index.updated(more[:20], names(300, 320))
    assert len(few._added) == 20 and few.recall == index.recall
    whole = np.concatenate([vectors, more])
    if not keep:
        with pytest.raises(ValueError, match='has not kept its vectors'):
            few.updated(more[20:], names(320, 340))
    many = few.updated(more[20:], names(320, 340), all_vectors=lambda: whole)
    assert len(many._added) == 0 and many._base_size == 340
    assert recall(many.search_batched(QUERIES, 10)[0], best(whole, names(0, 340))) >= 0.95


@needs_scann
def test_an_index_changes_between_exact_and_quantised():
    config = dataclasses.replace(QUANTISED, exact_below=310)
    index = ScannIndex.build(clustered(300), names(0, 300), config=config)
    larger = index.updated(clustered(20, seed=2), names(300, 320))
    smaller = larger.updated(np.zeros((0, 32)), [], names(0, 20))
    assert (index.exact, larger.exact, smaller.exact) == (True, False, True)
    assert len(smaller.search_batched(QUERIES, 400)[0][0]) == 300


@ALL
@pytest.mark.parametrize('keep', [True, False], ids=['kept', 'not kept'])
@pytest.mark.parametrize('share', [0.0, 0.01, 0.1, 0.6, 1.0])
def test_filters_leave_k_hits_where_so_many_are_allowed(config, keep, share):
    vectors = clustered(1500)
    index = ScannIndex.build(vectors, names(0, 1500), config=config, keep_vectors=keep).updated(
        clustered(20, seed=7), names(1500, 1520), ['v3'])
    both = np.concatenate([vectors, clustered(20, seed=7)])
    allowed = np.random.default_rng(0).random(1519) < share
    ids = [i for i, fits in zip(index.ids, allowed, strict=True) if fits]
    found, _ = index.search_batched(QUERIES, 10, allowed)
    assert all(len(row) == min(10, len(ids)) and set(row) <= set(ids) for row in found)
    if ids:
        expected = best(both[[int(i[1:]) for i in ids]], ids)
        assert recall(found, expected) >= 0.9


def test_filters_of_other_shapes_are_refused():
    index = ScannIndex.build(clustered(30), names(0, 30))
    for mask in (np.ones(29, bool), np.ones(30, int)):
        with pytest.raises(ValueError, match=r'allowed: expected bool \[30\]'):
            index.search_batched(QUERIES, 3, mask)


@pytest.mark.parametrize('ids, deleted, message', [
    (['v5'], [], "id 'v5' stands twice"), (['a'], ['b'], "id 'b' is not in the index"),
    (['a', 'b'], [], '2 ids for 1 vectors')])
def test_changes_that_cannot_be_are_refused(ids, deleted, message):
    index = ScannIndex.build(clustered(30), names(0, 30))
    with pytest.raises(ValueError, match=message):
        index.updated(clustered(1), ids, deleted)
    with pytest.raises(ValueError, match='not finite'):
        index.updated(np.full((1, 32), np.nan), ['a'])
    with pytest.raises(ValueError, match='nothing would be left'):
        index.updated(np.zeros((0, 32)), [], names(0, 30))


@needs_scann
def test_recall_is_measured_against_exact_search():
    vectors = clustered(2000)
    # One leaf of 45: most of the best lie elsewhere.
    poor = dataclasses.replace(TREE, leaves_searched=0.01)
    for config, least, most in ((QUANTISED, 0.97, 1), (poor, 0.1, 0.9)):
        index = ScannIndex.build(vectors, names(0, 2000), config=config)
        assert index.recall == {**index.recall, 'k': 10, 'queries': 256, 'source': 'perturbed'}
        assert least <= index.recall['recall'] <= most
        given = ScannIndex.build(vectors, names(0, 2000), config=config, queries=QUERIES)
        expected = recall(given.search_batched(QUERIES, 10)[0], best(vectors, names(0, 2000)))
        assert given.recall['recall'] == pytest.approx(expected)
        assert given.recall['source'] == 'given' and given.recall['queries'] == 40
    assert ScannIndex.build(vectors, names(0, 2000)).recall is None
    none = dataclasses.replace(QUANTISED, recall_queries=0)
    assert ScannIndex.build(vectors, names(0, 2000), config=none).recall is None


@pytest.mark.parametrize('dtype', ['float32', 'bfloat16', 'int8', ''])
def test_vectors_for_scoring_again_may_be_short_or_missing(dtype, tmp_path):
    config = dataclasses.replace(QUANTISED, reorder_dtype=dtype)
    vectors = clustered(2000)
    save(ScannIndex.build(vectors, names(0, 2000), config=config, keep_vectors=False), tmp_path)
    index = load(tmp_path)
    # Scores of quantised vectors alone order the best ones badly, but hold them.
    found, scores = index.search_batched(QUERIES, 10 if dtype else 150)
    assert recall(found, best(vectors, names(0, 2000))) >= 0.9
    tolerance = {'float32': 1e-5, 'bfloat16': 1e-2, 'int8': 2e-2, '': 0.2}[dtype]
    exact = [vectors[[int(i[1:]) for i in row]] @ q for row, q in zip(found, QUERIES, strict=True)]
    np.testing.assert_allclose(scores, exact, atol=tolerance)


def test_many_queries_equal_few():
    # Many are searched by several threads.
    index = ScannIndex.build(clustered(3000), names(0, 3000), config=TREE)
    queries = clustered(300, seed=5)
    together, _ = index.search_batched(queries, 5)
    parts = [index.search_batched(queries[i:i + 20], 5)[0] for i in range(0, 300, 20)]
    assert together == [row for part in parts for row in part]


@pytest.mark.parametrize('fields', [{'block_dims': 0}, {'reorder_dtype': 'float16'},
                                    {'compact_share': -0.1}, {'recall_queries': -1}])
def test_a_config_that_cannot_work_names_the_field(fields):
    with pytest.raises(ValueError, match=list(fields)[-1]):
        IndexConfig(**fields)


@needs_scann
def test_more_leaves_and_candidates_find_more_without_building():
    vectors = clustered(2000)
    poor = dataclasses.replace(TREE, leaves_searched=0.01, reorder=10)
    index = ScannIndex.build(vectors, names(0, 2000), config=poor)
    good = index.with_config(dataclasses.replace(poor, leaves_searched=1.0, reorder=500))
    expected = best(vectors, names(0, 2000))
    assert recall(index.search_batched(QUERIES, 10)[0], expected) < 0.9
    assert recall(good.search_batched(QUERIES, 10)[0], expected) >= 0.99
    with pytest.raises(ValueError, match='leaves_searched, reorder, .* can differ'):
        index.with_config(dataclasses.replace(poor, block_dims=4))
