"""Updates do not depend on micro-batches, devices or where images are encoded."""

import concurrent.futures
import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from vrag_jax.learner.learner import Learner, LearnerConfig
from vrag_jax.learner.losses import GrpoLossConfig
from vrag_jax.learner.steps import grpo
from vrag_jax.metrics import compilations
from vrag_jax.models.common.axes import parameter_shardings
from vrag_jax.models.common.lora import LoraConfig, add_adapters, is_adapter
from vrag_jax.models.common.parameters import flat_params, merge
from vrag_jax.models.qwen2_5_vl.model import Qwen2_5_VL
from vrag_jax.parallel.mesh import make_mesh
from vrag_jax.sampling.image_features import ImageFeatureCache, make_encoder

# A mesh adds in another order, and rounding grows from update to update. That it is
# rounding and neither a wrong sum nor a token on the edge of the clip was measured by
# moving every weight of one device to a neighbouring float32. Relative changes of the
# gradient norm (the clip fraction never changed):
#
#                              first update     second update
#     lr 0.02,  eps 1e-8       mesh 5e-5        mesh 5e-2      neighbours 6e-2
#     lr 0.02,  eps 0.1        mesh 5e-5        mesh 6e-4      neighbours 3e-3
#     lr 0.003, eps 0.1        mesh 5e-5        mesh 1e-4      neighbours up to 2e-4
#     lr 0.001, eps 0.1        mesh 7e-5        mesh 2e-3; its loss 8e-5 in the third
#
# A large eps makes Adam's steps smooth in each gradient: with a small one, the sign of
# a gradient that is zero up to rounding becomes a step of full size.
SETTINGS = dict(lr=2e-4, eps=0.1, rows=8, length=80, windows=16, span=2)
NORM_TOLERANCE = 5e-3  # Of a norm of 54: the weights differ by less than 1e-6.
MESHES = {'data': {'data': 8}, 'fsdp and tensor': {'fsdp': 4, 'tensor': 2},
          'all': {'data': 2, 'fsdp': 2, 'tensor': 2},
          'sequence': {'data': 4, 'sequence': 2},
          'fsdp, sequence and tensor': {'fsdp': 2, 'sequence': 2, 'tensor': 2}}


@pytest.fixture(scope='module')
def make_learner(policy, model_config):
    """Returns a function that makes a learner on one device, or on a mesh."""
    def make(shape=None, policy=policy, seed=0, **settings):
        graphdef, params = policy
        mesh = make_mesh(shape) if shape else make_mesh({}, devices=jax.devices()[:1])
        placed = jax.device_put(params, parameter_shardings(params, mesh))
        loss = grpo(GrpoLossConfig(kl_coef=0.1, entropy_coef=0.01))
        return Learner(graphdef, placed, model_config, LearnerConfig(**SETTINGS | settings),
                       loss, 10, mesh, seed=seed)

    return make


def three_updates(learner, sequences, features=None):
    """Metrics of three updates, the weights after each, and what each compiled."""
    metrics, weights, compiled = [], [], []
    for _ in range(3):
        before = compilations()
        metrics.append(learner.update(sequences, features))
        compiled.append(compilations() - before)
        weights.append(jax.device_get(learner.state.params))
    return metrics, weights, compiled


@pytest.fixture(scope='module')
def reference(make_learner, sequences):
    """Three updates on one device, each in a single micro-batch."""
    return three_updates(make_learner(), sequences)


def assert_same(got, want, tolerance=1e-5):
    for (metrics, weights), (want_metrics, want_weights) in zip(got, want, strict=True):
        losses = {k: v for k, v in metrics.items() if k not in ('grad_norm', 'padding')}
        assert losses == pytest.approx(
            {k: want_metrics[k] for k in losses}, rel=tolerance, abs=tolerance)
        for path, value in want_weights.items():
            np.testing.assert_allclose(weights[path], value, atol=tolerance, err_msg=path)
        assert metrics['grad_norm'] == pytest.approx(
            want_metrics['grad_norm'], rel=NORM_TOLERANCE)


def test_an_update_moves_the_weights_and_reports(reference, policy, sequences):
    metrics, weights, _ = reference
    assert metrics[0]['tokens'] == sum(s.loss_mask[1:].sum() for s in sequences)
    assert {'loss', 'policy_loss', 'kl', 'ratio', 'clip_fraction', 'entropy', 'grad_norm'} <= set(
        metrics[0])
    for path, value in policy[1].items():
        assert not np.array_equal(weights[0][path], value), path
    embedding = 'language_model/embed_tokens/embedding'
    assert np.abs(weights[0][embedding] - policy[1][embedding]).max() > 2e-5
    assert metrics[1]['loss'] != pytest.approx(metrics[0]['loss'], abs=5e-5)


def test_later_updates_compile_nothing(reference):
    assert reference[2][0] > 0
    assert reference[2][1:] == [0, 0]


def test_the_callers_parameters_are_kept(reference, policy):
    assert all(np.isfinite(value).all() for value in policy[1].values())


def test_micro_batches_add_up_to_the_mini_batch(make_learner, sequences, reference):
    # Two rows a micro-batch, windows for two images at most, chunks of the vocabulary.
    learner = make_learner(rows=2, windows=4, vocab_chunk=32)
    metrics, weights, _ = three_updates(learner, sequences)
    assert_same(zip(metrics, weights, strict=True), zip(*reference[:2], strict=True))


@pytest.mark.slow
def test_no_size_of_micro_batch_compiles_after_the_warm_up(
        make_learner, sequences, reference, policy):
    learner = make_learner(rows=3, row_buckets=(2, 1))
    learner.warm_up(scored=policy[1])
    metrics, weights, compiled = three_updates(learner, sequences)
    # The optimiser's step is taken, and so compiled, in every update.
    assert compiled == [1, 0, 0]
    assert_same(zip(metrics, weights, strict=True), zip(*reference[:2], strict=True))
    before = compilations()
    for few in (sequences[:1], sequences[:2], sequences):
        learner.update(few)
        learner.logprobs(policy[1], few)
    assert compilations() == before


@pytest.mark.parametrize('shape', [None, MESHES['all']], ids=['one device', 'all'])
def test_the_reference_is_scored_in_the_micro_batches_of_the_update(
        make_learner, sequences, policy, shape):
    # Another policy than the one that is trained, in several micro-batches of two sizes.
    reference = {path: value * 0.9 for path, value in policy[1].items()}
    sizes = {} if shape else {'rows': 3, 'row_buckets': (2, 1)}
    learner = make_learner(shape, **sizes)
    if shape:
        reference = jax.device_put(
            reference, parameter_shardings(reference, make_mesh(shape)))
    twin = make_learner(shape, **sizes)
    scored = twin.logprobs(reference, sequences)
    want = twin.update([dataclasses.replace(s, ref_logprobs=values)
                        for s, values in zip(sequences, scored, strict=True)])
    learner.warm_up(scored=reference)
    assert learner.update(sequences, reference=reference) == pytest.approx(want, rel=1e-5)
    before = compilations()
    learner.update(sequences, reference=reference)
    assert compilations() == before


@pytest.mark.parametrize('shape', [
    pytest.param(shape, id=name, marks=() if name == 'all' else pytest.mark.slow)
    for name, shape in MESHES.items()])
def test_eight_devices_compute_what_one_does(make_learner, sequences, reference, shape, capfd):
    learner = make_learner(shape)
    expected = shards(learner.state, KERNEL, shape)
    capfd.readouterr()
    metrics, weights, compiled = three_updates(learner, sequences)
    # XLA warns where it can only go from one sharding to another by way of whole copies.
    assert 'rematerialization' not in capfd.readouterr().err
    assert_same(zip(metrics, weights, strict=True), zip(*reference[:2], strict=True))
    assert compiled[1:] == [0, 0]
    assert shards(learner.state, KERNEL, shape) == expected


KERNEL = 'language_model/layers/mlp/gate_proj/kernel'


def shards(state, path, shape):
    """Checks that a matrix and its moments lie in shards; returns their shapes."""
    layers, rows, columns = state.params[path].shape
    adam = state.opt_state[1][0]
    found = [tree[path].addressable_shards[0].data.shape
             for tree in (state.trainable, adam.mu, adam.nu)]
    assert found == [(layers, rows // shape.get('fsdp', 1), columns // shape.get('tensor', 1))] * 3
    return found


def make_cache(policy, model_config):
    return ImageFeatureCache(make_encoder(policy[0]), model_config, rows=64, windows=4, span=2)


@pytest.fixture(scope='module')
def frozen_vision(make_learner, sequences, policy, model_config):
    """A learner with a frozen vision tower, its features, and three updates from them."""
    learner, features = make_learner(frozen='^visual/'), make_cache(policy, model_config)
    return learner, features, *three_updates(learner, sequences, features)


def test_frozen_parameters_stay_as_they_are_to_the_bit(frozen_vision, policy):
    learner, _, _, weights, _ = frozen_vision
    assert learner.vision_is_frozen
    for path, value in policy[1].items():
        same = np.array_equal(weights[1][path], value)
        assert same == path.startswith('visual/'), path


def test_cached_features_give_the_loss_of_encoding_in_the_step(frozen_vision, reference):
    _, features, metrics, _, compiled = frozen_vision
    want = {k: v for k, v in reference[0][0].items() if k not in ('grad_norm', 'padding')}
    assert {k: metrics[0][k] for k in want} == pytest.approx(want, rel=1e-5, abs=1e-5)
    # Each image was encoded once, for both updates.
    assert features.images_encoded == 3
    assert compiled[1:] == [0, 0]


@pytest.fixture(scope='module')
def adapted(policy, model_config):
    """The policy with new adapters, which have dropout."""
    def build():
        model = Qwen2_5_VL(model_config, rngs=nnx.Rngs(0))
        add_adapters(model, LoraConfig(rank=2, dropout=0.2), nnx.Rngs(5))
        return model

    graphdef, params = flat_params(build())
    return graphdef, {**params, **policy[1]}


@pytest.fixture(scope='module')
def adapter_updates(make_learner, adapted, sequences):
    learner = make_learner(policy=adapted)
    return learner, *three_updates(learner, sequences)


def test_adapters_learn_and_the_base_stays_to_the_bit(adapter_updates, adapted):
    learner, metrics, weights, compiled = adapter_updates
    for path, value in adapted[1].items():
        assert np.array_equal(weights[2][path], value) != is_adapter(path), path
    assert metrics[2]['loss'] != metrics[0]['loss']
    assert compiled[1:] == [0, 0]
    # What is not trained has no optimiser state, and no copy.
    assert all(is_adapter(path) for path in learner.state.opt_state[1][0].mu)


def test_without_a_seed_nothing_is_dropped(
        make_learner, policy, model_config, adapted, adapter_updates, sequences):
    plain = Qwen2_5_VL(model_config, rngs=nnx.Rngs(0))
    add_adapters(plain, LoraConfig(rank=2), nnx.Rngs(5))
    want = make_learner(policy=(flat_params(plain)[0], adapted[1])).update(sequences)['grad_norm']
    got = make_learner(policy=adapted, seed=None).update(sequences)['grad_norm']
    assert got == pytest.approx(want, rel=1e-5)
    assert adapter_updates[1][0]['grad_norm'] != pytest.approx(want, rel=1e-3)


@pytest.mark.parametrize('shape', [
    pytest.param(MESHES['data'], marks=pytest.mark.slow), MESHES['fsdp, sequence and tensor']])
def test_eight_devices_train_adapters_as_one_does(
        make_learner, adapted, adapter_updates, sequences, shape):
    metrics, weights, _ = three_updates(make_learner(shape, policy=adapted), sequences)
    assert_same(zip(metrics, weights, strict=True), zip(*adapter_updates[1:3], strict=True))


def test_a_partly_frozen_vision_tower_is_not_called_frozen(make_learner):
    assert not make_learner(frozen='^visual/blocks').vision_is_frozen


@pytest.mark.parametrize('pattern', ['^no_such_tower/', '.'])
def test_patterns_that_freeze_nothing_or_everything_are_refused(make_learner, pattern):
    with pytest.raises(ValueError, match='frozen pattern'):
        make_learner(frozen=pattern)


def test_logprobs_are_those_of_each_sequence_alone(
        make_learner, sequences, policy, model_config, images):
    graphdef, params = policy
    cache = make_cache(policy, model_config)
    first = cache.rows_of(params, images)
    got = make_learner().logprobs(params, sequences, cache)

    @jax.jit
    def alone(params, tokens, positions, features, index):
        model = merge(graphdef, params)
        return jax.nn.log_softmax(model.logits(model.hidden_states(
            tokens, positions, image_features=features, image_index=index)))

    for sequence, values in zip(sequences, got, strict=True):
        table = np.concatenate([np.zeros(0, int), *(
            first[i.key] for i in sequence.images)]).astype(np.int32)
        index = np.where(sequence.image_index < 0, -1,
                         np.append(table, 0)[sequence.image_index]).astype(np.int32)
        width = ((0, 80 - len(sequence)),)
        log_p = alone(
            params, np.pad(sequence.tokens, width)[None],
            np.pad(sequence.position_ids, ((0, 0), *width))[:, None], cache.buffer,
            np.pad(index, width, constant_values=-1)[None])[0]
        want = [0.0, *(float(log_p[i, t]) for i, t in enumerate(sequence.tokens[1:]))]
        np.testing.assert_allclose(values, np.array(want) * sequence.loss_mask, atol=1e-5)


def test_a_mini_batch_without_trained_tokens_is_refused(make_learner, make_sequence):
    sequence = make_sequence(0, (), text=4)
    assert sequence.loss_mask.sum() == 0
    with pytest.raises(ValueError, match='no token'):
        make_learner().update([sequence])


def test_the_step_counts_updates(frozen_vision):
    assert frozen_vision[0].step == 3
    assert frozen_vision[0].state.step.dtype == jnp.int32


def test_a_small_feature_buffer_gives_the_same_update(
        make_learner, sequences, policy, model_config, frozen_vision):
    """Images are asked for a micro-batch at a time: 28 rows hold those of one of them."""
    cache = ImageFeatureCache(make_encoder(policy[0]), model_config, rows=28, windows=4, span=2)
    learner = make_learner(frozen='^visual/', rows=1)
    with pytest.raises(ValueError, match='31 feature rows at once'):
        cache.rows_of(policy[1], {i.key: i for s in sequences for i in s.images}.values())
    order = [s for s in sequences if len({i.key for i in s.images}) < 2]
    want = make_learner(frozen='^visual/').update(order, make_cache(policy, model_config))
    got = learner.update(order, cache)
    assert {k: got[k] for k in ('loss', 'kl', 'entropy')} == pytest.approx(
        {k: want[k] for k in ('loss', 'kl', 'entropy')}, rel=1e-5, abs=1e-5)


def test_frozen_parameters_are_shared_not_copied(make_learner, policy, sequences, model_config):
    mesh = make_mesh({}, devices=jax.devices()[:1])
    params = jax.device_put(policy[1], parameter_shardings(policy[1], mesh))
    graphdef, loss = policy[0], grpo(GrpoLossConfig())
    config = LearnerConfig(**SETTINGS, frozen='^visual/')
    learner = Learner(graphdef, params, model_config, config, loss, 10, mesh)
    learner.update(sequences, make_cache(policy, model_config))
    pointer = lambda x: x.addressable_shards[0].data.unsafe_buffer_pointer()  # noqa: E731
    for path, value in params.items():
        shared = pointer(learner.state.params[path]) == pointer(value)
        assert shared == path.startswith('visual/'), path


def test_rows_may_be_shorter(make_learner, sequences, reference):
    learner = make_learner(rows=2, length=160, length_buckets=(80,), windows=16)
    learner.warm_up()
    before = compilations()
    metrics = learner.update(sequences)
    assert compilations() == before + 1  # The optimiser's step.
    assert metrics['loss'] == pytest.approx(reference[0][0]['loss'], abs=1e-5)


@pytest.mark.parametrize('averaging', ['token', 'sequence', 'constant'])
def test_averages_do_not_depend_on_micro_batches(
        policy, model_config, sequences, averaging):
    """Against the loss of each sequence by itself, averaged by hand."""
    mesh = make_mesh({}, devices=jax.devices()[:1])
    params = jax.device_put(policy[1], parameter_shardings(policy[1], mesh))
    config = GrpoLossConfig(averaging=averaging, constant_length=7, kl_coef=0.1)

    def learner(**settings):
        # It learns nothing to speak of, so that one may be asked again and again.
        return Learner(policy[0], params, model_config,
                       LearnerConfig(**SETTINGS | {'lr': 1e-12} | settings), grpo(config), 10, mesh)

    one = learner()
    whole = one.update(sequences)
    parts = learner(rows=1).update(sequences)
    alone = [(one.update([s]), s.loss_mask[1:].sum()) for s in sequences
             if s.loss_mask[1:].sum()]
    tokens = sum(n for _, n in alone)
    weight = {'token': lambda n: n / tokens, 'sequence': lambda n: 1 / len(alone),
              'constant': lambda n: 1 / len(sequences)}[averaging]
    assert whole['loss'] == pytest.approx(
        sum(weight(n) * float(m['loss']) for m, n in alone), rel=1e-4)
    for name in ('loss', 'kl', 'ratio', 'clip_fraction', 'entropy'):
        assert parts[name] == pytest.approx(whole[name], rel=1e-4, abs=1e-5)
    # Sequences that are left out of the loss count where the length is constant.
    some = one.update(sequences, left_out=3)
    share = len(sequences) / (len(sequences) + 3) if averaging == 'constant' else 1.0
    assert some['loss'] == pytest.approx(whole['loss'] * share, rel=1e-4)
    # Metrics are means over tokens, whatever the loss is.
    assert whole['kl'] == pytest.approx(sum(m['kl'] * n for m, n in alone) / tokens, rel=1e-4)


@pytest.mark.parametrize('call', ['update', 'logprobs'])
def test_an_error_gives_back_the_lock_of_the_features(
        make_learner, policy, model_config, sequences, monkeypatch, call):
    learner, features = make_learner(frozen='^visual/'), make_cache(policy, model_config)

    def fails(*_):
        raise MemoryError

    monkeypatch.setattr(learner, '_steps', dataclasses.replace(
        learner._steps, gradients=fails, logprobs=fails))
    arguments = (sequences,) if call == 'update' else (learner.state.params, sequences)
    with pytest.raises(MemoryError) as raised:
        getattr(learner, call)(*arguments, features)
    # While the traceback is there, which a rollout beside it would wait for.
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        assert raised.tb and pool.submit(features.lock.acquire, timeout=5).result()
