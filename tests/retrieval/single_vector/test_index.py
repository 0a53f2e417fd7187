"""The ScaNN index finds what brute force finds, and never a hit that is none."""

import shutil

import numpy as np
import pytest

from tests.corpus.page_stores import needs_scann
from tests.retrieval.single_vector.stored import load, save
from vrag_jax.corpus.artifact import ArtifactError, read_artifact, write_artifact
from vrag_jax.retrieval.single_vector.index import IndexConfig, ScannIndex

EXACT = IndexConfig()
QUANTISED = IndexConfig(exact_below=100)
TREE = IndexConfig(exact_below=100, tree_from=100, leaves_searched=0.3)


def clustered(count, dims, seed=0):
    """Unit vectors around 20 centres, as pages of documents lie."""
    rng = np.random.default_rng(seed)
    centres = np.random.default_rng(99).normal(size=(20, dims))
    vectors = centres[rng.integers(20, size=count)] + 0.4 * rng.normal(size=(count, dims))
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


def names(count):
    return [f'page {i}' for i in range(count)]


def brute_force(vectors, queries, k):
    scores = queries.astype(np.float64) @ vectors.T.astype(np.float64)
    order = np.argsort(-scores, axis=1)[:, :k]
    return order, np.take_along_axis(scores, order, axis=1)


@pytest.mark.parametrize('count, dims, k', [(1, 3, 1), (2, 1, 2), (39, 40, 10), (3000, 64, 100)])
def test_below_the_size_of_a_tree_it_equals_brute_force(count, dims, k):
    vectors = clustered(count, dims) * np.linspace(0.5, 2, count, dtype=np.float32)[:, None]
    queries = clustered(25, dims, seed=1)
    index = ScannIndex.build(vectors, names(count))
    assert index.exact
    ids, scores = index.search_batched(queries, k)
    order, expected = brute_force(vectors, queries, k)
    assert ids == [[f'page {i}' for i in row] for row in order]
    np.testing.assert_allclose(scores, expected, atol=1e-5)


@pytest.mark.parametrize('copies', [2, 3, 40])
def test_equal_hits_are_in_the_order_of_the_ids_however_many_queries_there_are(copies):
    vectors = np.tile(clustered(50, 32), (copies, 1))
    queries = clustered(30, 32, seed=1)
    index = ScannIndex.build(vectors, names(len(vectors)))
    together, _ = index.search_batched(queries, 10)
    for query, ids in zip(queries, together, strict=True):
        scores = vectors[:50].astype(np.float64) @ query
        order = sorted(range(len(vectors)), key=lambda row: (-scores[row % 50], row))
        assert ids == [f'page {row}' for row in order[:10]]
        assert index.search_batched(query[None], 10)[0] == [ids]


@needs_scann
@pytest.mark.parametrize('config', [QUANTISED, TREE], ids=['quantised', 'tree'])
def test_above_it_nearly_all_of_the_best_are_found_with_exact_scores(config):
    vectors, queries = clustered(2000, 32), clustered(50, 32, seed=1)
    index = ScannIndex.build(vectors, names(2000), config=config)
    assert not index.exact
    ids, scores = index.search_batched(queries, 10)
    order, _ = brute_force(vectors, queries, 10)
    found = [len(set(row) & {f'page {i}' for i in best}) / 10
             for row, best in zip(ids, order, strict=True)]
    assert np.mean(found) >= 0.95
    for query, row, row_scores in zip(queries, ids, scores, strict=True):
        rows = [int(name.split()[1]) for name in row]
        np.testing.assert_allclose(row_scores, vectors[rows] @ query, atol=1e-4)


@pytest.mark.parametrize('config', [EXACT, QUANTISED, TREE], ids=['exact', 'quantised', 'tree'])
@pytest.mark.parametrize('k', [1, 119, 120, 500])
def test_no_hit_is_padding(config, k):
    # ScaNN pads with row 0 and NaN if k exceeds what the searched leaves hold.
    index = ScannIndex.build(clustered(120, 8), names(120), config=config)
    ids, scores = index.search_batched(clustered(30, 8, seed=1), k)
    for row, row_scores in zip(ids, scores, strict=True):
        assert 1 <= len(row) == len(row_scores) <= min(k, 120)
        assert len(set(row)) == len(row)
        assert np.isfinite(row_scores).all() and (np.diff(row_scores) <= 0).all()


def test_no_queries_give_no_hits():
    index = ScannIndex.build(clustered(5, 4), names(5))
    assert index.search_batched(np.zeros((0, 4), np.float32), 3) == ([], [])


@pytest.mark.parametrize('config', [EXACT, QUANTISED, TREE], ids=['exact', 'quantised', 'tree'])
def test_a_moved_index_finds_the_same(config, tmp_path):
    index = ScannIndex.build(clustered(300, 16), names(300), 'some encoder', config)
    save(index, tmp_path / 'here')
    shutil.move(tmp_path / 'here', tmp_path / 'there')
    read = load(tmp_path / 'there')
    assert (read.ids, read.dims, read.encoder, read.config, read.exact) == (
        index.ids, 16, 'some encoder', config, index.exact)
    queries = clustered(20, 16, seed=1)
    for k in (1, 400):
        (ids, scores), (read_ids, read_scores) = (
            i.search_batched(queries, k) for i in (index, read))
        assert read_ids == ids
        for a, b in zip(scores, read_scores, strict=True):
            np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize('config', [EXACT, TREE], ids=['exact', 'tree'])
def test_a_corrupt_file_is_named(config, tmp_path):
    save(ScannIndex.build(clustered(150, 8), names(150), config=config), tmp_path)
    file = max(tmp_path.glob('data-*/**/*.npy'), key=lambda p: p.stat().st_size)
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(ArtifactError, match=f'{file.name}: has a wrong SHA-256'):
        load(tmp_path)


@needs_scann
@pytest.mark.parametrize('config, message', [
    (EXACT, r'vectors\.npy: expected \(149, 8\), got \(150, 8\)'),
    (TREE, 'holds 150 vectors for 149 ids')], ids=['exact', 'tree'])
def test_ids_that_do_not_fit_are_refused(config, message, tmp_path):
    save(ScannIndex.build(clustered(150, 8), names(150), config=config), tmp_path)
    folder, fields = read_artifact(tmp_path, 'scann_index')
    with pytest.raises(ArtifactError, match=message):
        ScannIndex.from_files(folder, {**fields, 'ids': fields['ids'][1:]})
    with pytest.raises(ArtifactError, match='dims'):
        ScannIndex.from_files(folder, {k: v for k, v in fields.items() if k != 'dims'})


@needs_scann
def test_a_pickle_is_never_loaded(tmp_path):
    index = ScannIndex.build(clustered(150, 8), names(150), config=TREE)

    def with_pickle(folder):
        fields = index.write_files(folder)
        (folder / 'scann' / 'scann_docids.pkl').write_bytes(b'cbuiltins\nexit\n(tR.')
        return fields

    write_artifact(tmp_path, 'scann_index', with_pickle)
    with pytest.raises(ArtifactError, match='holds a pickle'):
        load(tmp_path)


def broken(row, value):
    vectors = clustered(5, 4)
    vectors[row, 1] = value
    return vectors


@pytest.mark.parametrize('vectors, ids, message', [
    (broken(3, np.nan), names(5), "vector of 'page 3' is not finite"),
    (broken(0, np.inf), names(5), "vector of 'page 0' is not finite"),
    (clustered(5, 4), ['a', 'b', 'c', 'b', 'd'], "id 'b' stands twice"),
    (clustered(5, 4), names(4), '4 ids for 5 vectors'),
    (clustered(5, 4)[0], names(4), r'expected \[N, D\]'),
    (np.zeros((0, 4)), [], r'N, D > 0'),
])
def test_vectors_that_cannot_be_searched_are_refused(vectors, ids, message):
    with pytest.raises(ValueError, match=message):
        ScannIndex.build(vectors, ids)


def test_queries_that_do_not_fit_are_refused():
    index = ScannIndex.build(clustered(5, 4), names(5))
    with pytest.raises(ValueError, match=r'expected \[Q, 4\]'):
        index.search_batched(clustered(2, 3), 1)
    with pytest.raises(ValueError, match='k must be positive'):
        index.search_batched(clustered(2, 4), 0)
    with pytest.raises(ValueError, match='not finite'):
        index.search_batched(broken(0, np.nan), 1)


@pytest.mark.parametrize('fields', [{'exact_below': 5, 'tree_from': 4}, {'leaves_searched': 0.0},
                                    {'reorder': 0}])
def test_a_config_that_cannot_work_names_the_field(fields):
    with pytest.raises(ValueError, match=list(fields)[-1]):
        IndexConfig(**fields)
