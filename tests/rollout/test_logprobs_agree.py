"""What the learner computes of a trajectory is what the sampler computed while it was sampled.

The importance ratio of GRPO is exp(learner - sampler): it must be 1 before the
first update, for every sampled token, with images, crops and several turns.
"""

import dataclasses

import jax
import numpy as np
import pytest

from vrag_jax.data.sequences import global_rows
from vrag_jax.experts.scripted import STYLES, ExpertState, ScriptedExpert
from vrag_jax.learner.learner import Learner, LearnerConfig
from vrag_jax.learner.steps import supervised
from vrag_jax.models.common.tokenizer import token_bytes
from vrag_jax.parallel.mesh import make_mesh
from vrag_jax.rollout.driver import episode_seed, run_expert, run_policy
from vrag_jax.sampling.distribution import SamplingConfig
from vrag_jax.sampling.kv_blocks import CachedSequence
from vrag_jax.sampling.sampler import Chunk, DecodeRequest

TOLERANCE = 1e-4
OPENING = ('<think>x</think><search>{question}</search>',
           '<think>x</think><bbox>[10, 20, 60, 70]</bbox>')


@pytest.fixture(scope='module')
def learner(policy, model_config):
    settings = LearnerConfig(frozen='^visual/', rows=2, length=400)
    mesh = make_mesh({}, devices=jax.devices()[:1])
    return Learner(*policy, model_config, settings, supervised, 1, mesh)


@pytest.fixture(scope='module', params=[(), OPENING], ids=['no image', 'page and crop'])
def sampled(request, world, sampler, features, policy, questions):
    """Episodes of a random policy, some of them with images to begin with."""
    seeds = [episode_seed(len(request.param), i) for i in range(4)]
    return run_policy(world, sampler, features, policy[1], questions[:4], SamplingConfig(), seeds,
                      request.param)


def test_of_sampled_trajectories(sampled, learner, features, policy):
    got = learner.logprobs(policy[1], [t.sequence() for t in sampled], features)
    assert sum(t.loss_mask.sum() for t in sampled) > 60
    for trajectory, values in zip(sampled, got, strict=True):
        np.testing.assert_allclose(values, trajectory.logprobs, atol=TOLERANCE)


def test_only_text_and_ends_of_turns_are_sampled(sampled, tokenizer, world, model_config):
    table = token_bytes(tokenizer, model_config.text.vocab_size)
    drawn = np.concatenate([t.tokens[t.loss_mask > 0] for t in sampled])
    # A random policy would draw one of these for every seventh token.
    assert table.count(b'') > len(table) / 8
    assert all(table[i] or i == world.chat.end_of_turn_id for i in drawn)
    for t in sampled:
        placeholders = np.flatnonzero(t.tokens == model_config.image_token_id)
        np.testing.assert_array_equal(placeholders, np.flatnonzero(t.image_index >= 0))


@pytest.fixture(scope='module')
def expert_trajectories(world, questions, pageworld):
    """One trajectory of each number of images: pages, crops, several hops."""
    expert = ScriptedExpert(pageworld.layouts, STYLES['careful'])
    played = run_expert(
        world, questions,
        lambda question, episode: expert.act(question, ExpertState(
            [view.frame for view in episode.images], len(episode.turns))), 320)
    chosen = {len(t.images): t for t in played}
    assert max(chosen) >= 4
    return [chosen[n] for n in sorted(chosen)][-4:]


def cuts(trajectory):
    """Where to compare: the first tokens of every turn, and its last."""
    edges = np.flatnonzero(np.diff(np.append(trajectory.loss_mask.astype(int), 0)))
    return sorted({at for a, b in edges.reshape(-1, 2) for at in (a + 1, a + 2, b)})


def drawn_at_cuts(sampler, params, features, trajectories):
    """A token drawn at each of `cuts` and its log-prob, after prefills that stop there."""
    rows = features.rows_of(params, [image for t in trajectories for image in t.processed])
    sampler.reset()
    out = []
    for seed, t in enumerate(trajectories):
        index = global_rows(t.image_index, t.processed, rows)
        whole = Chunk(t.tokens, t.position_ids, index)
        sequence = CachedSequence(0)
        assert sampler.table.reserve(sequence, len(whole) + 1)
        for stop in cuts(t):
            # The token at `stop` is the next one; the one before it is not cached yet.
            sampler.prefill(params, [(sequence, whole[sequence.length : stop - 1])],
                            features.buffer)
            kept = sequence.length
            drawn, = sampler.decode(params, [DecodeRequest(
                sequence, int(t.tokens[stop - 1]), int(t.position_ids[0, stop - 1]), seed, 1,
                sampler.initial)], SamplingConfig())
            sequence.length = kept  # What was drawn is forgotten again.
            out.append((t, stop, int(drawn.tokens[0]), float(drawn.logprobs[0])))
        sampler.table.release(sequence)
    return out


def test_of_expert_trajectories(expert_trajectories, sampler, learner, features, policy):
    params = policy[1]
    drawn = drawn_at_cuts(sampler, params, features, expert_trajectories)
    assert len(drawn) >= 6 * len(expert_trajectories)
    changed = []
    for t, stop, token, _ in drawn:
        tokens, mask = t.tokens.copy(), np.zeros(len(t.tokens), np.float32)
        tokens[stop], mask[stop] = token, 1
        changed.append(dataclasses.replace(t.sequence(), tokens=tokens, loss_mask=mask))
    by_learner = learner.logprobs(params, changed, features)
    for got, (_, stop, _, logprob) in zip(by_learner, drawn, strict=True):
        assert got[stop] == pytest.approx(logprob, abs=TOLERANCE)


def test_they_depend_on_the_images_and_on_positions(
        expert_trajectories, learner, features, policy):
    """The agreement is not one of blind models: what breaks it is seen."""
    params, trajectory = policy[1], expert_trajectories[-1]
    sequence = trajectory.sequence()
    other = expert_trajectories[0].processed[0]
    shown = tuple(other if image.tokens == other.tokens else image for image in sequence.images)
    assert shown != sequence.images
    flat = np.tile(np.arange(len(sequence), dtype=np.int32), (3, 1))
    right, blind, one_dimensional = learner.logprobs(params, [
        sequence, dataclasses.replace(sequence, images=shown),
        dataclasses.replace(sequence, position_ids=flat)], features)
    assert np.abs(right - blind).max() > 100 * TOLERANCE
    assert np.abs(right - one_dimensional).max() > 100 * TOLERANCE
