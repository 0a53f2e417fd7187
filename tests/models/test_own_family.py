"""A family of policies from outside the package is sampled with, learnt from, saved and read."""

import dataclasses
import json

import jax
import numpy as np
import pytest
from flax import nnx
from PIL import Image

from tests.models import two_part_family
from vrag_jax.actions.stopping import build_stop_table
from vrag_jax.config import ConfigError
from vrag_jax.data.records import Question
from vrag_jax.learner.learner import Learner, LearnerConfig
from vrag_jax.learner.steps import supervised
from vrag_jax.models import families
from vrag_jax.models.common import hf_checkpoint
from vrag_jax.models.common.images import ImagePreprocessor
from vrag_jax.models.common.parameters import flat_params
from vrag_jax.parallel.mesh import make_mesh
from vrag_jax.perception.frames import Frame
from vrag_jax.rollout.environment import EnvironmentConfig
from vrag_jax.rollout.episode import Episode
from vrag_jax.run.policy_setup import policy_config
from vrag_jax.run.run_config import PolicyConfig, RunConfig
from vrag_jax.sampling.distribution import SamplingConfig
from vrag_jax.sampling.image_features import ImageFeatureCache, make_encoder
from vrag_jax.sampling.sampler import Sampler
from vrag_jax.sampling.scheduler import Scheduler
from vrag_jax.sampling.slots import SamplerConfig

TWO_PART_VL = two_part_family.TWO_PART_VL
IMAGE, END, VOCAB = 3, 2, 64


@pytest.fixture(scope='module', autouse=True)
def registered():
    families.register(TWO_PART_VL)  # The one line.
    yield
    del families._FAMILIES['two_part_vl']


@pytest.fixture(scope='module')
def config():
    return families.preset('tiny_two_part', vocab_size=VOCAB, image_token_id=IMAGE)


@pytest.fixture(scope='module')
def policy(config):
    model = TWO_PART_VL.model(config, rngs=nnx.Rngs(0))
    graphdef, params = flat_params(model)
    # Random queries and keys of the usual size make attention nearly uniform.
    return graphdef, {path: value * 4 if path.endswith(('q_proj/kernel', 'k_proj/kernel'))
                      else value for path, value in params.items()}


def episode(config, seed):
    """One that has been shown an image of 64 x 96 pixels, 2 x 3 tokens of 32 pixels a side."""
    spec = families.image_spec(config)
    assert spec.factor == 32
    processor = TWO_PART_VL.new_processor(config)
    scaled = TWO_PART_VL.with_processor(config, processor)
    rng = np.random.default_rng(seed)
    picture = Image.fromarray(rng.integers(0, 256, (64, 96, 3), np.uint8))
    shown, = ImagePreprocessor(processor, families.image_spec(scaled))([picture])
    assert shown.grid_thw == (1, 4, 6) and shown.tokens == 6
    made = Episode(Question(uid=str(seed), query='', answer=''), '', config)
    made.append_text(rng.integers(4, VOCAB, 5))
    frame = Frame('page', picture.size, (0, 0, *picture.size), picture.size)
    made.append_observation([4, *[IMAGE] * 6, 5], (picture, frame, shown))
    return made


@pytest.fixture(scope='module')
def features(config, policy):
    return ImageFeatureCache(make_encoder(policy[0]), config, rows=32, windows=4, span=1)


@pytest.fixture(scope='module')
def sampled(config, policy, features):
    """Trajectories of two episodes with images, of one sampled turn each."""
    sizes = SamplerConfig(slots=2, max_length=64, max_new_tokens=12, decode_tokens=12,
                          prefill_shapes=((2, 16),))
    table = build_stop_table([b''] * 4 + [b'a'] * (VOCAB - 4))
    sampler = Sampler(policy[0], config, sizes, table, [END])
    scheduler = Scheduler(sampler, features, policy[1], SamplingConfig())
    episodes = [episode(config, seed) for seed in (0, 1)]
    for seed, each in enumerate(episodes):
        scheduler.add([each], [seed])
    while not scheduler.done:
        for over, _ in scheduler.step():
            scheduler.finish(over)
    return [each.finish() for each in episodes]


def test_its_features_are_kept_part_by_part(sampled, features):
    assert features.images_encoded == 2 and set(features.buffer) == {'first', 'deep'}
    np.testing.assert_allclose(features.buffer['deep'], np.tanh(features.buffer['first']),
                               atol=1e-6)
    assert np.abs(features.buffer['first']).max() > 0


@pytest.mark.parametrize('frozen', ['^visual/', ''], ids=['features from a cache', 'in the step'])
def test_the_learner_computes_what_was_sampled_and_takes_a_step(
        config, policy, features, sampled, frozen):
    mesh = make_mesh({}, devices=jax.devices()[:1])
    settings = LearnerConfig(frozen=frozen, rows=1, length=64, windows=4, lr=1e-2)
    learner = Learner(*policy, config, settings, supervised, 1, mesh)
    assert learner.vision_is_frozen == bool(frozen)
    cache = features if frozen else None
    sequences = [trajectory.sequence() for trajectory in sampled]
    before = learner.logprobs(policy[1], sequences, cache)
    for values, trajectory in zip(before, sampled, strict=True):
        assert trajectory.loss_mask.sum() >= 1
        np.testing.assert_allclose(values, trajectory.logprobs, atol=1e-4)
    assert learner.update(sequences, cache)['grad_norm'] > 0
    after = learner.logprobs(learner.state.params, sequences, cache if frozen else None)
    assert sum(map(np.sum, after)) > sum(map(np.sum, before))


def test_its_checkpoint_is_found_by_its_model_type(config, policy, tmp_path):
    model = TWO_PART_VL.model(config, rngs=nnx.Rngs(1))
    hf_checkpoint.save(model, tmp_path / 'saved')
    stored = json.loads((tmp_path / 'saved' / 'config.json').read_text())
    assert stored['model_type'] == 'two_part_vl'
    loaded = hf_checkpoint.load(tmp_path / 'saved')
    assert isinstance(loaded, two_part_family.TwoParts) and loaded.config == config
    for path, value in flat_params(model)[1].items():
        np.testing.assert_array_equal(flat_params(loaded)[1][path], value)


def test_a_config_names_its_preset_and_its_factor():
    run = RunConfig(task='grpo', policy=PolicyConfig(preset='tiny_two_part'),
                    environment=EnvironmentConfig(factor=32))
    assert families.family_of(policy_config(run)) is TWO_PART_VL
    run = dataclasses.replace(run, environment=EnvironmentConfig())
    with pytest.raises(ConfigError, match='config.environment.factor: 28, but .* multiples of 32'):
        policy_config(run)


def test_a_name_that_is_taken_is_refused(config):
    with pytest.raises(ValueError, match="'tiny' is taken by the family 'qwen2_5_vl'"):
        families.register(dataclasses.replace(
            TWO_PART_VL, model_type='other', presets={'tiny': config}))
