"""Whatever the slots, the cache and the company: a stream gets the tokens it gets alone."""

import dataclasses

import jax
import numpy as np
import pytest

from vrag_jax.models.common.axes import parameter_shardings
from vrag_jax.parallel.mesh import make_mesh
from vrag_jax.sampling.distribution import SamplingConfig
from vrag_jax.sampling.image_features import ImageFeatureCache, make_encoder
from vrag_jax.sampling.scheduler import Scheduler

DRAWN = SamplingConfig()
TURNS = 3


@dataclasses.dataclass(eq=False)
class Text:
    """A stream of text tokens."""

    tokens: list
    processed: list = dataclasses.field(default_factory=list)
    logprobs: list = dataclasses.field(default_factory=list)

    def __len__(self):
        return len(self.tokens)

    def tail(self, start):
        tokens = np.array(self.tokens[start:], np.int32)
        places = np.arange(start, len(self.tokens), dtype=np.int32)
        return tokens, np.tile(places, (3, 1)), np.full(len(tokens), -1, np.int32)

    def append_text(self, ids, logprobs=None, sampled=False):
        self.tokens += np.asarray(ids).tolist()
        self.logprobs += [] if logprobs is None else logprobs.tolist()


def prompts(seed=0, count=7):
    rng = np.random.default_rng(seed)
    return [rng.integers(4, 64, rng.integers(2, 14)).tolist() for _ in range(count)]


def play(sampler, params, groups, away=0, turns=TURNS):
    """Plays several turns of each stream; observations come `away` calls late.

    Args:
      sampler: whose sizes are tried.
      params: of the policy.
      groups: prompts and how many streams each has.
      away: calls between the end of a turn and the next.
      turns: turns of a stream.

    Returns:
      The streams in order, and the scheduler.
    """
    scheduler = Scheduler(sampler, None, params, DRAWN)
    streams, number = [], 0
    for prompt, count in groups:
        group = [Text(list(prompt)) for _ in range(count)]
        scheduler.add(group, range(number, number + count))
        streams += group
        number += count
    done = {id(stream): 0 for stream in streams}
    late = []
    for _ in range(2000):
        over = scheduler.step()
        late.append(over)
        while late and (len(late) > away or scheduler.idle):
            for stream, turn in late.pop(0):
                assert stream.tokens[-len(turn.tokens):] == turn.tokens.tolist()
                done[id(stream)] += 1
                if done[id(stream)] == turns or len(stream) > 50:
                    scheduler.finish(stream)
                else:
                    stream.append_text([5 + done[id(stream)], 6, 7])
                    scheduler.resume(stream)
        if scheduler.done:
            return streams, scheduler
    raise AssertionError('the scheduler does not come to an end')


@pytest.fixture(scope='module')
def want(make_sampler, policy):
    """Every stream by itself."""
    sampler, out = make_sampler(), []
    for number, prompt in enumerate(prompts()):
        scheduler = Scheduler(sampler, None, policy[1], DRAWN)
        stream = Text(list(prompt))
        scheduler.add([stream], [number])
        for turn in range(1, TURNS + 1):
            while not scheduler.step():
                pass
            if turn == TURNS or len(stream) > 50:
                break
            stream.append_text([5 + turn, 6, 7])
            scheduler.resume(stream)
        out.append(stream)
    return out


def assert_same(streams, want):
    for got, stream in zip(streams, want, strict=True):
        assert got.tokens == stream.tokens
        np.testing.assert_allclose(got.logprobs, stream.logprobs, atol=1e-4)


@pytest.mark.parametrize('changes', [
    {}, pytest.param({'slots': 2}, marks=pytest.mark.slow),
    pytest.param({'slots': 1}, marks=pytest.mark.slow), {'slots': 3, 'fewer_slots': (1,)},
    {'decode_tokens': 2}, {'refill': 1.0}, {'slots': 16, 'block_size': 3},
    {'slots': 3, 'draft_tokens': 3, 'draft_ngram': 1}], ids=str)
@pytest.mark.parametrize('away', [0, 2])
def test_streams_get_what_they_get_alone(make_sampler, policy, want, changes, away):
    sampler = make_sampler(**changes)
    streams, _ = play(sampler, policy[1], [(prompt, 1) for prompt in prompts()], away)
    assert_same(streams, want)
    assert sampler.table.free(0) == sampler.table.blocks


def test_a_full_cache_makes_streams_wait(make_sampler, policy, want):
    small = make_sampler(cache_tokens=64)  # One stream of the greatest length.
    streams, scheduler = play(small, policy[1], [(prompt, 1) for prompt in prompts()])
    assert_same(streams, want)
    assert small.table.free(0) == small.table.blocks == 8
    large = make_sampler()
    _, unbounded = play(large, policy[1], [(prompt, 1) for prompt in prompts()])
    assert unbounded.preemptions == 0
    assert small.tokens_prefilled >= large.tokens_prefilled


def test_those_that_outgrow_the_cache_give_way_and_come_back(make_sampler, policy):
    # Twelve blocks of 4 tokens: four short prompts come in, and cannot all grow.
    groups = [(prompt[:3] + [9], 1) for prompt in prompts()]
    sizes = dict(block_size=4, decode_tokens=2, max_new_tokens=16, slots=4)
    small = make_sampler(cache_tokens=64, **sizes)
    streams, scheduler = play(small, policy[1], groups, away=1)
    assert scheduler.preemptions > 0
    want, _ = play(make_sampler(**sizes), policy[1], groups)
    assert_same(streams, want)
    assert small.table.free(0) == small.table.blocks


def test_a_groups_prompt_is_taken_in_once(make_sampler, policy):
    prompt = prompts()[0] * 3
    sampler = make_sampler(slots=8, decode_tokens=8)
    streams, _ = play(sampler, policy[1], [(prompt, 5)], turns=1)
    assert sampler.tokens_prefilled == len(prompt) - 1
    alone = make_sampler(slots=8)
    for seed, stream in enumerate(streams):
        scheduler = Scheduler(alone, None, policy[1], DRAWN)
        single = Text(list(prompt))
        scheduler.add([single], [seed])
        while not scheduler.step():
            pass
        assert single.tokens == stream.tokens
    assert len({tuple(stream.tokens) for stream in streams}) > 1


@pytest.mark.parametrize('cache_tokens', [
    64, *(pytest.param(n, marks=pytest.mark.slow) for n in (80, 128))])
def test_a_group_larger_than_the_cache_comes_in_parts(make_sampler, policy, cache_tokens):
    groups = [(prompt, 4) for prompt in prompts(count=3)]
    want, _ = play(make_sampler(slots=12), policy[1], groups)
    got, _ = play(make_sampler(slots=12, cache_tokens=cache_tokens), policy[1], groups, away=1)
    assert_same(got, want)


@pytest.mark.parametrize('length', [15, 16, 17])
def test_the_rest_of_a_group_takes_the_prompt_from_those_that_are_there(
        make_sampler, policy, length):
    prompt = (prompts()[0] * 9)[:length]
    sizes = dict(slots=8, block_size=4, decode_tokens=4, max_new_tokens=8)
    large, small = make_sampler(**sizes), make_sampler(cache_tokens=64, **sizes)
    want, whole = play(large, policy[1], [(prompt, 8)], turns=2)
    got, parts = play(small, policy[1], [(prompt, 8)], away=1, turns=2)
    assert_same(got, want)
    assert whole.preemptions == 0
    least = length - 1
    assert large.tokens_prefilled >= least
    # Only what a stream that lost its place had beyond the prompt is prefilled again.
    longest = max(map(len, got)) - length
    assert small.tokens_prefilled <= large.tokens_prefilled + parts.preemptions * longest
    assert small.table.free(0) == small.table.blocks


def test_a_shard_without_room_does_not_stop_those_that_wait_for_another(make_sampler, policy):
    """The shard with the fewest at work is full of a stream that is away."""
    mesh = make_mesh({'data': 2, 'sequence': 2, 'tensor': 2})
    params = jax.device_put(policy[1], parameter_shardings(policy[1], mesh))
    sampler = make_sampler(mesh=mesh, slots=4, block_size=8, cache_tokens=128, decode_tokens=2,
                           max_new_tokens=8)
    assert sampler.shards == 2 and sampler.table.blocks == 8
    scheduler = Scheduler(sampler, None, params, DRAWN)
    large, small, waiting = (Text([9] * length) for length in (57, 9, 16))
    for seed, stream in enumerate((large, small)):
        scheduler.add([stream], [seed])
    table = sampler.table
    while not (over := scheduler.step()) or over[0][0] is not large:
        assert not over, 'the other stream must be under way'
    scheduler.add([waiting], [3])
    before = len(waiting)
    scheduler.step()
    assert len(waiting) > before, (table.free(0), table.free(1))


def test_streams_without_a_token_in_the_cache_decode(make_sampler, policy, next_log_probs):
    """A prompt of one token: nothing is prefilled before it."""
    streams, _ = play(make_sampler(), policy[1], [([9], 2)], turns=1)
    assert all(len(stream) > 1 for stream in streams)


def test_prompts_that_cannot_be_are_refused(make_sampler, policy):
    scheduler = Scheduler(make_sampler(), None, policy[1], DRAWN)
    with pytest.raises(ValueError, match='64 tokens leaves no room in max_length = 64'):
        scheduler.add([Text([5] * 64)], [0])
    with pytest.raises(ValueError, match='must begin with the same tokens'):
        scheduler.add([Text([5, 6]), Text([5, 7])], [0, 1])


def test_the_feature_buffer_bounds_what_is_taken_in_at_once(make_sampler, policy, model):
    """Streams with an image each, and a buffer that holds one image at a time."""
    from vrag_jax.models.common.images import ProcessedImage

    rng = np.random.default_rng(0)
    images = [ProcessedImage(
        f'image{n}', rng.integers(0, 256, (16, model.vision.patch_bytes), np.uint8), (1, 4, 4), 4)
        for n in range(3)]

    class Shown(Text):
        def tail(self, start):
            tokens, places, index = super().tail(start)
            here = np.arange(start, len(self.tokens))
            return tokens, places, np.where((here >= 2) & (here < 6), here - 2, -1)

    def run(rows):
        features = ImageFeatureCache(make_encoder(policy[0]), model, rows, windows=4, span=1)
        sampler = make_sampler()
        scheduler = Scheduler(sampler, features, policy[1], DRAWN)
        streams = [Shown([8, 9, 3, 3, 3, 3, 10], [image]) for image in images]
        for seed, stream in enumerate(streams):
            scheduler.add([stream], [seed])
        over = []
        while len(over) < 3:
            over += scheduler.step()
        return [stream.tokens for stream in streams]

    assert run(4) == run(64)
    with pytest.raises(ValueError, match='config.vision_features.rows'):
        run(3)
