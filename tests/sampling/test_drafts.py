"""Guessing ahead: the guesses by brute force, and samples that it must not change."""

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vrag_jax.metrics import compilations
from vrag_jax.sampling.distribution import SamplingConfig
from vrag_jax.sampling.drafts import propose
from vrag_jax.sampling.pages import CachedSequence
from vrag_jax.sampling.sampler import Chunk, DecodeRequest

GREEDY, DRAWN = SamplingConfig(temperature=0.0), SamplingConfig()
WIDTH = 12


def by_hand(tokens, ngram, count):
    """What followed the last earlier occurrence of the last tokens."""
    for start in range(len(tokens) - ngram - 1, -1, -1):
        if len(tokens) >= ngram and tokens[start : start + ngram] == tokens[-ngram:]:
            found = tokens[start + ngram : start + ngram + count]
            return found + [-1] * (count - len(found))
    return [-1] * count


@settings(max_examples=100, deadline=None)
@given(st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=WIDTH), min_size=4, max_size=4),
       st.integers(1, 3), st.integers(1, 4))
def test_guesses_are_what_followed_before(rows, ngram, count):
    history = np.array([row + [-1] * (WIDTH - len(row)) for row in rows], np.int32)
    lengths = np.array([len(row) for row in rows], np.int32)
    got = jax.jit(propose, static_argnums=(2, 3))(history, lengths, ngram, count)
    assert got.tolist() == [by_hand(row, ngram, count) for row in rows]


def sample(sampler, params, prompts, buffer, sampling, seeds, budget=16):
    """Samples a turn after each prompt, however many calls it takes."""
    sampler.reset()
    sequences = [CachedSequence(0) for _ in prompts]
    for sequence, prompt in zip(sequences, prompts, strict=True):
        assert sampler.table.reserve(sequence, len(prompt) + 32)
    sampler.prefill(params, [(s, p[:-1]) for s, p in zip(sequences, prompts, strict=True)], buffer)
    turns = [[] for _ in prompts]
    logprobs = [[] for _ in prompts]
    states, stops = [sampler.initial] * len(prompts), [''] * len(prompts)
    while not all(stops):
        left = [n for n, stop in enumerate(stops) if not stop]
        requests = []
        for n in left:
            tokens = np.append(prompts[n].tokens, turns[n]).astype(np.int32)
            position = int(prompts[n].position_ids[0, -1]) + len(turns[n])
            requests.append(DecodeRequest(
                sequences[n], int(tokens[-1]), position, seeds[n], budget - len(turns[n]),
                states[n], tokens))
        for n, got in zip(left, sampler.decode(params, requests, sampling), strict=True):
            turns[n] += got.tokens.tolist()
            logprobs[n] += got.logprobs.tolist()
            states[n], stops[n] = got.automaton, got.stop
    return turns, logprobs, stops


@pytest.fixture(scope='module')
def speculative(make_sampler):
    return make_sampler(draft_tokens=3, draft_ngram=1)


@pytest.mark.parametrize('sampling', [GREEDY, DRAWN], ids=['greedy', 'drawn'])
def test_samples_are_those_without_guesses(
        sampler, speculative, policy, prompts, buffer, sampling):
    for trial in range(4):
        seeds = range(4 * trial, 4 * trial + 4)
        want = sample(sampler, policy[1], prompts, buffer, sampling, seeds)
        got = sample(speculative, policy[1], prompts, buffer, sampling, seeds)
        assert got[0] == want[0] and got[2] == want[2]
        for a, b in zip(got[1], want[1], strict=True):
            np.testing.assert_allclose(a, b, atol=1e-4)


def test_what_repeats_takes_fewer_passes(make_sampler, policy, buffer, extended):
    """A policy that is made to say the same token again and again."""
    graphdef, params = policy
    head = 'language_model/embed_tokens/embedding'
    # The final norm's scale is zero: all logits are equal, and the first id is greedy.
    params = {path: value * 0 if path == 'language_model/norm/scale' else value
              for path, value in params.items()}
    assert head in params
    one_by_one, ahead = make_sampler(), make_sampler(draft_tokens=3, draft_ngram=1)
    prompt = Chunk(np.array([9, 0, 0, 0, 0, 0], np.int32), np.tile(np.arange(6, dtype=np.int32),
                                                                   (3, 1)), np.full(6, -1))
    want = sample(one_by_one, params, [prompt], buffer, GREEDY, [0])
    before = ahead.passes
    got = sample(ahead, params, [prompt], buffer, GREEDY, [0])
    assert got[0] == want[0] == [[0] * 16]
    assert one_by_one.passes == 16
    # The last occurrence is followed by one token, so a pass gives two.
    assert ahead.passes - before == 8


def test_the_distribution_is_exact(speculative, policy, prompts, buffer, next_log_probs, extended):
    """Frequencies of the second token, most of whose draws follow a guess or its refusal."""
    prompt = Chunk(np.array([20, 7, 21, 7], np.int32),
                   np.tile(np.arange(4, dtype=np.int32), (3, 1)), np.full(4, -1, np.int32))
    first, second = [], []
    for start in range(0, 1600, 4):
        turns, _, _ = sample(speculative, policy[1], [prompt] * 4, buffer, DRAWN,
                             range(start, start + 4), budget=2)
        first += [turn[0] for turn in turns]
        second += [turn[1] for turn in turns if turn[0] == 21 and len(turn) > 1]
    before = compilations()
    p = np.exp(next_log_probs(prompt))
    counts = np.bincount(first, minlength=len(p))
    chi_square = (((counts - 1600 * p) ** 2) / (1600 * p)).sum()
    # The 99.9 % point of the chi-square distribution with 63 degrees of freedom.
    assert chi_square < 103.4
    # The guess after 7 is 21, and after that 7: drawn in the same pass where accepted.
    assert len(second) > 10
    q = np.exp(next_log_probs(extended(prompt, [21])))
    share = np.mean([token == 7 for token in second])
    assert abs(share - q[7]) < 4 * np.sqrt(q[7] * (1 - q[7]) / len(second)) + 1e-9
    assert compilations() - before <= 2  # Of the uncached model alone.
