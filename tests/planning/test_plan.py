"""The paper's configs are built on eight devices without a byte of their weights."""

import math

import jax
import pytest
from jax.sharding import PartitionSpec as P
from ml_collections import ConfigDict

from configs import grpo_3b, grpo_3b_lora_16gb, grpo_7b, sft_3b, sft_7b, tiny, vrag_released
from vrag_jax.config import ConfigError, parse
from vrag_jax.planning import plan as planning
from vrag_jax.planning.plan import Plan, device_bytes, total_bytes
from vrag_jax.planning.run_programs import programs
from vrag_jax.run.run_config import RunConfig
from vrag_jax.tasks.registry import check, phases

CONFIGS = {'sft_3b': sft_3b, 'sft_7b': sft_7b, 'grpo_3b': grpo_3b, 'grpo_7b': grpo_7b}
# Numbers in the published checkpoints, and in Qwen2.5-3B and -7B, their language models.
PARAMETERS = {'3b': (3_754_622_976, 3_085_938_688), '7b': (8_292_166_656, 7_615_616_512)}
SHAPES = {  # layers, hidden size, vocabulary, key heads
    '3b': (36, 2048, 151936, 2), '7b': (28, 3584, 152064, 4)}
MESHES = {'3b': {'data': 1, 'fsdp': 4, 'tensor': 2}, '7b': {'data': 1, 'fsdp': 2, 'tensor': 4}}
UP_PROJ = 'language_model/layers/mlp/up_proj/kernel'
GIB = 2**30


def config_of(name: str, **overrides) -> ConfigDict:
    """A config with dotted overrides."""
    config = CONFIGS[name].get_config()
    config.update_from_flattened_dict({k.replace('__', '.'): v for k, v in overrides.items()})
    return config


def plan(config: RunConfig, **kwargs) -> Plan:
    return planning.plan(config, phases(config), **kwargs)


@pytest.fixture(scope='module')
def plans() -> dict[str, Plan]:
    """The four plans; making them leaves nothing on any device."""
    before = sum(x.nbytes for x in jax.live_arrays())
    made = {name: plan(parse(RunConfig, config_of(name))) for name in CONFIGS}
    assert sum(x.nbytes for x in jax.live_arrays()) - before < 2**20
    return made


@pytest.fixture(params=CONFIGS)
def named(request, plans) -> tuple[str, str, Plan]:
    """Name of a config, '3b' or '7b', and its plan."""
    return request.param, request.param[-2:], plans[request.param]


def test_the_policy_has_the_published_size(named):
    _, size, made = named
    assert made.parameter_count == PARAMETERS[size][0]


def test_the_mesh_takes_all_devices(named):
    _, size, made = named
    assert dict(made.mesh.shape) == {**MESHES[size], 'sequence': 1}


def test_only_the_language_model_is_trained(named):
    name, size, made = named
    assert list(made.phases) == [name.partition('_')[0]]
    phase = next(iter(made.phases.values()))
    _, trained = PARAMETERS[size]
    assert all(path.startswith('visual/') for path in phase.state.frozen)
    assert sum(math.prod(x.shape) for x in phase.state.trainable.values()) == trained
    # Two float32 moments a trained parameter, one float32 gradient.
    assert total_bytes(phase.state.opt_state) == pytest.approx(8 * trained, rel=1e-6)
    assert total_bytes(phase.gradients) == 4 * trained


def test_moments_and_gradients_are_spread_like_their_parameters(named):
    _, _, made = named
    phase = next(iter(made.phases.values()))
    adam = next(s for s in jax.tree.leaves(
        phase.state.opt_state, is_leaf=lambda x: hasattr(x, 'mu')) if hasattr(s, 'mu'))
    for tree in (made.params, phase.state.trainable, adam.mu, adam.nu, phase.gradients):
        assert tree[UP_PROJ].sharding.spec == P(None, 'fsdp', 'tensor')
        # What is not split over all eight devices is small change.
        assert device_bytes(tree) < 1.03 * total_bytes(tree) / 8


def test_embeddings_and_heads(plans):
    assert 'lm_head/kernel' not in plans['sft_3b'].params  # Tied.
    big = plans['grpo_7b'].params
    assert big['lm_head/kernel'].sharding.spec == P('fsdp', 'tensor')
    embedding = big['language_model/embed_tokens/embedding']
    assert embedding.sharding.spec == P('tensor', 'fsdp')
    assert embedding.sharding.shard_shape(embedding.shape) == (152064 // 4, 3584 // 2)


def test_a_micro_batch_has_a_row_for_each_data_shard(named):
    name, size, made = named
    rows, length = MESHES[size]['fsdp'], 16384 if name.startswith('sft') else 10240
    phase = next(iter(made.phases.values()))
    for array in (phase.batch.tokens, phase.batch.weights, phase.batch.image_index):
        assert array.shape == (rows, length)
        assert array.sharding.shard_shape(array.shape) == (1, length)
    assert phase.batch.position_ids.shape == (3, rows, length)
    assert phase.batch.images is None  # The vision tower is frozen: features are cached.
    assert {'loss'} <= set(phase.metrics)


def test_the_sampler_holds_an_iteration(plans):
    assert plans['sft_3b'].pool is None and plans['sft_7b'].working is None
    for size in ('3b', '7b'):
        layers, hidden, vocabulary, key_heads = SHAPES[size]
        made = plans[f'grpo_{size}']
        parts = made.mesh.shape['data'] * made.mesh.shape['fsdp']
        # 160 sequences of 3,456 tokens in pages of 64, and a copy for 80 slots.
        assert made.pool.k.shape == (parts, 160 * 54 // parts, 64, layers, key_heads, 128)
        assert made.working.v.shape == (layers, 80, key_heads, 8192 + 2048, 128)
        for cache in (made.pool, made.working):
            assert device_bytes(cache) * 8 == total_bytes(cache)
        # An image of 512 tokens in each of the four turns before the closing one.
        assert made.features.shape == (160 * 4 * 512, hidden)


def test_what_is_frozen_is_counted_once(plans):
    """The reference policy shares it with the one that learns."""
    made = plan(parse(RunConfig, grpo_3b_lora_16gb.get_config()), devices=jax.devices()[:1])
    parts = made.parts()
    adapters = {path for path in made.params if path.endswith(('lora_a', 'lora_b'))}
    assert set(parts['grpo: trained parameters']) == adapters
    assert set(parts['parameters, as they were at first']) > adapters
    for size in ('3b', '7b'):
        trained = plans[f'grpo_{size}'].parts()['grpo: trained parameters']
        assert sum(math.prod(x.shape) for x in trained.values()) == PARAMETERS[size][1]


def sampler_copy_by_hand(size: str) -> int:
    """Bytes of a device's copy: bfloat16, whole hidden sizes, the rest over the mesh.

    Heads are split over `tensor`; MLPs and vocabularies over both axes, where these divide
    them. Norms stay float32 and whole, as they are, and are shared.
    """
    layers, hidden, vocabulary, key_heads = SHAPES[size]
    tensor = MESHES[size]['tensor']
    keys, wide = 128 * key_heads, {'3b': 11008, '7b': 18944}[size]
    attention = 2 * hidden * hidden + 2 * hidden * keys
    per_layer = (attention // tensor + 3 * hidden * wide // 8
                 + hidden + 2 * keys)  # Biases of queries, keys and values are whole.
    heads = 1 if size == '3b' else 2  # That of 3B is the embedding.
    # 3,420 hidden units of the tower's MLPs do not divide by 8.
    tower = 4 * 1280 * 1280 // tensor + 3 * 1280 * 3420 + 4 * 1280 + 2 * 3420 + 1280
    merger = (5120 * 5120 + 5120 * hidden) // 8 + 5120 + hidden
    patches = 3 * 2 * 14 * 14 * 1280
    return 2 * (layers * per_layer + heads * vocabulary * hidden // 8 + 32 * tower + merger
                + patches)


def test_the_sampler_has_a_copy_of_the_policy_as_it_lies_for_sampling(plans):
    assert plans['sft_7b'].sampler_params == {}
    assert not any('sampler' in part for part in plans['sft_7b'].parts())
    for size in ('3b', '7b'):
        made = plans[f'grpo_{size}']
        assert made.parts()['sampler: copy of the policy'] is made.sampler_params
        assert device_bytes(made.sampler_params) == sampler_copy_by_hand(size)
    assert device_bytes(plans['grpo_7b'].sampler_params) / GIB == pytest.approx(2.9, abs=0.05)


@pytest.mark.parametrize('overlap', [False, True])
def test_what_lies_for_sampling_as_for_learning_is_no_copy(overlap):
    """The tiny policy computes in the dtype of its parameters, by the same rules."""
    config = tiny.get_config()
    config.grpo.overlap = overlap
    made = plan(parse(RunConfig, config), devices=jax.devices()[:1])
    # Beside the learner it samples with weights that the learner no longer has.
    trained = made.phases['grpo'].state.trainable
    assert device_bytes(made.sampler_params) == (device_bytes(trained) if overlap else 0)


def test_what_is_planned_fits_a_device_with_80_gb(named):
    _, _, made = named
    # A backward pass holds a few arrays as large as the scores at the same time.
    scores = sum(device_bytes(phase.scores) for phase in made.phases.values())
    assert device_bytes(made.parts()) + 3 * scores < 70 * GIB


def test_the_summary_names_every_part(plans):
    text = str(plans['grpo_7b'])
    assert text.startswith('8.292B parameters on 8 devices (data 1, fsdp 2, sequence 1, tensor 4)')
    lines = {line[:34].strip(): line[34:].split() for line in text.splitlines()[2:]}
    assert lines['sampler: copy of the policy'][2] == f'{sampler_copy_by_hand("7b") / GIB:.3f}'
    assert lines['sampler: blocks of the cache'] == ['29.531', 'GiB', '3.691', 'GiB']
    assert lines['sampler: copy of a call'] == ['43.750', 'GiB', '5.469', 'GiB']
    assert set(lines) == set(plans['grpo_7b'].parts())


@pytest.mark.parametrize('name,field', [
    ('sft_3b', 'policy.checkpoint'), ('sft_7b', 'policy.checkpoint'),
    ('grpo_3b', 'policy.checkpoint'), ('grpo_7b', 'policy.checkpoint')])
def test_a_missing_checkpoint_says_what_to_pass(name, field):
    with pytest.raises(ConfigError, match=f'{field}: not given; pass --config.{field}=PATH'):
        check(parse(RunConfig, config_of(name)))


@pytest.mark.parametrize('name,field', [
    ('sft_7b', 'data.trajectories'), ('grpo_7b', 'data.manifest')])
def test_a_missing_corpus_says_what_to_pass(name, field, tmp_path):
    (tmp_path / 'config.json').write_text('{}')
    config = config_of(name, policy__checkpoint=str(tmp_path))
    with pytest.raises(ConfigError, match=f'{field}: not given; pass --config.{field}=PATH'):
        check(parse(RunConfig, config))
    config = config_of(name, policy__checkpoint=str(tmp_path),
                       **{field.replace('.', '__'): '/nowhere/at/all'})
    with pytest.raises(ConfigError, match=f'{field}: /nowhere/at/all does not exist'):
        check(parse(RunConfig, config))


def test_weights_that_would_round_their_updates_away_are_refused():
    config = tiny.get_config()
    config.mesh.update({'data': 1, 'tensor': -1})
    check(parse(RunConfig, config))
    config.policy.param_dtype = 'bfloat16'
    with pytest.raises(ConfigError, match='policy.param_dtype: bfloat16 rounds updates away'):
        check(parse(RunConfig, config))
    config.policy.lora = {'rank': 4}  # Adapters are float32 whatever the base is.
    check(parse(RunConfig, config))


@pytest.mark.parametrize('task', ['sft', 'grpo'])
def test_training_of_no_steps_is_refused(task):
    config = tiny.get_config()
    config.mesh.update({'data': 1, 'tensor': -1})
    config.task = task
    config[task].update({'steps': 0, 'epochs': 0})
    with pytest.raises(ConfigError, match=f'config.{task}: steps and epochs are both 0'):
        check(parse(RunConfig, config))


@pytest.mark.parametrize('name', CONFIGS)
def test_the_papers_settings(name):
    config = parse(RunConfig, config_of(name))
    environment = config.environment
    assert (environment.min_pixels, environment.max_pixels) == (256 * 28**2, 512 * 28**2)
    assert environment.max_turns == 4 + 1
    assert (config.policy.dtype, config.policy.remat) == ('bfloat16', 'attention')
    if config.task == 'sft':
        sft = config.sft
        assert (sft.epochs, sft.sequences, sft.learner.length) == (3, 16 * 2, 16384)
        assert (sft.learner.lr, sft.learner.schedule) == (1e-5, 'cosine')
        assert sft.learner.warmup_fraction == 0.1
    else:
        grpo, reward = config.grpo, config.reward
        assert (grpo.prompts, grpo.group_size, grpo.epochs) == (32, 5, 1)
        assert (grpo.loss.clip_low, grpo.loss.clip_high, grpo.loss.kl_coef) == (0.2, 0.2, 0.01)
        assert reward.weights == {'answer': 0.7, 'retrieval': 0.2, 'pattern': 0.1}
        # Five iterations of five updates; a mean over trajectories of means over tokens.
        assert (config.grpo.learner.lr, config.grpo.learner.warmup_steps) == (1e-6, 5 * 5)
        assert (grpo.mini_batches, grpo.loss.averaging) == (5, 'sequence')
        assert config.sampler.max_length == config.grpo.learner.length == 8192 + 2048


def test_the_vision_tower_may_be_trained_too():
    """`learner.frozen=''`: the step takes patches, room for the fullest row of strips included."""
    config = parse(RunConfig, config_of('grpo_3b', grpo__learner__frozen=''))
    made = plan(config)
    trained = made.phases['grpo'].state.trainable
    assert any(path.startswith('visual/') for path in trained)
    layout = config.grpo.learner.layout
    assert layout.windows * 8 >= layout.length and layout.span == config.vision_features.span
    gradients, = (p for p in programs(config, made) if p.learns)
    assert made.phases['grpo'].batch.images.pixels.shape[0] == layout.windows
    gradients.lower()


def test_the_released_checkpoint_is_evaluated_on_one_accelerator_with_80_gb():
    made = plan(parse(RunConfig, vrag_released.get_config()), devices=jax.devices()[:1])
    assert not made.phases
    assert 15 * GIB < device_bytes(made.parts()) < 55 * GIB
