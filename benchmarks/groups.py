"""Scored groups of trajectories in a file, so that both sides update on the same tokens."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.setting import grouped_questions
from vrag_jax.data.sequences import TokenSequence
from vrag_jax.learner.variants import ADVANTAGES
from vrag_jax.models.common.images import ProcessedImage
from vrag_jax.rollout.driver import episode_seed, run_policy
from vrag_jax.rollout.scoring import score
from vrag_jax.rollout.trajectory import Trajectory
from vrag_jax.run.context import RunContext


def sample_groups(space: RunContext, params, prompts: int, group_size: int) -> list[Trajectory]:
    """Returns scored trajectories as an iteration of GRPO samples them, group by group."""
    questions = grouped_questions(space, prompts, group_size)
    seeds = [episode_seed('benchmark', 'groups', i) for i in range(len(questions))]
    space.features.clear()
    trajectories = run_policy(space.world(), space.sampler, space.features, params, questions,
                              space.config.grpo.sampling, seeds)
    score(trajectories, space.config.reward, space.judge)
    return trajectories


def rl_sequences(space: RunContext, trajectories: Sequence[Trajectory],
                 group_size: int) -> list[TokenSequence]:
    """Returns what is trained on: advantages, and the sampler's log-probs as the old ones."""
    rewards = np.array([t.rewards['total'] for t in trajectories]).reshape(-1, group_size)
    advantages = ADVANTAGES[space.config.grpo.advantages](rewards).reshape(-1)
    return [t.sequence(float(advantage), t.logprobs)
            for t, advantage in zip(trajectories, advantages, strict=True)]


def save_sequences(path: Path, sequences: Sequence[TokenSequence]) -> None:
    """Writes sequences, of which some show images, to an `.npz` file, each image once."""
    images = {image.key: image for sequence in sequences for image in sequence.images}
    number = {key: i for i, key in enumerate(images)}
    arrays: dict[str, Any] = {
        'lengths': np.array([len(s) for s in sequences]),
        'tokens': np.concatenate([s.tokens for s in sequences]),
        'loss_mask': np.concatenate([s.loss_mask for s in sequences]),
        'position_ids': np.concatenate([s.position_ids for s in sequences], axis=1),
        'image_index': np.concatenate([s.image_index for s in sequences]),
        'advantages': np.concatenate([_given(s.advantages, s) for s in sequences]),
        'old_logprobs': np.concatenate([_given(s.old_logprobs, s) for s in sequences]),
        'shown': np.array([number[image.key] for s in sequences for image in s.images], np.int64),
        'shown_counts': np.array([len(s.images) for s in sequences]),
        'image_keys': np.array(list(images)),
        'image_grids': np.array([image.grid_thw for image in images.values()]).reshape(-1, 3),
        'image_tokens': np.array([image.tokens for image in images.values()], np.int64),
        'patches': np.concatenate([image.patches for image in images.values()]),
    }
    with path.open('wb') as file:
        np.savez(file, **arrays)


def _given(values: np.ndarray | None, sequence: TokenSequence) -> np.ndarray:
    if values is None:
        raise ValueError('sequences of RL have advantages and old log-probs')
    assert len(values) == len(sequence)
    return values


def load_sequences(path: Path) -> list[TokenSequence]:
    """Reads what `save_sequences` has written."""
    with np.load(path) as file:
        arrays = dict(file)
    ends = np.cumsum(arrays['image_grids'].prod(axis=1))[:-1]
    images = [
        ProcessedImage(str(key), patches, (int(grid[0]), int(grid[1]), int(grid[2])), int(tokens))
        for key, patches, grid, tokens in zip(
            arrays['image_keys'], np.split(arrays['patches'], ends),
            arrays['image_grids'], arrays['image_tokens'], strict=True)]
    ends = np.cumsum(arrays['lengths'])[:-1]
    fields = {name: np.split(arrays[name], ends, axis=-1) for name in (
        'tokens', 'loss_mask', 'position_ids', 'image_index', 'advantages', 'old_logprobs')}
    shown = np.split(arrays['shown'], np.cumsum(arrays['shown_counts'])[:-1])
    return [
        TokenSequence(images=tuple(images[n] for n in own),
                      **{name: values[i] for name, values in fields.items()})
        for i, own in enumerate(shown)]


def facts(sequences: Sequence[TokenSequence]) -> dict[str, int]:
    """Sizes of the work, for the records."""
    unique = {image.key for s in sequences for image in s.images}
    return {'trajectories': len(sequences), 'tokens': sum(map(len, sequences)),
            'trained_tokens': int(sum(s.loss_mask[1:].sum() for s in sequences)),
            'longest': max(map(len, sequences)), 'images': sum(len(s.images) for s in sequences),
            'unique_images': len(unique)}


def with_values(sequences: Sequence[TokenSequence], **values: Sequence[Any]
                ) -> list[TokenSequence]:
    """Returns sequences with fields replaced, e.g. `ref_logprobs=[...]`, one array each."""
    return [dataclasses.replace(s, **{name: each[i] for name, each in values.items()})
            for i, s in enumerate(sequences)]
