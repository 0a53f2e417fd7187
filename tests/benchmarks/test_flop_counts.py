"""Counts of operations, against products worked out by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from benchmarks import flops
from benchmarks.flop_counts import Curve, Recorder, count, shapes, total
from vrag_jax.models.common.parameters import flat_params, merge
from vrag_jax.models.families import preset
from vrag_jax.models.qwen2_5_vl.model import Qwen2_5_VL

MATMUL = 2 * 8 * 16 * 16


def layers(x, weights):
    return jax.lax.scan(lambda x, w: (x @ w, None), x, weights)[0]


X, W = jnp.ones((8, 16)), jnp.ones((3, 16, 16))


def test_a_loop_over_layers_counts_every_layer():
    assert count(layers, X, W) == 3 * MATMUL
    # Which is why: XLA itself counts the body once.
    assert jax.jit(layers).lower(X, W).compile().cost_analysis()['flops'] < 2 * MATMUL


def test_the_backward_pass_of_a_loop_counts_every_layer():
    work = count(jax.grad(lambda w, x: jnp.square(layers(x, w)).sum()), W, X)
    # Forward, gradient of each weight, gradient of each layer's input (not of the first's).
    assert work == pytest.approx((3 + 3 + 2) * MATMUL, rel=0.03)


def test_a_decoder_counts_what_its_sizes_say():
    config = preset('tiny', vocab_size=64)
    graphdef, params = nnx.eval_shape(lambda: flat_params(Qwen2_5_VL(config, rngs=nnx.Rngs(0))))
    rows, length, text = 4, 96, config.text
    tokens = jax.ShapeDtypeStruct((rows, length), jnp.int32)

    def forward(params, tokens):
        positions = jnp.broadcast_to(jnp.arange(length), (3, *tokens.shape))
        return merge(graphdef, params).hidden_states(tokens, positions)

    matrices = sum(np.prod(p.shape) for path, p in params.items()
                   if path.startswith('language_model/layers') and path.endswith('kernel'))
    scores = 4 * text.num_hidden_layers * length * text.hidden_size
    by_hand = rows * length * (2 * matrices + scores)
    # Norms, rotations and softmax come on top of the products.
    assert by_hand < count(forward, params, tokens) < 1.1 * by_hand


def test_a_recorder_counts_calls_by_shape_and_leaves_results_alone():
    recorder = Recorder()
    with recorder.recording():
        @jax.jit
        def double(x):
            return x @ x

    for size in (4, 8, 8):
        assert (double(jnp.eye(size)) == jnp.eye(size)).all()
    runs = recorder.take()
    assert sorted((run.program.arguments[0].shape, run.calls) for run in runs) == [
        ((4, 4), 1), ((8, 8), 2)]
    assert total(runs) == {'double': 2 * 4**3 + 2 * (2 * 8**3)}
    assert recorder.take() == []


def test_a_loop_that_tells_its_passes_counts_as_often():
    class Result(tuple):
        passes = 5

    jax.tree_util.register_pytree_node(Result, lambda r: (tuple(r), None), lambda _, c: Result(c))
    recorder = Recorder()
    with recorder.recording():
        run = jax.jit(lambda n, x: (n, Result((x @ x,))), static_argnums=0)
    run(3, jnp.eye(4))
    assert total(recorder.take()) == {'<lambda>': 5 * 2 * 4**3}


def test_donated_arguments_are_described_before_they_are_gone():
    recorder = Recorder()
    with recorder.recording():
        run = jax.jit(lambda x: x + 1, donate_argnums=0)
    run(jnp.zeros((2, 3)))
    (only,) = recorder.take()
    assert only.program.arguments == (shapes(jnp.zeros((2, 3))),)


def test_a_curve_is_linear_between_and_refuses_beyond():
    curve = Curve({10: 100.0, 20: 300.0})
    assert curve(15) == 200.0
    with pytest.raises(ValueError):
        curve(21)


class FakeTrajectory:
    """Two turns: a prompt of 4, 2 sampled, an image in 3 observed, 2 sampled."""

    def __init__(self):
        self.loss_mask = np.array([0, 0, 0, 0, 1, 1, 0, 0, 0, 1, 1], bool)
        self.tokens = np.arange(11)
        self.processed = [type('Image', (), {'key': 'page', 'grid_thw': (1, 2, 2)})()]
        self.images = [type('View', (), {'token_start': 7})()]


class UnitCosts:
    """A token costs 1, a token of a scoring pass 100, of an update 1000, an image 10000."""

    def prefill(self, new, past=0):
        return new

    def decode(self, past):
        return 1

    def score(self, length):
        return 100 * length

    def update(self, length):
        return 1000 * length

    def image(self, image):
        return 10000


def test_the_references_work_is_that_of_its_algorithm_by_hand():
    work = flops.reference_work([FakeTrajectory()] * 5, UnitCosts())
    assert work == {
        # Contexts of 4 and 9 tokens, each a trajectory; the last sampled token is not run.
        'prefill': 5 * (4 + 9), 'decode': 5 * (1 + 1),
        'images while sampling': 5 * 10000,  # In the second turn's context only.
        'old log-probs': 5 * 1100, 'reference log-probs': 5 * 1100, 'update': 5 * 11000,
        'images of three passes': 5 * 3 * 10000}
    padded = flops.reference_work([FakeTrajectory()] * 5, UnitCosts(), pad_to=20)
    assert padded['update'] == 5 * 20000 and padded['prefill'] == work['prefill']


def test_our_work_is_that_of_our_algorithm_by_hand():
    work = flops.our_work([[FakeTrajectory()] * 5], UnitCosts(), old_passes=0)
    assert work == {
        # 3 tokens of the prompt once for the group, then the 3 observed ones and the last
        # sampled one, but for the last token, of each.
        'prefill': 3 + 5 * 3, 'decode': 5 * (2 + 2), 'images': 10000,
        'old log-probs': 0, 'reference log-probs': 5 * 1100, 'update': 5 * 11000}


def test_a_summary_gives_the_share():
    values = flops.summary({'a': 1e9, 'b': 2e9}, {'c': 6e9})
    assert values == {'ours': {'a': 1.0, 'b': 2.0, 'all': 3.0}, 'theirs': {'c': 6.0, 'all': 6.0},
                      'share': 0.5}
