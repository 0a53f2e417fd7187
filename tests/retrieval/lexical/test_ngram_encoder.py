"""Inner products of the vectors are BM25 scores."""

import math
import random
from collections import Counter

import numpy as np
import pytest

from vrag_jax.corpus.artifact import ArtifactError
from vrag_jax.retrieval.lexical.ngram import NgramVectorsRetriever
from vrag_jax.retrieval.lexical.ngram_encoder import NgramConfig, NgramEncoder
from vrag_jax.retrieval.lexical.term_counts import count_pages, count_query
from vrag_jax.retrieval.lexical.terms import query_terms, split_terms, word_pieces

TEXTS = ['Revenue of Alibaba Cloud grew in 2020', '云上数据中心网络演进 VPC 诞生',
         'Cost of revenue 2019', '数据中心网络 IPv6', 'Hong Kong travellers, leisure travel',
         'travel travel travel']
QUERIES = ['cloud revenue growth', '数据中心网络哪一年', 'travelling to Hong Kong', 'IPV6 VPC 2020']


GROUPS = (('words', 1.0), ('phrases', 0.5), ('pieces', 0.1), ('singles', 1.0))


def bm25(queries, texts, k1=1.2, b=0.75, most_pages=math.inf):
    """Scores [queries, pages] by the formula of Robertson and Zaragoza (2009), loop by loop.

    Pieces on more than `most_pages` pages are left out.
    """
    scores = np.zeros((len(queries), len(texts)))
    for group, weight in GROUPS:
        pages = [Counter(getattr(split_terms(text), group)) for text in texts]
        lengths = [page.total() for page in pages]
        mean = max(sum(lengths) / len(pages), 1e-9)
        for row, query in zip(scores, queries, strict=True):
            for term, count in Counter(getattr(query_terms(query), group)).items():
                having = sum(term in page for page in pages)
                if group == 'pieces' and having > most_pages:
                    continue
                idf = math.log(1 + (len(pages) - having + 0.5) / (having + 0.5))
                for i, page in enumerate(pages):
                    saturated = page[term] * (k1 + 1) / (
                        page[term] + k1 * (1 - b + b * lengths[i] / mean))
                    row[i] += weight * (1 + math.log(count)) * idf * saturated
    return scores


def fitted(texts, **config):
    encoder = NgramEncoder(NgramConfig(**config))
    encoder.fit(texts)
    return encoder


def random_texts(count, seed=0):
    rng = random.Random(seed)
    words = [''.join(rng.choices('abcdefghij', k=5)) for _ in range(200)]
    return [' '.join(rng.choices(words, k=12)) for _ in range(count)]


@pytest.mark.parametrize('texts', [TEXTS, [*TEXTS, TEXTS[1], '', TEXTS[1], '…']],
                         ids=['distinct', 'with copies and blank pages'])
def test_scores_are_bm25_up_to_one_factor_a_query(texts):
    encoder = fitted(texts)
    scores = encoder.encode_queries(QUERIES) @ encoder.encode_pages(texts).T
    for row, expected in zip(scores, bm25(QUERIES, texts), strict=True):
        best = expected.argmax()
        np.testing.assert_allclose(row * expected[best] / row[best], expected,
                                   atol=1e-3 * expected[best])


@pytest.mark.parametrize('share, most', [(0.25, 75), (0.1, 64), (1.0, 300)])
def test_common_pieces_are_left_out_of_larger_corpora(share, most):
    # 'work' and its pieces stand on two pages of three, those of other words on a few.
    texts = [text + ' worked working'[:7 * (i % 3)] for i, text in enumerate(random_texts(300))]
    queries = [' '.join(text.split()[2:8]) + ' works' for text in texts[:20]]
    encoder = NgramEncoder(NgramConfig(piece_share=share))
    encoder.fit(texts)
    scores = encoder.encode_queries(queries) @ encoder.encode_pages(texts).T
    for row, expected in zip(scores, bm25(queries, texts, most_pages=most), strict=True):
        best = expected.argmax()
        np.testing.assert_allclose(row * expected[best] / row[best], expected,
                                   atol=1e-3 * expected[best])


@pytest.mark.parametrize('texts', [TEXTS, ['', '…', 'A long-term plan, infor-\nmation US us'],
                                   ['हिन्दी में', 'สวัสดี 中々', 'İstanbul istanbul', 'one two']],
                         ids=['mixed', 'hyphens and blank pages', 'scripts'])
def test_counts_of_many_are_those_of_the_terms_of_each(texts):
    buckets = 1 << 28
    counts = count_pages(texts, buckets)
    for row, text in enumerate(texts):
        terms = split_terms(text)
        wanted = [len(set(group)) for group in (
            terms.words, terms.phrases, terms.pieces, terms.singles)]
        own = counts.matrix[row]
        groups = counts.terms[own.indices] // buckets
        assert [int((groups == g).sum()) for g in range(4)] == wanted
        assert counts.lengths(buckets)[:, row].tolist() == [
            len(terms.words), len(terms.phrases), len(terms.pieces), len(terms.singles)]
        # A query of the same words has the same terms, of those that both have.
        found, _ = count_query(text, buckets)
        mine = set(counts.terms[own.indices].tolist())
        assert {t for t in found.tolist() if t // buckets in (1, 2)} <= mine


def test_pieces_of_a_word():
    assert word_pieces('ab') == ('<ab', 'ab>', '<ab>')


def test_rows_are_unit_float32():
    texts = [*TEXTS, '']
    encoder = fitted(texts)
    unseen_page = ' '.join(TEXTS * 3)
    rows = np.concatenate([encoder.encode_pages([*texts, unseen_page]),
                           encoder.encode_queries(QUERIES)])
    assert rows.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(rows, axis=1), 1, atol=1e-5)


def test_a_query_without_a_term_of_the_pages_is_all_zeros():
    rows = fitted(TEXTS).encode_queries(['zzqqzz', '', 'of the', '煤'])
    assert rows.shape[0] == 4 and not rows.any()


def test_a_batch_gives_the_rows_of_single_queries():
    encoder = fitted(TEXTS)
    single = [encoder.encode_queries([query])[0] for query in QUERIES]
    np.testing.assert_allclose(encoder.encode_queries(QUERIES), single, atol=1e-6)


def test_hits_and_scores_do_not_depend_on_the_other_queries():
    # BLAS may round a row of a product by where it stands among others.
    texts, rng = random_texts(150), random.Random(0)
    ids = [str(i) for i in range(len(texts))]
    retriever = NgramVectorsRetriever.fit(NgramEncoder(), ids, texts)
    queries = [' '.join(rng.sample(text.split(), 4)) for text in texts]
    pages, scores = retriever.search(queries, 5)
    for size in (1, 2, 3, 7, 16, 30, 101):
        some = rng.sample(range(len(queries)), size)
        found, values = retriever.search([queries[i] for i in some], 5)
        assert found == [pages[i] for i in some]
        np.testing.assert_array_equal(values, [scores[i] for i in some])


def test_more_pages_than_a_vector_has_dimensions_are_refused():
    with pytest.raises(ValueError, match='300 pages are more than the dims = 256'):
        fitted(random_texts(300), dims=256)


def test_fitting_again_or_reading_back_gives_the_same_vectors(tmp_path):
    first, second = fitted(TEXTS), fitted(TEXTS)
    assert first.fingerprint == second.fingerprint
    fields = first.write_files(tmp_path)
    read = NgramEncoder.from_files(tmp_path, fields)
    for encode in ('encode_pages', 'encode_queries'):
        rows = getattr(first, encode)(TEXTS)
        np.testing.assert_array_equal(rows, getattr(second, encode)(TEXTS))
        np.testing.assert_array_equal(rows, getattr(read, encode)(TEXTS))


def test_the_fingerprint_tells_corpora_and_configs_apart():
    prints = {fitted(TEXTS).fingerprint, fitted(TEXTS[:-1]).fingerprint,
              fitted(TEXTS, b=0.5).fingerprint, fitted(TEXTS, dims=30).fingerprint}
    assert len(prints) == 4


def test_a_state_that_is_another_is_refused(tmp_path):
    fields = fitted(TEXTS).write_files(tmp_path)
    fitted(TEXTS[:-1]).write_files(tmp_path)
    with pytest.raises(ArtifactError, match='fingerprint'):
        NgramEncoder.from_files(tmp_path, fields)
    (tmp_path / 'ngram.npz').write_bytes(b'PK\x03\x04 cut off')
    with pytest.raises(ArtifactError, match=r'ngram\.npz'):
        NgramEncoder.from_files(tmp_path, fields)


def test_a_state_of_another_vocabulary_is_refused(tmp_path):
    fields = fitted(TEXTS).write_files(tmp_path)
    del fields['terms']  # As it was before there were versions.
    with pytest.raises(ArtifactError, match='split by version 1 of the vocabulary'):
        NgramEncoder.from_files(tmp_path, fields)


def test_what_cannot_be_fitted_is_refused():
    with pytest.raises(ValueError, match='has not been fitted'):
        NgramEncoder().encode_queries(['a'])
    with pytest.raises(ValueError, match='no page'):
        fitted([])
    with pytest.raises(ValueError, match='none of the 2 page texts holds a word'):
        fitted(['', '…'])


@pytest.mark.parametrize('field, value', [('dims', 0), ('k1', -1.0), ('b', 1.5), ('buckets', 0),
                                          ('buckets', 1 << 29),
                                          ('piece_weight', -0.1)])
def test_a_config_that_cannot_work_names_the_field(field, value):
    with pytest.raises(ValueError, match=field):
        NgramConfig(**{field: value})
