"""The cached sampler against the uncached model and a brute-force reading of its text."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from vrag_jax.metrics import compilations
from vrag_jax.models.config import preset
from vrag_jax.models.mrope import rope_index
from vrag_jax.models.parameters import flat_params, merge
from vrag_jax.models.qwen2_5_vl import Qwen2_5_VL
from vrag_jax.parallel.mesh import make_mesh
from vrag_jax.parallel.sharding import tree_shardings
from vrag_jax.perception.stopping import build_stop_table
from vrag_jax.sampling.distribution import SamplingConfig
from vrag_jax.sampling.sampler import Chunk, DecodeRequest, Sampler
from vrag_jax.sampling.slots import SamplerConfig

IMAGE, END, VOCAB = 3, 2, 64
CONFIG = preset('tiny', vocab_size=VOCAB, image_token_id=IMAGE)
# Most ids open or close an action, so that a random policy acts often.
BYTES = [b'', b'', b'', b''] + [b'<answer>'] * 6 + [b'</answer>'] * 6 + [b'<sea', b'rch>'] * 4
BYTES += [b'a', b'</search>', b'<think>', b'</think>', b' <', b'>'] * 2
BYTES += [b'z'] * (VOCAB - len(BYTES))
SIZES = dict(slots=4, max_length=64, max_new_tokens=16, prefill_lengths=(8, 32))
GREEDY, DRAWN = SamplingConfig(temperature=0.0), SamplingConfig()
GRIDS = ((), ((1, 4, 4),), ((1, 2, 6),), ())  # images of each row
LENGTHS = (40, 13, 21, 5)


@pytest.fixture(scope='module')
def policy():
    """Graph definition and random parameters."""
    create = lambda: flat_params(Qwen2_5_VL(CONFIG, rngs=nnx.Rngs(0)))  # noqa: E731
    graphdef, _ = nnx.eval_shape(create)
    # Random queries and keys of the usual size make attention nearly uniform.
    return graphdef, {path: value * 4 if re.search('[qk]_proj/kernel$', path) else value
                      for path, value in jax.jit(lambda: create()[1])().items()}


@pytest.fixture(scope='module')
def features():
    return jnp.asarray(np.random.default_rng(3).normal(size=(8, 128)), jnp.float32)


@pytest.fixture(scope='module')
def chunks():
    """A prompt for each slot: ragged, two of them with an image."""
    rng, made, used = np.random.default_rng(0), {}, 0
    for row, (grids, length) in enumerate(zip(GRIDS, LENGTHS, strict=True)):
        tokens = rng.integers(4, VOCAB, length).astype(np.int32)
        for _, h, w in grids:
            tokens[4 : 4 + h * w // 4] = IMAGE
        is_image = tokens == IMAGE
        index = np.where(is_image, used + np.cumsum(is_image) - 1, -1).astype(np.int32)
        used += int(is_image.sum())
        made[row] = Chunk(tokens, rope_index(tokens, grids, CONFIG)[0], index)
    return made


def request(chunk, seed=0, budget=16):
    return DecodeRequest(seed, int(chunk.position_ids.max()) + 1, budget)


def new_sampler(policy, mesh=None, **sizes):
    return Sampler(policy[0], CONFIG, SamplerConfig(**SIZES | sizes), build_stop_table(BYTES),
                   [END], base_seed=1, mesh=mesh)


@pytest.fixture(scope='module')
def sampler(policy):
    return new_sampler(policy)


def sample(sampler, policy, chunks, features, sampling, seeds=(0, 1, 2, 3), **fields):
    """Empties the slots, prefills the chunks and samples a turn in each."""
    sampler.reset()
    sampler.prefill(policy[1], chunks, features)
    requests = {row: request(chunk, seeds[row], **fields) for row, chunk in chunks.items()}
    return sampler.decode(policy[1], requests, sampling)


def assert_same_turns(got, want):
    assert got.keys() == want.keys()
    for row, turn in want.items():
        np.testing.assert_array_equal(got[row].tokens, turn.tokens)
        np.testing.assert_allclose(got[row].logprobs, turn.logprobs, atol=1e-4)
        assert got[row].stop == turn.stop


@pytest.fixture(scope='module')
def next_log_probs(policy, features):
    """Function: log-probs of the token after a sequence, by the uncached model."""
    graphdef, params = policy

    @jax.jit
    def run(params, tokens, positions, index, last):
        model = merge(graphdef, params)
        hidden = model.hidden_states(
            tokens, positions, image_features=features, image_index=index)
        return jax.nn.log_softmax(model.logits(hidden[0, last]))

    def of(tokens, positions, index):
        width = ((0, 64 - len(tokens)),)
        return np.asarray(run(
            params, np.pad(tokens, width)[None], np.pad(positions, ((0, 0), *width))[:, None],
            np.pad(index, width, constant_values=-1)[None], len(tokens) - 1))

    return of


def extended(chunk, tokens, next_position):
    """A chunk with text tokens after it."""
    n = len(tokens)
    places = np.tile(np.arange(next_position, next_position + n, dtype=np.int32), (3, 1))
    return Chunk(np.append(chunk.tokens, tokens).astype(np.int32),
                 np.concatenate([chunk.position_ids, places], axis=1),
                 np.append(chunk.image_index, np.full(n, -1, np.int32)))


@pytest.mark.parametrize('sampling', [GREEDY, DRAWN], ids=['greedy', 'drawn'])
def test_every_step_is_that_of_the_uncached_model(
        sampler, policy, chunks, features, next_log_probs, sampling):
    turns = sample(sampler, policy, chunks, features, sampling)
    for row, turn in turns.items():
        chunk, position = chunks[row], request(chunks[row]).next_position
        for n, (token, logprob) in enumerate(zip(turn.tokens, turn.logprobs, strict=True)):
            so_far = extended(chunk, turn.tokens[:n], position)
            log_p = next_log_probs(so_far.tokens, so_far.position_ids, so_far.image_index)
            if sampling is GREEDY:
                assert token == log_p.argmax()
            assert logprob == pytest.approx(log_p[token], abs=1e-4)


def test_a_second_turn_goes_on_from_the_first(sampler, policy, chunks, features, next_log_probs):
    first = sample(sampler, policy, chunks, features, GREEDY, budget=6)
    observation = np.arange(10, 17, dtype=np.int32)
    later, whole = {}, {}
    for row in (1, 3):
        chunk, position = chunks[row], request(chunks[row]).next_position
        whole[row] = extended(extended(chunk, first[row].tokens, position), observation,
                              position + len(first[row].tokens))
        n = len(chunk.tokens) + len(first[row].tokens)
        later[row] = Chunk(observation, whole[row].position_ids[:, n:], whole[row].image_index[n:])
    sampler.prefill(policy[1], later, features)
    second = sampler.decode(
        policy[1], {row: request(chunk) for row, chunk in whole.items()}, GREEDY)
    for row, chunk in whole.items():
        log_p = next_log_probs(chunk.tokens, chunk.position_ids, chunk.image_index)
        assert second[row].tokens[0] == log_p.argmax()
        assert second[row].logprobs[0] == pytest.approx(log_p.max(), abs=1e-4)


def cut(chunk, start, stop):
    return Chunk(chunk.tokens[start:stop], chunk.position_ids[:, start:stop],
                 chunk.image_index[start:stop])


def test_prefill_in_pieces_is_prefill_at_once(sampler, policy, chunks, features):
    want = sample(sampler, policy, chunks, features, GREEDY)
    # Row 0 is longer than the longest piece already; here every row comes in fives.
    sampler.reset()
    for start in range(0, max(LENGTHS), 5):
        pieces = {row: cut(chunk, start, start + 5) for row, chunk in chunks.items()
                  if start < len(chunk.tokens)}
        sampler.prefill(policy[1], pieces, features)
    got = sampler.decode(
        policy[1], {row: request(chunk, row) for row, chunk in chunks.items()}, GREEDY)
    assert_same_turns(got, want)


def test_a_slots_turn_depends_on_its_seed_and_prompt_only(sampler, policy, chunks, features):
    want = sample(sampler, policy, chunks, features, DRAWN)
    # The same prompts and seeds in other slots, and one of them alone.
    moved = {3: 0, 0: 1, 1: 2}
    got = sample(sampler, policy, {new: chunks[old] for new, old in moved.items()}, features,
                 DRAWN, seeds={new: old for new, old in moved.items()})
    assert_same_turns(got, {new: want[old] for new, old in moved.items()})
    alone = sample(sampler, policy, {2: chunks[1]}, features, DRAWN, seeds={2: 1})
    assert_same_turns(alone, {2: want[1]})


def test_slots_that_are_not_asked_do_not_move(sampler, policy, chunks, features):
    want = sample(sampler, policy, chunks, features, DRAWN)
    sampler.reset()
    sampler.prefill(policy[1], chunks, features)
    requests = {row: request(chunk, row) for row, chunk in chunks.items()}
    first = sampler.decode(policy[1], {row: requests[row] for row in (0, 2)}, DRAWN)
    second = sampler.decode(policy[1], {row: requests[row] for row in (1, 3)}, DRAWN)
    assert_same_turns(first | second, want)


def test_other_seeds_give_other_turns(sampler, policy, chunks, features):
    alone = {0: chunks[0]}
    turns = [tuple(sample(sampler, policy, alone, features, DRAWN, seeds={0: seed})[0].tokens)
             for seed in range(6)]
    assert len(set(turns)) > 1
    again = sample(sampler, policy, alone, features, DRAWN, seeds={0: 2**32 + 3})[0].tokens
    assert tuple(again) == turns[3]  # seeds are taken modulo 2^32


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


def test_turns_stop_at_the_closing_tag_the_end_or_the_budget(sampler, policy, chunks, features):
    reasons = set()
    for trial in range(12):
        seeds = range(4 * trial, 4 * trial + 4)
        for turn in sample(sampler, policy, chunks, features, DRAWN, seeds, budget=14).values():
            texts = [b''.join(BYTES[t] for t in turn.tokens[: n + 1]).decode()
                     for n in range(len(turn.tokens))]
            acted = [has_acted(text) for text in texts]
            ended = turn.tokens == END
            assert len(turn.tokens) == len(turn.logprobs) <= 14
            assert not any(acted[:-1]) and not ended[:-1].any()
            want = ('action' if acted[-1] else 'end_of_turn' if ended[-1] else 'length')
            assert turn.stop == want
            assert want != 'length' or len(turn.tokens) == 14
            reasons.add(want)
    assert reasons == {'action', 'end_of_turn', 'length'}


def test_the_budget_is_each_slots_own(sampler, policy, chunks, features):
    sampler.reset()
    sampler.prefill(policy[1], chunks, features)
    decoded = sampler.tokens_decoded
    budgets = {0: 1, 1: 3, 2: 99}
    turns = sampler.decode(
        policy[1], {r: request(chunks[r], r, b) for r, b in budgets.items()}, DRAWN)
    assert len(turns[0].tokens) == 1 and len(turns[1].tokens) <= 3
    assert len(turns[2].tokens) <= SIZES['max_new_tokens']
    assert sampler.tokens_decoded - decoded == sum(len(t.tokens) for t in turns.values())


def test_attending_to_less_of_the_cache_changes_nothing(
        sampler, policy, chunks, features):
    short = {row: chunks[row] for row in (1, 3)}
    want = sample(sampler, policy, short, features, DRAWN)
    shorter = new_sampler(policy, attend_lengths=(16, 32))
    got = sample(shorter, policy, short, features, DRAWN)
    assert_same_turns(got, want)


def test_the_smallest_length_that_holds_all_is_attended_to():
    config = SamplerConfig(**SIZES, attend_lengths=(16, 32))
    assert [config.attend_length(n) for n in (1, 16, 17, 32, 33, 64)] == [16, 16, 32, 32, 64, 64]


def test_prefill_shapes_by_hand():
    config = SamplerConfig(**SIZES | {'prefill_lengths': (8, 24)}, attend_lengths=(8, 32))
    # The longer prefill is taken from 9 tokens on, which no length of 8 holds.
    assert config.prefill_shapes() == [(8, 8), (8, 32), (8, 64), (24, 32), (24, 64)]


def test_nothing_compiles_after_the_warm_up(policy, chunks, features):
    new = new_sampler(policy, attend_lengths=(16, 32))
    new.warm_up(policy[1], features, DRAWN)
    before = compilations()
    got = sample(new, policy, chunks, features, DRAWN)
    sample(new, policy, {row: chunks[row] for row in (1, 3)}, features, DRAWN)
    assert compilations() == before
    cold = new_sampler(policy, attend_lengths=(16, 32))
    assert_same_turns(got, sample(cold, policy, chunks, features, DRAWN))


def test_later_turns_compile_nothing(sampler, policy, chunks, features):
    sample(sampler, policy, chunks, features, DRAWN)
    before = compilations()
    sample(sampler, policy, chunks, features, DRAWN, seeds=(9, 8, 7, 6))
    assert compilations() == before


def test_eight_devices_sample_what_one_does(sampler, policy, chunks, features):
    want = sample(sampler, policy, chunks, features, DRAWN)
    mesh = make_mesh({'data': 2, 'fsdp': 2, 'tensor': 2})
    graphdef, params = policy
    spread = graphdef, jax.device_put(params, tree_shardings(params, mesh))
    on_mesh = new_sampler(policy, mesh=mesh, prefill_lengths=(64,))
    cache = on_mesh._state.cache.k
    assert cache.addressable_shards[0].data.shape[1:3] == (cache.shape[1] // 4, cache.shape[2] // 2)
    assert_same_turns(sample(on_mesh, spread, chunks, features, DRAWN), want)
    before = compilations()
    assert_same_turns(sample(on_mesh, spread, chunks, features, DRAWN), want)
    assert compilations() == before


@pytest.mark.parametrize(('field', 'values'), [
    ('slots', {'slots': 0}), ('prefill_lengths', {'prefill_lengths': (32, 8)}),
    ('prefill_lengths', {'prefill_lengths': ()}), ('attend_lengths', {'attend_lengths': (65,)}),
    ('max_new_tokens', {'max_new_tokens': 65})])
def test_impossible_sizes_are_refused(field, values):
    with pytest.raises(ValueError, match=field):
        SamplerConfig(**SIZES | values)
