"""MaxSim over a token store equals the sum of maxima, computed page by page."""

import re
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

from vrag_jax.corpus.artifact import ArtifactError
from vrag_jax.retrieval.late_interaction import maxsim as module
from vrag_jax.retrieval.late_interaction.maxsim import maxsim, maxsim_all
from vrag_jax.retrieval.late_interaction.token_store import TokenConfig, TokenStore, pool_grid

LENGTHS = (1, 31, 32, 33, 200, 64, 7, 90)


def unit(*shape, seed=0):
    rows = np.random.default_rng(seed).standard_normal(shape).astype(np.float32)
    return rows / np.linalg.norm(rows, axis=-1, keepdims=True)


def pages(lengths=LENGTHS, dims=16):
    return [unit(n, dims, seed=i) for i, n in enumerate(lengths)]


def by_hand(query, page):
    page = page.astype(ml_dtypes.bfloat16).astype(np.float64)
    return (query.astype(np.float64) @ page.T).max(1).sum()


QUERIES = [unit(n, 16, seed=100 + n) for n in (1, 5, 20, 33)]


@pytest.mark.parametrize('size', [1 << 24, 1 << 12], ids=['one call', 'many calls'])
def test_scores_equal_the_formula(size, monkeypatch):
    monkeypatch.setattr(module, '_CPU_BYTES', size)
    store = TokenStore.build(pages(), 16, TokenConfig())
    expected = np.array([[by_hand(query, page) for page in pages()] for query in QUERIES])
    np.testing.assert_allclose(maxsim_all(store, QUERIES, np.arange(8)), expected, atol=1e-4)
    rows = [np.array([4, 0]), np.array([], int), np.arange(8), np.array([7, 3, 3])]
    for scores, row, want in zip(maxsim(store, QUERIES, rows), expected, rows, strict=True):
        np.testing.assert_allclose(scores, row[want], atol=1e-4)


def test_scores_that_are_all_negative_are_not_taken_for_padding():
    query = unit(1, 16)
    store = TokenStore.build([-query], 16, TokenConfig())
    np.testing.assert_allclose(maxsim_all(store, [query], np.arange(1)), [[-1]], atol=1e-2)


def test_many_queries_equal_one_by_one(monkeypatch):
    monkeypatch.setattr(module, '_QUERY_TOKENS', 40)
    store = TokenStore.build(pages(), 16, TokenConfig())
    together = maxsim_all(store, QUERIES * 3, np.arange(8))
    for query, row in zip(QUERIES * 3, together, strict=True):
        np.testing.assert_allclose(maxsim_all(store, [query], np.arange(8))[0], row, atol=1e-5)


def test_binary_tokens_are_compared_by_their_signs():
    store = TokenStore.build(pages(), 16, TokenConfig(storage='binary'))
    expected = [[(query @ np.where(page > 0, 1, -1).T / 4).max(1).sum() for page in pages()]
                for query in QUERIES]
    np.testing.assert_allclose(maxsim_all(store, QUERIES, np.arange(8)), expected, atol=1e-4)
    np.testing.assert_allclose(store.page(1), np.where(pages()[1] > 0, 0.25, -0.25))
    with pytest.raises(ValueError, match='by the 8'):
        TokenStore.build(pages(dims=12), 12, TokenConfig(storage='binary'))


@pytest.mark.parametrize('storage', ['bfloat16', 'binary'])
def test_a_store_is_changed_and_read_back(storage, tmp_path):
    config = TokenConfig(storage=storage)
    store = TokenStore.build(pages(), 16, config)
    other = TokenStore.build(pages((5, 50)), 16, config)
    changed = store.kept(np.array([6, 1])).joined(other)
    expected = [store.page(6), store.page(1), other.page(0), other.page(1)]
    for label, read in (('changed', changed), ('compacted', changed.compacted())):
        folder = tmp_path / label
        folder.mkdir()
        again = TokenStore.from_files(folder, read.write_files(folder))
        for state in (read, again):
            for row, page in enumerate(expected):
                np.testing.assert_array_equal(state.page(row), page)
    assert changed.unused > 0.5 and changed.compacted().unused == 0
    assert len(list((tmp_path / 'compacted').glob('*.bin'))) == 1


def test_files_on_one_file_system_are_linked(tmp_path):
    store = TokenStore.build(pages(), 16, TokenConfig(), scratch=tmp_path)
    for name in 'ab':
        (tmp_path / name).mkdir()
        store.write_files(tmp_path / name)
    first, second = (tmp_path / name / 'tokens-000.bin' for name in 'ab')
    assert first.samefile(second)


def test_a_store_whose_files_are_gone_is_still_read_and_written(tmp_path):
    (tmp_path / 'old').mkdir()
    (tmp_path / 'new').mkdir()
    built = TokenStore.build(pages(), 16, TokenConfig())
    store = TokenStore.from_files(tmp_path / 'old', built.write_files(tmp_path / 'old'))
    for file in (tmp_path / 'old').iterdir():
        file.unlink()
    fields = store.write_files(tmp_path / 'new')
    again = TokenStore.from_files(tmp_path / 'new', fields)
    for row in range(8):
        np.testing.assert_array_equal(again.page(row), built.page(row))


@pytest.mark.skipif(not Path('/proc/self/status').is_file(), reason='needs Linux')
@pytest.mark.parametrize('resident', [1 << 20, 1 << 40], ids=['let go', 'kept'])
def test_the_mapping_is_let_go_of_and_read_again(resident, monkeypatch):
    monkeypatch.setattr('vrag_jax.retrieval.late_interaction.token_store._RESIDENT', resident)

    def mapped_mb():
        status = Path('/proc/self/status').read_text()
        return int(re.search(r'RssFile:\s+(\d+) kB', status)[1]) / 1024

    page = unit(1000, 128)
    store = TokenStore.build([page] * 256, 128, TokenConfig())  # 64 MB.
    before = mapped_mb()
    for row in range(256):
        np.testing.assert_array_equal(
            store.page(row), page.astype(ml_dtypes.bfloat16).astype(np.float32))
    grown = mapped_mb() - before
    assert grown < 10 if resident == 1 << 20 else grown > 50


@pytest.mark.parametrize('page, message', [
    (np.zeros((0, 16), np.float32), 'page 1: expected tokens'),
    (np.zeros((3, 8), np.float32), 'page 1: expected tokens'),
    (np.full((3, 16), np.nan, np.float32), 'page 1: tokens are not finite')])
def test_tokens_that_cannot_be_compared_are_refused(page, message):
    with pytest.raises(ValueError, match=message):
        TokenStore.build([unit(2, 16), page], 16, TokenConfig())


def test_a_table_that_points_outside_is_refused(tmp_path):
    fields = TokenStore.build(pages(), 16, TokenConfig()).write_files(tmp_path)
    table = np.load(tmp_path / 'token_pages.npy')
    table[3, 1] = 1000
    np.save(tmp_path / 'token_pages.npy', table)
    with pytest.raises(ArtifactError, match='blocks that are not in the files'):
        TokenStore.from_files(tmp_path, fields)


def test_pooling_averages_squares_of_the_grid():
    tokens = unit(2 + 3 * 5 + 1, 8)
    pooled = pool_grid(tokens, 3, 5, 2, 2)
    assert pooled.shape == (2 + 2 * 3 + 1, 8)
    np.testing.assert_array_equal(pooled[[0, 1, -1]], tokens[[0, 1, -1]])
    grid = tokens[2:17].reshape(3, 5, 8)
    for row in range(2):
        for column in range(3):
            mean = grid[2 * row:2 * row + 2, 2 * column:2 * column + 2].reshape(-1, 8).mean(0)
            np.testing.assert_allclose(pooled[2 + 3 * row + column],
                                       mean / np.linalg.norm(mean), atol=1e-5)
    with pytest.raises(ValueError, match='4x5 after 2 does not fit into 18'):
        pool_grid(tokens, 4, 5, 2, 2)
