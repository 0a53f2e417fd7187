"""The cached sampler against the uncached model and a brute-force reading of its text."""

import re

import jax
import numpy as np
import pytest

from vrag_jax.metrics import compilations
from vrag_jax.models.common.axes import parameter_shardings
from vrag_jax.parallel.mesh import make_mesh
from vrag_jax.sampling.distribution import SamplingConfig
from vrag_jax.sampling.kv_blocks import CachedSequence
from vrag_jax.sampling.sampler import DecodeRequest

GREEDY, DRAWN = SamplingConfig(temperature=0.0), SamplingConfig()


def begin(sampler, params, chunks, buffer, shards=None):
    """Caches all tokens but the last of each chunk, by name."""
    sampler.reset()
    made = {}
    for number, (name, chunk) in enumerate(chunks.items()):
        made[name] = CachedSequence(0 if shards is None else shards[number])
        assert sampler.table.reserve(made[name], len(chunk) - 1)
    sampler.prefill(params, [(made[name], chunk[:-1]) for name, chunk in chunks.items()], buffer)
    return made


def request(sampler, sequence, chunk, seed=0, budget=16, automaton=None):
    room = min(budget, sampler.config.recent_tokens)
    assert sampler.table.reserve(sequence, room)
    return DecodeRequest(
        sequence, int(chunk.tokens[-1]), int(chunk.position_ids[0, -1]), seed, budget,
        sampler.initial if automaton is None else automaton, chunk.tokens)


def sample(sampler, params, chunks, buffer, sampling, seeds=None, budget=16, **places):
    """Samples a turn after each chunk, in one call."""
    made = begin(sampler, params, chunks, buffer, **places)
    seeds = {name: name for name in chunks} if seeds is None else seeds
    requests = [request(sampler, made[name], chunk, seeds[name], budget)
                for name, chunk in chunks.items()]
    return dict(zip(chunks, sampler.decode(params, requests, sampling), strict=True))


def assert_same_turns(got, want, atol=1e-4):
    assert got.keys() == want.keys()
    for name, turn in want.items():
        np.testing.assert_array_equal(got[name].tokens, turn.tokens)
        np.testing.assert_allclose(got[name].logprobs, turn.logprobs, atol=atol)
        assert got[name].stop == turn.stop


@pytest.fixture(scope='module')
def chunks(prompts):
    return dict(enumerate(prompts))


@pytest.fixture(scope='module')
def want(sampler, policy, chunks, buffer):
    """A drawn turn after each prompt."""
    return sample(sampler, policy[1], chunks, buffer, DRAWN)


@pytest.mark.parametrize('sampling', [GREEDY, DRAWN], ids=['greedy', 'drawn'])
def test_every_step_is_that_of_the_uncached_model(
        sampler, policy, chunks, buffer, next_log_probs, extended, sampling):
    turns = sample(sampler, policy[1], chunks, buffer, sampling)
    for name, turn in turns.items():
        for n, (token, logprob) in enumerate(zip(turn.tokens, turn.logprobs, strict=True)):
            log_p = next_log_probs(extended(chunks[name], turn.tokens[:n]))
            if sampling is GREEDY:
                assert token == log_p.argmax()
            assert logprob == pytest.approx(log_p[token], abs=1e-4)


def go_on(sampler, params, made, chunks, sampling, extended):
    """Samples to the end of every turn, call after call."""
    tokens = {name: [] for name in chunks}
    logprobs, state, stop = {name: [] for name in chunks}, {}, {}
    while len(stop) < len(chunks):
        left = [name for name in chunks if name not in stop]
        requests = [
            request(sampler, made[name], extended(chunks[name], np.asarray(tokens[name], int)),
                    name, 16 - len(tokens[name]), state.get(name)) for name in left]
        for name, got in zip(left, sampler.decode(params, requests, sampling), strict=True):
            tokens[name] += got.tokens.tolist()
            logprobs[name] += got.logprobs.tolist()
            state[name] = got.automaton
            if got.stop:
                stop[name] = got.stop
    return tokens, logprobs, stop


def test_a_turn_in_many_calls_is_the_turn_in_one(
        make_sampler, policy, chunks, buffer, want, extended):
    short = make_sampler(decode_tokens=3)
    made = begin(short, policy[1], chunks, buffer)
    tokens, logprobs, stop = go_on(short, policy[1], made, chunks, DRAWN, extended)
    for name, turn in want.items():
        assert tokens[name] == turn.tokens.tolist() and stop[name] == turn.stop
        np.testing.assert_allclose(logprobs[name], turn.logprobs, atol=1e-4)


def test_a_call_returns_when_enough_turns_are_over(
        make_sampler, policy, chunks, buffer, want):
    lengths = {name: len(turn.tokens) for name, turn in want.items()}
    assert len(set(lengths.values())) > 1
    sampler = make_sampler()
    made = begin(sampler, policy[1], chunks, buffer)
    requests = [request(sampler, made[name], chunk, name) for name, chunk in chunks.items()]
    got = sampler.decode(policy[1], requests, DRAWN, stop_after=1)
    shortest = min(lengths.values())
    assert sampler.passes == shortest
    for name, turn in enumerate(got):
        np.testing.assert_array_equal(turn.tokens, want[name].tokens[:shortest])
        assert turn.stop == (want[name].stop if lengths[name] == shortest else '')


def test_a_second_turn_goes_on_from_the_first(
        sampler, policy, chunks, buffer, next_log_probs, extended):
    first = sample(sampler, policy[1], chunks, buffer, GREEDY, budget=6)
    made = begin(sampler, policy[1], chunks, buffer)
    requests = [request(sampler, made[name], chunk, name, 6) for name, chunk in chunks.items()]
    sampler.decode(policy[1], requests, GREEDY)
    for name in (1, 3):
        whole = extended(chunks[name], [*first[name].tokens, *range(10, 17)])
        start = made[name].length
        assert start == len(chunks[name]) + len(first[name].tokens) - 1
        assert sampler.table.reserve(made[name], len(whole) - 1 - start)
        sampler.prefill(policy[1], [(made[name], whole[start:-1])], buffer)
        second, = sampler.decode(policy[1], [request(sampler, made[name], whole)], GREEDY)
        log_p = next_log_probs(whole)
        assert second.tokens[0] == log_p.argmax()
        assert second.logprobs[0] == pytest.approx(log_p.max(), abs=1e-4)


def test_prefill_in_pieces_is_prefill_at_once(sampler, policy, chunks, buffer, want):
    # The longest is longer than the widest program already; here all come in fives.
    sampler.reset()
    made = {name: CachedSequence(0) for name in chunks}
    for name, chunk in chunks.items():
        sampler.table.reserve(made[name], len(chunk) - 1)
        for start in range(0, len(chunk) - 1, 5):
            sampler.prefill(
                policy[1], [(made[name], chunk[:-1][start : start + 5])], buffer)
    requests = [request(sampler, made[name], chunk, name) for name, chunk in chunks.items()]
    got = dict(zip(chunks, sampler.decode(policy[1], requests, DRAWN), strict=True))
    assert_same_turns(got, want)


def test_a_turn_depends_on_its_seed_and_prompt_only(sampler, policy, chunks, buffer, want):
    others = {3: chunks[3], 0: chunks[0]}
    assert_same_turns(sample(sampler, policy[1], others, buffer, DRAWN),
                      {name: want[name] for name in others})
    assert_same_turns(sample(sampler, policy[1], {2: chunks[2]}, buffer, DRAWN), {2: want[2]})


@pytest.mark.parametrize('size,lengths', [
    pytest.param(1, (), marks=pytest.mark.slow), (5, (16, 32)),
    pytest.param(64, (), marks=pytest.mark.slow)])
def test_blocks_of_other_sizes_change_nothing(
        make_sampler, policy, chunks, buffer, want, size, lengths):
    other = make_sampler(block_size=size, attend_lengths=lengths)
    assert_same_turns(sample(other, policy[1], chunks, buffer, DRAWN), want)


def test_scanned_layers_are_unrolled_layers(make_sampler, policy, chunks, buffer, want):
    scanned = make_sampler(unroll_depth=1)
    assert_same_turns(sample(scanned, policy[1], chunks, buffer, DRAWN), want)


def test_copies_of_a_sequence_share_its_prompt(sampler, policy, chunks, buffer, want):
    for name in (0, 1, 3):  # 39, 12 and 4 tokens are cached: partly filled blocks.
        made = begin(sampler, policy[1], {name: chunks[name]}, buffer)
        before, taken = sampler.tokens_prefilled, sampler.table.free(0)
        (copies,) = sampler.fork([made[name]], [3], [made[name].length])
        assert sampler.tokens_prefilled == before
        assert taken - sampler.table.free(0) == 3  # The last block of each, and no more.
        alike = [made[name], *copies]
        requests = [request(sampler, sequence, chunks[name], seed)
                    for sequence, seed in zip(alike, (name, 7, 8, name), strict=True)]
        first, other, _, last = sampler.decode(policy[1], requests, DRAWN)
        assert_same_turns({name: first}, {name: want[name]})
        assert_same_turns({name: last}, {name: want[name]})
        alone = sample(sampler, policy[1], {7: chunks[name]}, buffer, DRAWN)
        assert_same_turns({7: other}, alone)


def test_a_copy_of_a_beginning_is_not_changed_by_what_follows(
        sampler, policy, chunks, buffer, want):
    made = begin(sampler, policy[1], {0: chunks[0]}, buffer)
    prompt = made[0].length
    sampler.decode(policy[1], [request(sampler, made[0], chunks[0], 0)], DRAWN)
    assert made[0].length > prompt  # Its last block now holds more than the prompt.
    ((copy,),) = sampler.fork([made[0]], [1], [prompt])
    sampler.table.release(made[0])
    (got,) = sampler.decode(policy[1], [request(sampler, copy, chunks[0], 0)], DRAWN)
    assert_same_turns({0: got}, {0: want[0]})


def test_a_cache_in_bfloat16_is_close(make_sampler, policy, chunks, buffer):
    want = sample(make_sampler(), policy[1], chunks, buffer, GREEDY, budget=1)
    half = make_sampler(cache_dtype='bfloat16')
    assert half._pool.k.dtype == half._pool.v.dtype == 'bfloat16'
    got = sample(half, policy[1], chunks, buffer, GREEDY, budget=1)
    for name in want:
        assert got[name].logprobs[0] == pytest.approx(want[name].logprobs[0], abs=0.03)
        assert got[name].logprobs[0] != want[name].logprobs[0]


def test_other_seeds_give_other_turns(sampler, policy, chunks, buffer):
    alone = {0: chunks[0]}
    turns = [tuple(sample(sampler, policy[1], alone, buffer, DRAWN, seeds={0: seed})[0].tokens)
             for seed in range(6)]
    assert len(set(turns)) > 1
    again = sample(sampler, policy[1], alone, buffer, DRAWN, seeds={0: 2**32 + 3})[0].tokens
    assert tuple(again) == turns[3]  # Seeds are taken modulo 2^32.


CLOSED = re.compile(r'<answer>.*?</answer>|<search>.*?</search>', re.DOTALL)
THOUGHT = re.compile(r'<think>.*?(</think>|$)', re.DOTALL)


def has_acted(text):
    """Whether a text, read from the left, closes an action outside `<think>`."""
    while True:
        tags = [m for m in (THOUGHT.search(text), re.search('<answer>|<search>', text)) if m]
        first = min(tags, key=lambda m: m.start(), default=None)
        if first is None or first.re is not THOUGHT:
            return first is not None and CLOSED.match(text, first.start()) is not None
        text = text[first.end():]


def test_turns_stop_at_the_closing_tag_the_end_or_the_budget(
        sampler, policy, chunks, buffer, token_texts, end_id):
    reasons = set()
    for trial in range(12):
        seeds = {name: 4 * trial + name for name in chunks}
        turns = sample(sampler, policy[1], chunks, buffer, DRAWN, seeds, budget=14)
        for turn in turns.values():
            texts = [b''.join(token_texts[t] for t in turn.tokens[: n + 1]).decode()
                     for n in range(len(turn.tokens))]
            acted = [has_acted(text) for text in texts]
            ended = turn.tokens == end_id
            assert len(turn.tokens) == len(turn.logprobs) <= 14
            assert not any(acted[:-1]) and not ended[:-1].any()
            want = ('action' if acted[-1] else 'end_of_turn' if ended[-1] else 'length')
            assert turn.stop == want
            assert want != 'length' or len(turn.tokens) == 14
            reasons.add(want)
    assert reasons == {'action', 'end_of_turn', 'length'}


def test_the_budget_is_each_sequences_own(sampler, policy, chunks, buffer):
    made = begin(sampler, policy[1], chunks, buffer)
    decoded = sampler.tokens_decoded
    requests = [request(sampler, made[name], chunks[name], name, budget)
                for name, budget in ((0, 1), (1, 3))]
    turns = sampler.decode(policy[1], requests, DRAWN)
    assert len(turns[0].tokens) == 1 and len(turns[1].tokens) <= 3
    assert sampler.tokens_decoded - decoded == sum(len(t.tokens) for t in turns)


def test_sizes_by_hand(sizes):
    config = sizes(attend_lengths=(16, 30), block_size=8)
    assert [config.attend_blocks(n) for n in (0, 1, 16, 17, 30, 31, 64)] == [0, 2, 2, 4, 4, 8, 8]
    assert config.all_attend_blocks() == [2, 4, 8]
    # 4 slots of 64 tokens over two devices, in blocks of 8.
    assert (config.pool_blocks(1), config.pool_blocks(2)) == (32, 16)
    assert sizes(cache_tokens=100).pool_blocks(1) == 13
    with pytest.raises(ValueError, match='cache_tokens = 100 over 2 devices'):
        sizes(cache_tokens=100).pool_blocks(2)


def test_few_rows_take_the_small_programs(make_sampler, policy, chunks, buffer):
    """Pieces of 8 tokens or fewer take four rows, others two."""
    sampler = make_sampler(prefill_shapes=((4, 8), (2, 8), (2, 32)))
    seen = []
    prefill = sampler._programs.prefill
    object.__setattr__(sampler._programs, 'prefill', lambda params, pool, new, features: (
        seen.append(new.tokens.shape), prefill(params, pool, new, features))[1])
    sample(sampler, policy[1], chunks, buffer, GREEDY)  # 39, 12, 20 and 4 tokens
    # Of 4, 12, 20 and 32 tokens, then what is left of the longest, 7.
    assert seen == [(2, 8), (2, 32), (2, 32), (2, 8)]


@pytest.mark.slow
def test_nothing_compiles_after_the_warm_up(make_sampler, policy, chunks, buffer, want):
    new = make_sampler(attend_lengths=(16, 32), fewer_slots=(2,))
    new.warm_up(policy[1], buffer, DRAWN)
    before = compilations()
    assert_same_turns(sample(new, policy[1], chunks, buffer, DRAWN), want)
    few = {name: chunks[name] for name in (1, 3)}
    assert_same_turns(sample(new, policy[1], few, buffer, DRAWN), {n: want[n] for n in few})
    new.fork([CachedSequence(0)], [2], [0])
    assert compilations() == before


def test_eight_devices_sample_what_one_does(make_sampler, policy, chunks, buffer, want):
    mesh = make_mesh({'data': 2, 'fsdp': 2, 'tensor': 2})
    params = jax.device_put(policy[1], parameter_shardings(policy[1], mesh))
    spread = make_sampler(mesh=mesh, slots=8)
    keys = spread._pool.k
    assert keys.shape[0] == 4
    # A device has one part of the pool, and half of its heads.
    part = keys.addressable_shards[0].data.shape
    assert part == (1, *keys.shape[1:4], keys.shape[4] // 2, keys.shape[5])
    shards = [0, 3, 3, 1]
    assert_same_turns(sample(spread, params, chunks, buffer, DRAWN, shards=shards), want)
    before = compilations()
    assert_same_turns(sample(spread, params, chunks, buffer, DRAWN, shards=shards), want)
    assert compilations() == before


@pytest.mark.parametrize(('field', 'values'), [
    ('slots', {'slots': 0}), ('prefill_shapes', {'prefill_shapes': ((4, 0),)}),
    ('prefill_shapes', {'prefill_shapes': ()}), ('attend_lengths', {'attend_lengths': (65,)}),
    ('fewer_slots', {'fewer_slots': (4,)}), ('refill', {'refill': 0.0}),
    ('draft_tokens', {'draft_tokens': 16}), ('block_size', {'block_size': 0}),
    ('cache_tokens', {'cache_tokens': 63}), ('max_new_tokens', {'max_new_tokens': 65})])
def test_impossible_sizes_are_refused(sizes, field, values):
    with pytest.raises(ValueError, match=field):
        sizes(**values)


def test_a_turn_may_go_on_to_its_end_after_its_action(make_sampler, policy, chunks, buffer):
    """With `stop_at='end_of_turn'` the tokens go on where the other sampler stopped."""
    stopping, going_on = make_sampler(), make_sampler(stop_at='end_of_turn')
    acted = 0
    for first in range(0, 80, 4):
        seeds = {name: first + name for name in chunks}
        stopped = sample(stopping, policy[1], chunks, buffer, DRAWN, seeds)
        longer = sample(going_on, policy[1], chunks, buffer, DRAWN, seeds)
        for name, turn in longer.items():
            n = len(stopped[name].tokens)
            assert turn.stop in ('end_of_turn', 'length')
            np.testing.assert_array_equal(turn.tokens[:n], stopped[name].tokens)
            goes_on = stopped[name].stop == 'action' and n < 16
            assert (len(turn.tokens) > n) == goes_on
            acted += goes_on
    assert acted


def test_an_unknown_place_to_stop_is_refused(sizes):
    with pytest.raises(ValueError, match="stop_at must be one of"):
        sizes(stop_at='never')
