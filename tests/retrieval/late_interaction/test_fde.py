"""Encodings equal the paper's formulas computed token by token."""

import numpy as np
import pytest

from vrag_jax.retrieval.late_interaction.fde import FdeConfig, FdeEncoder


def unit(*shape, seed=0):
    rows = np.random.default_rng(seed).standard_normal(shape).astype(np.float32)
    return rows / np.linalg.norm(rows, axis=-1, keepdims=True)


def by_hand(encoder, tokens, page):
    """Loops over repetitions, buckets and tokens."""
    config, state = encoder.config, encoder._state
    out = []
    for r in range(config.repetitions):
        near = []  # [T][B]: the larger, the nearer is the bucket to the token.
        for token in tokens - state['mean']:
            if config.partition == 'simhash':
                signs = state['planes'][:, r].T @ token > 0
                near.append([-sum(bool(b >> i & 1) != s for i, s in enumerate(signs))
                             for b in range(2**config.bits)])
            else:
                near.append(list(state['centres'][r] @ token))
        own = [int(np.argmax(row)) for row in near]
        values = tokens - state['mean'] if page else tokens
        if config.inner_dims:
            values = values @ state['projections'][:, r]
        for b in range(2**config.bits):
            members = [t for t in range(len(tokens)) if own[t] == b]
            if members:
                total = sum(values[t] for t in members)
                out.append(total / len(members) if page else total)
            elif page:
                out.append(values[int(np.argmax([row[b] for row in near]))])
            else:
                out.append(np.zeros(values.shape[1]))
    return np.concatenate(out)


@pytest.mark.parametrize('partition', ['simhash', 'centres'])
@pytest.mark.parametrize('inner', [0, 5])
def test_encodings_equal_the_formula(partition, inner):
    encoder = FdeEncoder.fit(unit(300, 16), FdeConfig(3, 3, inner, partition))
    assert encoder.dims == 3 * 8 * (inner or 16)
    pages = [unit(n, 16, seed=n) for n in (1, 2, 5, 40, 17, 16)]
    for encode, page in ((encoder.encode_pages, True), (encoder.encode_queries, False)):
        found = encode(pages)
        for row, tokens in zip(found, pages, strict=True):
            np.testing.assert_allclose(row, by_hand(encoder, tokens, page), atol=2e-5)


def test_one_by_one_equals_together_whatever_the_lengths():
    encoder = FdeEncoder.fit(unit(500, 32), FdeConfig(4, 4, 8))
    pages = [unit(n, 32, seed=n) for n in (3, 700, 64, 65, 1, 200)]
    together = encoder.encode_pages(pages)
    for row, page in zip(together, pages, strict=True):
        np.testing.assert_allclose(encoder.encode_pages([page])[0], row, atol=1e-5)


def test_products_without_projection_and_with_one_bucket_are_of_the_means():
    # One bucket: the query's sum times the page's average, by hand.
    encoder = FdeEncoder.fit(unit(10, 8), FdeConfig(2, 0, 0, 'simhash'))
    query, page = unit(4, 8, seed=1), unit(6, 8, seed=2)
    product = encoder.encode_queries([query])[0] @ encoder.encode_pages([page])[0]
    assert product == pytest.approx(2 * query.sum(0) @ page.mean(0), abs=1e-5)


def test_products_rank_pages_as_maxsim_does():
    pages = [unit(50, 64, seed=n) for n in range(200)]
    encoder = FdeEncoder.fit(np.concatenate(pages[:50]), FdeConfig(20, 4, 16))
    queries = [pages[n][:12] + 0.1 * unit(12, 64, seed=n) for n in range(20)]
    scores = encoder.encode_queries(queries) @ encoder.encode_pages(pages).T
    assert (scores.argmax(1) == np.arange(20)).all()


def test_an_encoder_is_read_back_as_it_was(tmp_path):
    encoder = FdeEncoder.fit(unit(100, 16), FdeConfig(2, 3, 4))
    read = FdeEncoder.from_files(tmp_path, encoder.write_files(tmp_path))
    page = [unit(9, 16, seed=5)]
    np.testing.assert_array_equal(read.encode_pages(page), encoder.encode_pages(page))
    assert read.fingerprint == encoder.fingerprint
    assert FdeEncoder.fit(unit(100, 16), FdeConfig(2, 3, 4, seed=1)).fingerprint != read.fingerprint


@pytest.mark.parametrize('fields, message', [
    ({'repetitions': 0}, 'repetitions'), ({'bits': 11}, 'bits'), ({'inner_dims': -1}, 'inner_dims'),
    ({'partition': 'other'}, 'partition')])
def test_a_config_that_cannot_work_names_the_field(fields, message):
    with pytest.raises(ValueError, match=message):
        FdeConfig(**fields)
    with pytest.raises(ValueError, match='inner_dims = 17'):
        FdeEncoder.fit(unit(10, 16), FdeConfig(inner_dims=17))
