"""Episodes are records of exactly what was shown and sampled, token by token."""

import dataclasses

import numpy as np
import pytest

from vrag_jax.data.records import Question
from vrag_jax.models.common.mrope import rope_index
from vrag_jax.rollout.driver import episode_seed, run_expert, run_policy
from vrag_jax.rollout.world import ObservingConfig
from vrag_jax.sampling.distribution import SamplingConfig

DRAWN = SamplingConfig()
CALL = dict(max_length=10_000)


@pytest.fixture
def expert_trajectories(world, questions, act):
    return run_expert(world, questions, act, **CALL)


def runs(mask):
    """First and last + 1 of each run of True."""
    edges = np.flatnonzero(np.diff(np.concatenate([[0], mask.astype(int), [0]])))
    return [(int(a), int(b)) for a, b in edges.reshape(-1, 2)]


def test_the_tokens_are_the_conversation(expert_trajectories, tokenizer):
    for trajectory in expert_trajectories:
        text = f'<|im_start|>user\n{trajectory.prompt}<|im_end|>\n<|im_start|>assistant\n'
        for turn in trajectory.turns:
            text += turn.text
            if turn.image is not None or turn.observation:
                text += f'<|im_end|>\n<|im_start|>user\n{turn.observation}'
                if turn.image is not None:
                    pads = '<|image_pad|>' * trajectory.processed[turn.image].tokens
                    text += f'<|vision_start|>{pads}<|vision_end|>'
                text += '<|im_end|>\n<|im_start|>assistant\n'
        text += '<|im_end|>'  # The last turn is ended, too.
        assert tokenizer.decode(trajectory.tokens, skip_special_tokens=False) == text


def test_the_mask_is_true_on_the_policys_own_tokens_only(expert_trajectories, world):
    for trajectory in expert_trajectories:
        sampled = [trajectory.tokens[a:b].tolist() for a, b in runs(trajectory.loss_mask)]
        assert sampled == [world.chat.reply_ids(turn.text) for turn in trajectory.turns]
        assert trajectory.loss_mask[-1] and not trajectory.loss_mask[0]


def test_the_expert_answers_with_crops_and_several_hops(expert_trajectories):
    actions = [[turn.action.kind for turn in t.turns] for t in expert_trajectories]
    assert ['search', 'bbox', 'answer'] in actions
    assert ['search', 'bbox', 'search', 'bbox', 'answer'] in actions
    right = [t.answer == t.question.answer for t in expert_trajectories]
    assert np.mean(right) > 0.9
    assert all(t.finished for t in expert_trajectories)
    assert {len(t.images) for t in expert_trajectories} >= {1, 2, 4}


def assert_well_formed(trajectory, model_config):
    """Positions, image rows and frames fit the tokens."""
    grids = [image.grid_thw for image in trajectory.processed]
    # A random policy may sample the placeholder itself: there it is a token like others.
    is_image = (trajectory.tokens == model_config.image_token_id) & ~trajectory.loss_mask
    tokens = np.where(trajectory.loss_mask, 0, trajectory.tokens)
    want, _ = rope_index(tokens, grids, model_config)
    np.testing.assert_array_equal(trajectory.position_ids, want)
    np.testing.assert_array_equal(
        trajectory.image_index, np.where(is_image, np.cumsum(is_image) - 1, -1))
    assert is_image.sum() == sum(image.tokens for image in trajectory.processed)
    first = 0
    for view, processed in zip(trajectory.images, trajectory.processed, strict=True):
        assert trajectory.image_index[view.token_start] == first
        assert view.key == processed.key
        assert processed.grid_thw == (1, view.image.height // 14, view.image.width // 14)
        first += processed.tokens


def test_positions_are_those_of_the_whole_sequence(expert_trajectories, model_config):
    assert any(len(t.images) == 4 for t in expert_trajectories)
    for trajectory in expert_trajectories:
        assert_well_formed(trajectory, model_config)


def test_an_episode_without_room_ends_with_a_sampled_token(world, questions, act,
                                                           expert_trajectories):
    for whole in expert_trajectories[:6]:
        # Room for the first turn and all but one token of its observation.
        first = runs(whole.loss_mask)[0][1]
        second = runs(whole.loss_mask)[1][0]
        cut, = run_expert(world, [whole.question], act, max_length=second)
        assert cut.truncated and not cut.finished and cut.answer is None
        assert len(cut.tokens) == first and cut.loss_mask[-1]
        np.testing.assert_array_equal(cut.tokens, whole.tokens[:first])
        assert cut.images == [] and cut.retrieved == []
        assert cut.turns[-1].observation == '' and cut.turns[-1].image is None
        assert cut.turns[-1].retrieved == ()
        roomy, = run_expert(world, [whole.question], act, max_length=second + 1)
        assert len(roomy.turns) >= 2


def test_placeholders_must_be_as_many_as_the_image_has_tokens(world, questions):
    episode = world.start(questions[0])
    with pytest.raises(ValueError, match='1 image placeholders, but its image has 0 tokens'):
        episode.append_observation([5, world.model_config.image_token_id, 6])


def test_a_blank_episode_holds_nothing(world):
    assert len(world.blank()) == 0


def test_the_sequence_of_a_trajectory(expert_trajectories):
    trajectory = expert_trajectories[0]
    plain = trajectory.sequence()
    assert plain.advantages is None and plain.old_logprobs is None
    np.testing.assert_array_equal(plain.loss_mask, trajectory.loss_mask.astype(np.float32))
    scored = trajectory.sequence(-1.5, trajectory.logprobs)
    np.testing.assert_array_equal(scored.advantages, np.where(trajectory.loss_mask, -1.5, 0))


# From here on with the sampler.

OPENING = ('<think>x</think><search>{question}</search>',
           '<think>x</think><bbox>[10, 20, 60, 70]</bbox>')


@pytest.fixture(scope='module')
def sampled(world, sampler, features, policy, questions):
    """Six episodes of a random policy, in two waves, with an image and a crop to begin with."""
    seeds = [episode_seed('run', i) for i in range(6)]
    return run_policy(world, sampler, features, policy[1], questions[:6], DRAWN, seeds, OPENING)


def test_sampled_trajectories_are_well_formed(sampled, questions, model_config):
    assert [t.question.uid for t in sampled] == [q.uid for q in questions[:6]]
    for trajectory in sampled:
        assert_well_formed(trajectory, model_config)
        assert len(trajectory.images) >= 2
        assert len(trajectory.turns) == 5 or trajectory.finished or trajectory.truncated
        assert trajectory.loss_mask[-1]


def test_given_turns_are_not_trained_on_and_sampled_ones_are(sampled, world):
    for trajectory in sampled:
        sampled_runs = runs(trajectory.loss_mask)
        assert len(sampled_runs) == len(trajectory.turns) - len(OPENING)
        for (a, b), turn in zip(sampled_runs, trajectory.turns[len(OPENING):], strict=True):
            assert world.chat.decode(trajectory.tokens[a:b]) == turn.text
            assert (trajectory.logprobs[a:b] < 0).all()
        assert (trajectory.logprobs[~trajectory.loss_mask] == 0).all()


def test_an_end_of_turn_that_was_sampled_is_not_written_again(sampled, world):
    end = world.chat.end_of_turn_id
    for trajectory in sampled:
        assert not (np.diff(np.flatnonzero(trajectory.tokens == end)) == 1).any()


def test_an_episode_depends_on_its_seed_not_on_its_company(
        sampled, world, sampler, features, policy, questions):
    order = [4, 0, 3]
    again = run_policy(
        world, sampler, features, policy[1], [questions[i] for i in order], DRAWN,
        [episode_seed('run', i) for i in order], OPENING)
    for i, trajectory in zip(order, again, strict=True):
        np.testing.assert_array_equal(trajectory.tokens, sampled[i].tokens)
        np.testing.assert_allclose(trajectory.logprobs, sampled[i].logprobs, atol=1e-4)


def test_an_episode_that_its_given_turns_fill_is_truncated(
        world, sampler, features, policy, questions):
    prompt = world.start(questions[0])
    room = len(prompt) + len(world.chat.encode(OPENING[0].format(question=questions[0].query)))
    long = 'a ' * (sampler.config.max_length - room + 4)
    cut, = run_policy(world, sampler, features, policy[1], questions[:1], DRAWN, [0],
                      (OPENING[0] + long,))
    assert cut.truncated and not cut.loss_mask.any() and len(cut.turns) == 1


def test_a_prompt_longer_than_an_episode_is_refused(world, sampler, features, policy):
    question = Question(uid='wordy', query='word ' * 400, answer='')
    with pytest.raises(ValueError, match='wordy.*320'):
        run_policy(world, sampler, features, policy[1], [question], DRAWN, [0])


def test_invalid_turns_are_answered_and_marked(sampled):
    kinds = {turn.action.kind for t in sampled for turn in t.turns}
    assert 'invalid' in kinds
    for trajectory in sampled:
        for turn in trajectory.turns[:-1]:
            assert (turn.action.kind != 'invalid') or turn.action.reason


def test_seeds_are_equal_everywhere_and_differ():
    assert episode_seed('run', 1, 2) == episode_seed('run', 1, 2)
    seeds = {episode_seed(0, 'grpo', step, i) for step in range(20) for i in range(50)}
    assert len(seeds) == 1000 and all(0 <= seed < 2**32 for seed in seeds)


def test_the_tail_of_an_episode_is_the_end_of_the_whole(world, questions):
    episode = world.start(questions[0])
    for ids in ([5, 6, 7], [8], [9, 10]):
        episode.append_text(ids)
    tokens, positions, index = episode.tail(0)
    assert len(tokens) == len(episode) and tokens[-6:].tolist() == [5, 6, 7, 8, 9, 10]
    for start in range(len(episode) + 1):
        got = episode.tail(start)
        for part, whole in zip(got, (tokens, positions, index), strict=True):
            np.testing.assert_array_equal(part, whole[..., start:])


def test_a_group_takes_its_prompt_in_once_and_encodes_an_image_once(
        world, sampler, features, policy, questions):
    group = [questions[0]] * 4
    features.clear()
    before = sampler.tokens_prefilled, features.images_encoded
    found = run_policy(world, sampler, features, policy[1], group, DRAWN, range(4))
    prompt = len(world.start(questions[0]))
    # All but the last token of the prompt once, and of each the tokens after it that were
    # not sampled, with the last sampled token of a turn instead of the last observed one.
    later = sum(len(t.tokens) - prompt - int(t.loss_mask.sum()) for t in found)
    assert sampler.tokens_prefilled - before[0] == prompt - 1 + later

    found = run_policy(world, sampler, features, policy[1], group, DRAWN, range(4), OPENING)
    shown = [image.key for t in found for image in t.processed]
    assert len(shown) >= 8 and len(set(shown)) < len(shown)
    assert features.images_encoded - before[1] == len(set(shown))


def test_threads_and_their_order_change_no_trajectory(
        sampled, world, sampler, features, policy, questions):
    for observing in (ObservingConfig(threads=1), ObservingConfig(threads=3, in_order=False)):
        other = dataclasses.replace(world, observing=observing)
        seeds = [episode_seed('run', i) for i in range(6)]
        again = run_policy(other, sampler, features, policy[1], questions[:6], DRAWN, seeds,
                           OPENING)
        for trajectory, want in zip(again, sampled, strict=True):
            np.testing.assert_array_equal(trajectory.tokens, want.tokens)
