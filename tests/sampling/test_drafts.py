"""Guessing ahead: the guesses by brute force, and samples that it must not change."""

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vrag_jax.sampling.distribution import SamplingConfig
from vrag_jax.sampling.drafts import propose
from vrag_jax.sampling.kv_blocks import CachedSequence
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


def chi_square(tokens, p):
    """Of token counts against probabilities, those expected fewer than 5 times as one.

    Returns:
      The statistic and the degrees of freedom.
    """
    counts, expected = np.bincount(tokens, minlength=len(p)), len(tokens) * p
    rare = expected < 5
    counts = np.append(counts[~rare], counts[rare].sum())
    expected = np.append(expected[~rare], expected[rare].sum())
    return (((counts - expected) ** 2) / np.maximum(expected, 1e-9)).sum(), len(counts) - 1


def test_the_distribution_is_exact(speculative, policy, buffer, next_log_probs, extended):
    """Frequencies of the first token, and of the second where a guess has been accepted."""
    sharp = SamplingConfig(temperature=0.25)

    def prompt_of(guess):  # After 7 comes the guess, and after that 7.
        return Chunk(np.array([20, 7, guess, 7], np.int32),
                     np.tile(np.arange(4, dtype=np.int32), (3, 1)), np.full(4, -1, np.int32))

    def probabilities(chunk):
        p = np.exp(next_log_probs(chunk).astype(np.float64) / sharp.temperature)
        return p / p.sum()

    # A guess that is often right, so that many second tokens are drawn in its pass.
    guess = max(range(8, 40), key=lambda token: probabilities(prompt_of(token))[token])
    prompt = prompt_of(guess)
    first, second = [], []
    for start in range(0, 1600, 4):
        turns, _, _ = sample(speculative, policy[1], [prompt] * 4, buffer, sharp,
                             range(start, start + 4), budget=2)
        first += [turn[0] for turn in turns]
        second += [turn[1] for turn in turns if turn[0] == guess and len(turn) > 1]
    p, q = probabilities(prompt), probabilities(extended(prompt, [guess]))
    assert len(second) > 100, p[guess]
    # Of a normal approximation of the chi-square distribution, 4 deviations.
    for tokens, wanted in ((first, p), (second, q)):
        found, freedom = chi_square(np.array(tokens), wanted)
        assert found < freedom + 4 * np.sqrt(2 * freedom), (found, freedom)
