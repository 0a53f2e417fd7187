"""Late interaction finds what exact MaxSim finds, also after changes and from files."""

import dataclasses

import numpy as np
import pytest

from vrag_jax.corpus.artifact import ArtifactError, open_artifact, write_artifact
from vrag_jax.embedders.interface import PageContent
from vrag_jax.retrieval.late_interaction.centroids import CentroidTable
from vrag_jax.retrieval.late_interaction.fde import FdeConfig
from vrag_jax.retrieval.late_interaction.late_settings import LateInteractionConfig
from vrag_jax.retrieval.late_interaction.retriever import LateInteractionRetriever
from vrag_jax.retrieval.late_interaction.token_store import TokenConfig
from vrag_jax.retrieval.retriever import Changes

DIMS = 32
SMALL = LateInteractionConfig(exact_below=20, pool=100, centroids=256, candidates=40,
                              fde=FdeConfig(8, 3, 8))
PLAIN = dataclasses.replace(SMALL, centroids=0)
EXACT = LateInteractionConfig(exact_below=1000)


class WordEmbedder:
    """A vector a word: a fixed random one, and noise of the page it stands on."""

    kind, dims, multi_vector, fingerprint = 'words', DIMS, True, 'words 1'
    reads = 'image'  # As if each word were a token of one.

    def _vector(self, word, salt=''):
        seed = list(f'{word}|{salt}'.encode())
        rows = np.random.default_rng(seed).standard_normal(DIMS).astype(np.float32)
        return rows / np.linalg.norm(rows)

    def _embed(self, text, salt):
        rows = [self._vector(w) + 0.3 * self._vector(w, salt) for w in text.split()]
        rows = np.stack(rows) if rows else np.zeros((0, DIMS), np.float32)
        return rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-9)

    def embed_pages(self, pages):
        return [self._embed(page.text, page.page_id) for page in pages]

    def embed_queries(self, queries):
        return [self._embed(query, 'query') for query in queries]

    def page_grids(self, pages):
        """Words in rows of two."""
        return [(len(page.text.split()) // 2, 2, 0) for page in pages]


def page(number):
    """A page of one of 20 topics, of 30 words each."""
    words = np.random.default_rng(number).integers(30, size=20 + number % 30) + 30 * (number % 20)
    return PageContent(f'p{number}', ' '.join(f'w{w}' for w in words), lambda: None,
                       (0, 0))


def build(config, count=300, embedder=None, **more):
    embedder = embedder or WordEmbedder()
    contents = [page(n) for n in range(count)]
    return LateInteractionRetriever.of_pages(
        embedder, [c.page_id for c in contents], embedder.embed_pages(contents), config, **more)


QUERIES = [' '.join(page(n).text.split()[2:9]) for n in range(0, 300, 11)]


def overlap(found, exact):
    return np.mean([len(set(a) & set(b)) / len(b) for a, b in zip(found, exact, strict=True)])


@pytest.fixture(scope='module')
def exact():
    return build(EXACT)


@pytest.fixture(scope='module')
def small():
    return build(SMALL)


def test_exact_search_equals_brute_force(exact):
    assert exact.exact and exact.recall is None
    ids, scores = exact.search(QUERIES, 10)
    contents = [page(n) for n in range(300)]
    pages = WordEmbedder().embed_pages(contents)
    for query, row, values in zip(WordEmbedder().embed_queries(QUERIES), ids, scores, strict=True):
        expected = np.array([(query @ p.T).max(1).sum() for p in pages])
        order = np.argsort(-expected)[:10]
        np.testing.assert_allclose(values, expected[order], atol=0.02)  # bfloat16
        assert len(set(row) & {f'p{n}' for n in order}) >= 9


@pytest.mark.parametrize('config', [SMALL, PLAIN], ids=['centroids', 'encodings'])
def test_candidates_hold_nearly_all_of_the_best_with_exact_scores(config, exact):
    retriever = build(config)
    assert not retriever.exact
    ids, scores = retriever.search(QUERIES, 10)
    expected, exact_scores = exact.search(QUERIES, 300)
    assert overlap(ids, [row[:10] for row in expected]) >= (0.97 if config.centroids else 0.9)
    for row, values, all_ids, all_scores in zip(ids, scores, expected, exact_scores, strict=True):
        known = dict(zip(all_ids, all_scores, strict=True))
        np.testing.assert_allclose(values, [known[i] for i in row], atol=1e-3)
        assert (np.diff(values) <= 1e-4).all() and len(set(row)) == 10
    assert retriever.recall['recall'] >= 0.8 and retriever.recall['queries'] == 16


def test_batches_equal_one_by_one(small):
    together, _ = small.search(QUERIES, 5)
    assert together == [small.search([query], 5)[0][0] for query in QUERIES]
    assert small.search([], 5) == ([], [])


def test_a_query_without_vectors_finds_nothing(small):
    ids, scores = small.search(['', QUERIES[0]], 3)
    assert ids[0] == [] and len(scores[0]) == 0 and len(ids[1]) == 3


@pytest.mark.parametrize('share', [0.02, 0.1, 0.5])
def test_filters_leave_as_many_hits_as_wanted(share, small, exact):
    allowed = np.random.default_rng(1).random(300) < share
    ids, _ = small.search(QUERIES, 5, allowed)
    expected, _ = exact.search(QUERIES, 5, allowed)
    fit = {f'p{n}' for n in np.flatnonzero(allowed)}
    assert all(set(row) <= fit and len(row) == min(5, len(fit)) for row in ids)
    assert overlap(ids, expected) >= 0.95
    assert small.search(QUERIES[:2], 5, np.zeros(300, bool))[0] == [[], []]


def changes(numbers, deleted=(), rest=()):
    added = [page(n) for n in numbers]
    return Changes(added, frozenset(deleted), lambda: [*rest, *added])


def test_added_pages_are_found_and_deleted_ones_are_not(small):
    changed = small.updated(changes(range(300, 320), ['p0', 'p22']))
    assert changed.ids == (*(f'p{n}' for n in range(300) if n not in (0, 22)),
                           *(f'p{n}' for n in range(300, 320)))
    queries = [' '.join(page(n).text.split()[:8]) for n in range(300, 320)]
    queries += QUERIES
    exact = build(EXACT, 320).search(queries, 320)[0]
    expected = [[i for i in row if i not in ('p0', 'p22')][:10] for row in exact]
    assert overlap(changed.search(queries, 10)[0], expected) >= 0.97
    assert len({i for row in expected for i in row} & set(changed.ids[298:])) > 10
    assert small.search([QUERIES[0]], 1)[0] == [['p0']]  # The old one is as it was.


def test_many_changes_build_the_index_anew(small):
    changed = small.updated(changes(range(300, 340), [f'p{n}' for n in range(120)]))
    assert changed.store.unused == 0  # More than 30 % were: tokens are written anew.
    assert len(changed._candidates.index._added) == 0
    exact = build(EXACT, 340).search(QUERIES, 340)[0]
    expected = [[i for i in row if int(i[1:]) >= 120][:10] for row in exact]
    assert overlap(changed.search(QUERIES, 10)[0], expected) >= 0.97
    few = small.updated(changes((), [f'p{n}' for n in range(290)]))
    assert few.exact and len(few.ids) == 10


@pytest.mark.parametrize('numbers, deleted, message', [
    ([5], [], "'p5' stands twice"), ([], ['p999'], "'p999' is not in the index"),
    ([], [f'p{n}' for n in range(300)], 'nothing would be left')])
def test_changes_that_cannot_be_are_refused(small, numbers, deleted, message):
    with pytest.raises(ValueError, match=message):
        small.updated(changes(numbers, deleted))


@pytest.mark.parametrize('config', [
    EXACT, SMALL, PLAIN, dataclasses.replace(SMALL, tokens=TokenConfig(storage='binary'))],
    ids=['exact', 'centroids', 'encodings', 'binary'])
def test_a_retriever_is_read_back_as_it_was(config, tmp_path):
    retriever = build(config).updated(changes(range(300, 310), ['p3']))
    write_artifact(tmp_path, 'retriever', retriever.write_files)

    def read(*embedders):
        return open_artifact(tmp_path, 'retriever', lambda folder, fields:
                             LateInteractionRetriever.load(folder, fields, embedders))

    again = read(WordEmbedder())
    assert (again.ids, again.config, again.recall) == (
        retriever.ids, retriever.config, retriever.recall)
    ids, scores = retriever.search(QUERIES, 7)
    read_ids, read_scores = again.search(QUERIES, 7)
    assert ids == read_ids
    np.testing.assert_array_equal(np.concatenate(scores), np.concatenate(read_scores))
    with pytest.raises(ArtifactError, match='made by embedder words words 1.*given: none'):
        read()


def test_a_reader_goes_on_while_new_versions_replace_what_it_has_mapped(small, tmp_path):
    write_artifact(tmp_path, 'retriever', small.write_files)

    def read():
        return open_artifact(tmp_path, 'retriever', lambda folder, fields:
                             LateInteractionRetriever.load(folder, fields, [WordEmbedder()]))

    reader = read()
    expected = reader.search(QUERIES, 5)[0]
    changed = reader.updated(changes(range(300, 310), ['p0']))
    write_artifact(tmp_path, 'retriever', changed.write_files)
    assert reader.search(QUERIES, 5)[0] == expected
    assert read().search(QUERIES, 5)[0] == changed.search(QUERIES, 5)[0] != expected
    again = reader.updated(changes([], ['p1']))  # Of files that are no longer there.
    write_artifact(tmp_path, 'retriever', again.write_files)
    assert read().ids == again.ids


def test_pooling_needs_grids_and_keeps_what_is_found():
    pooled = dataclasses.replace(EXACT, tokens=TokenConfig(pooling=2))
    with pytest.raises(ValueError, match='grid of each page'):
        build(pooled)
    # Every second row of words is averaged with the one before.
    grids = WordEmbedder().page_grids([page(n) for n in range(300)])
    retriever = build(pooled, grids=grids)
    assert retriever.store.table[:, 3].sum() < 0.3 * build(EXACT).store.table[:, 3].sum() + 300
    ids, _ = retriever.search([page(n).text for n in range(0, 300, 11)], 2)
    found = np.mean([f'p{n}' in row for row, n in zip(ids, range(0, 300, 11), strict=True)])
    assert found > 0.9  # The two best of 300 pages.
    more = retriever.updated(changes([300]))
    assert more.store.table[-1, 3] < len(page(300).text.split())
    assert more.search([page(300).text], 1)[0] == [['p300']]


def test_centroid_scores_are_the_best_centroid_of_each_token():
    rng = np.random.default_rng(0)
    tokens = rng.standard_normal((500, 16)).astype(np.float32)
    pages = [tokens[i:i + 25] for i in range(0, 500, 25)]
    table = CentroidTable.fit(tokens, 32, seed=0).with_pages(pages[:12]).with_pages(pages[12:])
    query = rng.standard_normal((6, 16)).astype(np.float32)
    rows = np.array([3, 19, 0])
    for row, score in zip(rows, table.scores(query, rows), strict=True):
        own = np.unique((pages[row] @ table.centroids.T).argmax(1))
        assert score == pytest.approx((query @ table.centroids[own].T).max(1).sum(), abs=1e-4)


@pytest.mark.parametrize('fields', [{'candidates': 0}, {'candidates': 9, 'pool': 8},
                                    {'centroids': 12}, {'exact_below': -1}])
def test_a_config_that_cannot_work_names_the_field(fields):
    with pytest.raises(ValueError, match=list(fields)[0]):
        LateInteractionConfig(**fields)
