"""The cache holds what the vision tower makes of each image alone, within its bounds."""

import jax
import numpy as np
import pytest
from flax import nnx

from vrag_jax.metrics import compilations
from vrag_jax.models.common.axes import parameter_shardings
from vrag_jax.models.common.images import ProcessedImage
from vrag_jax.models.common.parameters import flat_params, merge
from vrag_jax.models.common.patch_packing import pack_images
from vrag_jax.models.families import preset
from vrag_jax.models.qwen2_5_vl.model import Qwen2_5_VL
from vrag_jax.parallel.mesh import make_mesh
from vrag_jax.sampling.image_features import ImageFeatureCache, make_encoder

CONFIG = preset('tiny', vocab_size=64)
# The last takes two attention windows, the others one; 4, 3, 16 and 24 features.
GRIDS = ((1, 4, 4), (1, 2, 6), (1, 8, 8), (1, 8, 12))


@pytest.fixture(scope='module')
def policy():
    create = lambda: flat_params(Qwen2_5_VL(CONFIG, rngs=nnx.Rngs(0)))  # noqa: E731
    graphdef, _ = nnx.eval_shape(create)
    return graphdef, jax.jit(lambda: create()[1])()


@pytest.fixture(scope='module')
def images():
    rng = np.random.default_rng(0)
    return [ProcessedImage(
        f'image{i}', rng.integers(0, 256, (h * w, CONFIG.vision.patch_bytes), np.uint8),
        (t, h, w), h * w // 4) for i, (t, h, w) in enumerate(GRIDS)]


@pytest.fixture(scope='module')
def encoder(policy):
    return make_encoder(policy[0])


@pytest.fixture
def new_cache(encoder):
    return lambda rows=64: ImageFeatureCache(encoder, CONFIG, rows, windows=2, span=2)


@pytest.fixture(scope='module')
def alone(policy, images):
    """Features of each image, encoded by itself."""
    encode = jax.jit(lambda params, batch: merge(policy[0], params).encode_images(batch))
    return {image.key: np.asarray(encode(policy[1], pack_images(
        [(image.patches, image.grid_thw)], CONFIG, windows=2, span=2)))[: image.tokens]
        for image in images}


def assert_holds(cache, rows, images, alone):
    for image in images:
        np.testing.assert_allclose(cache.buffer[rows[image.key]], alone[image.key], atol=1e-5)
    used = np.concatenate([rows[image.key] for image in images])
    assert len(set(used.tolist())) == sum(image.tokens for image in images)


def test_features_are_those_of_each_image_alone(new_cache, policy, images, alone):
    cache = new_cache()
    assert_holds(cache, cache.rows_of(policy[1], images), images, alone)
    assert cache.images_encoded == cache.images_requested == 4


def test_an_image_is_encoded_once(new_cache, policy, images, alone):
    cache = new_cache()
    cache.rows_of(policy[1], images[:2])
    rows = cache.rows_of(policy[1], [*images[1:3], images[1]])
    assert_holds(cache, rows, images[1:3], alone)
    assert set(rows) == {'image1', 'image2'}
    assert cache.images_encoded == 3 and cache.images_requested == 4


def test_the_longest_unused_make_room(new_cache, policy, images, alone):
    cache = new_cache(rows=30)
    small, long, square, large = images  # 4, 3, 16 and 24 features
    cache.rows_of(policy[1], [small, long, square])  # 23 rows
    cache.rows_of(policy[1], [small])
    # Of 24 rows 7 are free: the long one goes, then the square one, not the small one.
    assert_holds(cache, cache.rows_of(policy[1], [large]), [large], alone)
    assert cache.images_encoded == 4
    assert_holds(cache, cache.rows_of(policy[1], [small]), [small], alone)
    assert cache.images_encoded == 4
    cache.rows_of(policy[1], [long])  # One row is free: the large one goes.
    assert cache.images_encoded == 5
    assert_holds(cache, cache.rows_of(policy[1], [small, long, square]),
                 [small, long, square], alone)
    assert cache.images_encoded == 6


def test_what_is_asked_for_is_never_evicted(new_cache, policy, images, alone):
    rng, cache = np.random.default_rng(0), new_cache(rows=40)
    for _ in range(30):
        asked = [images[i] for i in rng.permutation(4)[: rng.integers(1, 4)]]
        if sum(image.tokens for image in asked) <= 40:
            assert_holds(cache, cache.rows_of(policy[1], asked), asked, alone)


def test_few_images_take_a_small_program(encoder, policy, images, alone):
    cache = ImageFeatureCache(encoder, CONFIG, 64, windows=(2, 4), span=2)
    seen = []
    cache._encode = lambda params, batch, *rest: (
        seen.append(batch.pixels.shape[0]), encoder(params, batch, *rest))[1]
    assert_holds(cache, cache.rows_of(policy[1], images[:1]), images[:1], alone)
    assert_holds(cache, cache.rows_of(policy[1], images[1:]), images[1:], alone)
    # One window; then one, one and two, which is as many as the largest takes.
    assert seen == [2, 4]


def test_nothing_compiles_after_the_warm_up(policy, images):
    cache = ImageFeatureCache(make_encoder(policy[0]), CONFIG, 64, windows=(2, 4), span=2)
    cache.warm_up(policy[1])
    before = compilations()
    cache.rows_of(policy[1], images)
    cache.rows_of(policy[1], images[:1])
    assert compilations() == before and cache.images_encoded == 4


def test_a_cleared_cache_encodes_again(new_cache, policy, images, alone):
    cache = new_cache()
    cache.rows_of(policy[1], images[:1])
    cache.clear()
    assert_holds(cache, cache.rows_of(policy[1], images[:1]), images[:1], alone)
    assert cache.images_encoded == 2


def test_images_that_cannot_be_held_together_are_refused(new_cache, policy, images):
    with pytest.raises(ValueError, match='4 images need 47 feature rows at once.*holds 46'):
        new_cache(rows=46).rows_of(policy[1], images)


def test_no_image_is_no_work(new_cache, policy):
    cache = new_cache()
    assert cache.rows_of(policy[1], []) == {} and cache.images_encoded == 0


def test_on_a_mesh_the_buffer_stays_where_it_is(policy, images, alone):
    mesh = make_mesh({'data': 2, 'fsdp': 2, 'tensor': 2})
    params = jax.device_put(policy[1], parameter_shardings(policy[1], mesh))
    cache = ImageFeatureCache(make_encoder(policy[0], mesh), CONFIG, 64, 2, 2, mesh=mesh)
    places, compiled = [cache.buffer.sharding], []
    for image in images[:2]:
        before = compilations()
        rows = cache.rows_of(params, [image])
        compiled.append(compilations() - before)
        places.append(cache.buffer.sharding)
        assert_holds(cache, rows, [image], alone)
    assert compiled[1] == 0
    assert places[0] == places[1] == places[2] and places[0].is_fully_replicated
