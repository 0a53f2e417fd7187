"""Inverted lists find what the formula says, while pages come and go, and refuse damaged files."""

import random
import shutil
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.retrieval.lexical.test_ngram_encoder import QUERIES, TEXTS, bm25, random_texts
from vrag_jax.corpus.artifact import ArtifactError, open_artifact, write_artifact
from vrag_jax.embedders.interface import PageContent
from vrag_jax.retrieval.kinds import read_retriever
from vrag_jax.retrieval.lexical.bm25 import Bm25Config, Bm25Retriever
from vrag_jax.retrieval.lexical.ngram import NgramListsRetriever, NgramVectorsRetriever, fit_words
from vrag_jax.retrieval.lexical.ngram_encoder import NgramConfig, NgramEncoder
from vrag_jax.retrieval.lexical.terms import query_terms, split_terms
from vrag_jax.retrieval.retriever import Changes

KINDS = pytest.mark.parametrize('kind', [NgramListsRetriever, Bm25Retriever],
                                ids=['ngram', 'bm25'])


def names(texts):
    return [f'p{i}' for i in range(len(texts))]


def exact(retriever, queries, texts):
    """Scores [queries, texts] as lists find them, 0 where they do not."""
    scores = np.zeros((len(queries), len(texts)))
    for row, ids, values in zip(scores, *retriever.search(queries, len(texts)), strict=True):
        row[[int(i[1:]) for i in ids]] = values
    return scores


@pytest.mark.parametrize('texts', [TEXTS, [*TEXTS, TEXTS[1], '', TEXTS[1], '…']],
                         ids=['distinct', 'with copies and blank pages'])
def test_scores_are_bm25_of_words_phrases_and_pieces(texts):
    lists = NgramListsRetriever.of_texts(names(texts), texts)
    np.testing.assert_allclose(exact(lists, QUERIES, texts), bm25(QUERIES, texts), rtol=1e-6)


@pytest.mark.parametrize('share, most', [(0.25, 75), (0.1, 64), (1.0, 300)])
def test_common_pieces_weigh_nothing(share, most):
    texts = [text + ' worked working'[:7 * (i % 3)] for i, text in enumerate(random_texts(300))]
    queries = [' '.join(text.split()[2:8]) + ' works' for text in texts[:20]]
    lists = NgramListsRetriever.of_texts(names(texts), texts, NgramConfig(piece_share=share))
    np.testing.assert_allclose(exact(lists, queries, texts),
                               bm25(queries, texts, most_pages=most), rtol=1e-6)


@pytest.mark.parametrize('phrases', [False, True])
def test_bm25_is_of_words(phrases):
    def formula(query, page, pages):
        score = 0.0
        for group in ('words', 'phrases', 'singles') if phrases else ('words', 'singles'):
            terms = [Counter(getattr(split_terms(text), group)) for text in pages]
            mean = sum(map(Counter.total, terms)) / len(pages)
            for term, count in Counter(getattr(query_terms(query), group)).items():
                having = sum(term in other for other in terms)
                tf = terms[page][term]
                norm = 1.2 * (0.25 + 0.75 * terms[page].total() / max(mean, 1e-9))
                score += count * np.log(1 + (len(pages) - having + 0.5) / (having + 0.5)) * (
                    tf / (tf + norm))
        return score

    lists = Bm25Retriever.of_texts(names(TEXTS), TEXTS, Bm25Config(phrases=phrases))
    queries = [*QUERIES, 'travel travel Hong', 'US of']
    np.testing.assert_allclose(
        exact(lists, queries, TEXTS),
        [[formula(query, page, TEXTS) for page in range(len(TEXTS))] for query in queries],
        rtol=1e-6)


def test_lists_rank_as_vectors_do():
    texts = random_texts(300)
    queries = [' '.join(text.split()[2:8]) for text in texts[:40]]
    vectors = NgramVectorsRetriever.fit(NgramEncoder(), names(texts), texts)
    lists = NgramListsRetriever.of_texts(names(texts), texts)
    assert vectors.search(queries, 5)[0] == lists.search(queries, 5)[0]


def test_more_pages_than_dims_get_lists_by_themselves():
    texts = random_texts(30)
    assert isinstance(fit_words(NgramEncoder(NgramConfig(dims=30)), names(texts), texts),
                      NgramVectorsRetriever)
    lists = fit_words(NgramEncoder(NgramConfig(dims=29)), names(texts), texts)
    assert isinstance(lists, NgramListsRetriever)
    # Vectors of which more come than they have dimensions, too.
    vectors = fit_words(NgramEncoder(NgramConfig(dims=29)), names(texts)[:-1], texts[:-1])
    pages = [page(i, text) for i, text in zip(names(texts), texts, strict=True)]
    grown = vectors.updated(Changes(pages[-1:], frozenset(), lambda: pages))
    assert isinstance(grown, NgramListsRetriever) and grown.fingerprint == lists.fingerprint


@KINDS
def test_equal_scores_are_in_order_and_filters_are_kept(kind):
    texts = ['blue whale', 'red fox', 'blue whale', 'blue', 'blue whale', 'grey']
    lists = kind.of_texts(names(texts), texts)
    assert lists.search(['blue whale'], 2)[0] == [['p0', 'p2']]
    assert lists.search(['blue whale'], 9)[0] == [['p0', 'p2', 'p4', 'p3']]
    allowed = np.array([False, True, False, True, True, True])
    ids, scores = lists.search(['blue whale', 'zebra', ''], 9, allowed)
    assert ids == [['p4', 'p3'], [], []] and scores[0].dtype == np.float32


def page(page_id, text):
    return PageContent(page_id, text, lambda: None, (1, 1))


def applied(retriever, state, added, deleted, order=(), scratch=None):
    """Returns the retriever and texts by id after a change."""
    after = {i: text for i, text in state.items() if i not in deleted} | added
    if order:
        after = {i: after[i] for i in order}
    return retriever.updated(Changes([page(i, text) for i, text in added.items()],
                                     frozenset(deleted), lambda: [], order, scratch=scratch)), after


@KINDS
@settings(max_examples=30, deadline=None)
@given(data=st.data())
def test_any_changes_leave_what_would_be_built_anew(kind, data, tmp_path_factory):
    rng = random.Random(data.draw(st.integers(0, 2**32)))
    texts = [*random_texts(60, seed=rng.random()), '', TEXTS[0], TEXTS[1], '…']
    state = {f'q{n}': rng.choice(texts) for n in range(rng.randint(1, 30))} | {'first': texts[0]}
    retriever, number = kind.of_texts(list(state), list(state.values())), 100
    queries = [' '.join(rng.choice(texts).split()[:5]) for _ in range(5)] + ['云上数据']
    for _ in range(data.draw(st.integers(1, 5))):
        deleted = set(rng.sample(list(state), rng.randint(0, len(state) - 1)))
        added = {f'n{number + n}': rng.choice(texts) for n in range(rng.randint(0, 12))}
        number += len(added)
        # A page that changes goes and comes under its own name.
        added |= {i: rng.choice(texts) for i in sorted(deleted)[:2]}
        order = [i for i in state if i not in deleted] + list(added)
        if data.draw(st.booleans()):
            rng.shuffle(order)
        retriever, state = applied(retriever, state, added, deleted, order)
        if data.draw(st.booleans()):
            folder = tmp_path_factory.mktemp('index')
            retriever = read_retriever(kind.kind, folder, retriever.write_files(folder))
        if not any(split_terms(text).singles or split_terms(text).words
                   for text in state.values()):
            return
        anew = kind.of_texts(list(state), list(state.values()))
        allowed = np.array([rng.random() < 0.7 for _ in state])
        for mask in (None, allowed):
            ids, scores = retriever.search(queries, 7, mask)
            wanted, values = anew.search(queries, 7, mask)
            assert ids == wanted
            for got, want in zip(scores, values, strict=True):
                np.testing.assert_array_equal(got, want)
        assert retriever.ids == anew.ids and retriever.fingerprint == anew.fingerprint


def test_parts_stay_few_while_pages_come_and_deleted_ones_are_let_go_of(tmp_path):
    texts = random_texts(400)
    state = dict(zip(names(texts[:200]), texts, strict=False))
    retriever = NgramListsRetriever.of_texts(list(state), list(state.values()))
    for n in range(200, 300):
        retriever, state = applied(retriever, state, {f'p{n}': texts[n]}, set(), (), tmp_path)
    assert len(retriever.lists._parts) <= 8  # 100 one by one: 64, 32, 4, ...
    assert len(retriever.lists._parts[0]) == 200  # Which was not written again.
    retriever, state = applied(retriever, state, {}, {f'p{n}' for n in range(150)})
    assert [len(part) for part in retriever.lists._parts] == [150]


def test_unchanged_parts_are_linked_not_written_again(tmp_path):
    texts = random_texts(50)
    write_artifact(tmp_path, 'words', NgramListsRetriever.of_texts(names(texts), texts).write_files)
    retriever = open_artifact(tmp_path, 'words', NgramListsRetriever.load)
    (before,) = tmp_path.glob('data-*')
    inode = (before / 'part-000' / 'rows.npy').stat().st_ino
    more, _ = applied(retriever, dict(zip(names(texts), texts, strict=True)),
                      {'new': 'a new page'}, set())
    write_artifact(tmp_path, 'words', more.write_files)
    # Who has opened it still reads the version of before.
    (after,) = {*tmp_path.glob('data-*')} - {before}
    assert (after / 'part-000' / 'rows.npy').stat().st_ino == inode and after != before
    again = open_artifact(tmp_path, 'words', NgramListsRetriever.load, verify=True)
    assert again.search(['new page'], 1)[0] == [['new']]
    # What was opened before goes on, and can be saved.
    assert retriever.search([texts[3]], 1)[0] == [['p3']]
    (tmp_path / 'copy').mkdir()
    fields = retriever.write_files(tmp_path / 'copy')
    assert NgramListsRetriever.load(tmp_path / 'copy', fields).ids == retriever.ids


@pytest.fixture(scope='module')
def written(tmp_path_factory):
    folder = tmp_path_factory.mktemp('written')
    retriever = NgramListsRetriever.of_texts(names(TEXTS), TEXTS)
    retriever, _ = applied(retriever, dict(zip(names(TEXTS), TEXTS, strict=True)),
                           {'new': 'a new page'}, {'p1'})
    return folder, retriever.write_files(folder)


@pytest.mark.parametrize('name', [
    'part-000/terms.npy', 'part-000/starts.npy', 'part-000/rows.npy', 'part-000/counts.npy',
    'part-000/lengths.npy', 'part-000/digests.npy', 'part-001/rows.npy', 'page_rows.npy',
    'gone-000.npy'])
@pytest.mark.parametrize('damage', ['missing', 'cut off', 'other type', 'other length'])
def test_a_damaged_file_is_named(written, name, damage, tmp_path):
    folder, fields = written
    shutil.copytree(folder, tmp_path / 'copy')
    file = tmp_path / 'copy' / name
    if damage == 'missing':
        file.unlink()
    elif damage == 'cut off':
        file.write_bytes(file.read_bytes()[:-1])
    else:
        array = np.load(file)
        np.save(file, array.astype(np.float32) if damage == 'other type' else np.concatenate(
            [array, array], axis=-1))
    with pytest.raises(ArtifactError, match=rf'{file.name}|part-00'):
        NgramListsRetriever.load(tmp_path / 'copy', fields)


@pytest.mark.parametrize('change, message', [
    ({'terms': 1}, 'version 1 of the vocabulary'), ({'ids': ['p0']}, 'holds 6 pages for 1 ids'),
    ({'fingerprint': 'x'}, 'fingerprint'), ({'config': {'b': 7}}, 'b must be in'),
    ({'config': {'zzz': 1}}, 'zzz'), ({'parts': 3}, 'part-002'), ({'gone': [False]}, '2 parts')])
def test_fields_that_do_not_fit_are_refused(written, change, message):
    folder, fields = written
    with pytest.raises(ArtifactError, match=message):
        NgramListsRetriever.load(folder, {**fields, **change})


@KINDS
def test_what_cannot_be_indexed_is_refused(kind):
    with pytest.raises(ValueError, match='none of the 2 page texts holds a word'):
        kind.of_texts(['a', 'b'], ['', '…'])
    with pytest.raises(ValueError, match="'a' stands twice"):
        kind.of_texts(['a', 'a'], ['x', 'y'])
    with pytest.raises(ValueError, match='1 texts for 2 pages'):
        kind.of_texts(['a', 'b'], ['x'])
    retriever = kind.of_texts(['a', 'b'], ['x', 'y'])
    with pytest.raises(ValueError, match="'zz' is not in the index"):
        applied(retriever, {}, {}, {'zz'})
    with pytest.raises(ValueError, match='nothing would be left'):
        applied(retriever, {}, {}, {'a', 'b'})
    with pytest.raises(ValueError, match="'a' stands twice"):
        applied(retriever, {}, {'a': 'x'}, set())


def test_pages_that_no_query_tells_apart_are_told():
    texts = ['The blue whale', 'whale, blue the', 'red', 'the BLUE whale!', 'red', 'blue whale']
    lists = NgramListsRetriever.of_texts(names(texts), texts)
    assert lists.same_pages(texts) == [('p0', 'p3')]
