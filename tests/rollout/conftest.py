"""A small PageWorld, its tokenizer, a search by shared words and a tiny random policy."""

import dataclasses
import re

import jax
import pytest
from flax import nnx
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from vrag_jax.actions.stopping import build_stop_table
from vrag_jax.corpus.pages import PageStore
from vrag_jax.data.chat import ChatFormat
from vrag_jax.data.pageworld.config import PageWorldConfig
from vrag_jax.data.pageworld.files import build
from vrag_jax.data.tiny_tokenizer import train_tiny_tokenizer
from vrag_jax.experts.scripted import STYLES, ExpertState, ScriptedExpert
from vrag_jax.models.common.images import ImagePreprocessor
from vrag_jax.models.common.parameters import flat_params
from vrag_jax.models.common.tokenizer import ids_without_text, token_bytes
from vrag_jax.models.families import image_spec, preset
from vrag_jax.models.qwen2_5_vl.model import Qwen2_5_VL
from vrag_jax.retrieval.hits import Hit
from vrag_jax.rollout.environment import Environment, EnvironmentConfig
from vrag_jax.rollout.world import World
from vrag_jax.sampling.image_features import ImageFeatureCache, make_encoder
from vrag_jax.sampling.sampler import Sampler
from vrag_jax.sampling.slots import SamplerConfig

# Pages of 448 x 448 pixels are shown at 112 x 112: one pixel there is four here.
RULES = EnvironmentConfig(min_pixels=112 * 56, max_pixels=112 * 112)


class WordSearch:
    """Ranks pages by the words their titles share with the query; remembers its calls."""

    def __init__(self, layouts):
        self._titles = {page_id: set(page.title.split()) for page_id, page in layouts.items()}
        self.calls = []

    def search(self, queries, k):
        self.calls.append((list(queries), k))
        return [self._rank(query)[:k] for query in queries]

    def _rank(self, query):
        words = set(query.split())
        hits = [Hit(page_id, float(len(words & title)))
                for page_id, title in self._titles.items() if words & title]
        return sorted(hits, key=lambda hit: (-hit.score, hit.page_id))


@pytest.fixture(scope='session')
def pageworld(tmp_path_factory):
    config = dataclasses.replace(
        PageWorldConfig(), train_documents=3, validation_documents=1, test_documents=1,
        train_questions=24, validation_questions=4, test_questions=4)
    return build(config, tmp_path_factory.mktemp('rollout') / 'world')


@pytest.fixture(scope='session')
def questions(pageworld):
    return pageworld.questions['train']


@pytest.fixture(scope='session')
def store(pageworld):
    return PageStore.open(pageworld.manifest)


@pytest.fixture(scope='session')
def tokenizer(pageworld, tmp_path_factory):
    texts = [q.query for q in pageworld.questions['train']]
    texts += ['<think> A K M. K top left.</think><bbox>[12,34,56,78]</bbox>',
              '<think>472.</think><answer>472</answer>', '<search> velora market</search>']
    # Often enough for their words to become tokens.
    return train_tiny_tokenizer(texts * 20, 400, tmp_path_factory.mktemp('tokenizer'))


@pytest.fixture(scope='session')
def model_config(tokenizer):
    ids = {f'{name}_token_id': tokenizer.convert_tokens_to_ids(f'<|{name}|>')
           for name in ('vision_start', 'vision_end')}
    ids['image_token_id'] = tokenizer.convert_tokens_to_ids('<|image_pad|>')
    sizes = preset('tiny', vocab_size=-(-len(tokenizer) // 64) * 64, **ids)
    return dataclasses.replace(sizes, suppressed_ids=ids_without_text(
        tokenizer, sizes.text.vocab_size, [tokenizer.eos_token_id]))


@pytest.fixture(scope='session')
def make_world(pageworld, store, tokenizer, model_config):
    """Returns a function that makes a world from rules that differ from the default."""
    vision = model_config.vision
    processor = Qwen2VLImageProcessorPil(
        patch_size=vision.patch_size, merge_size=vision.spatial_merge_size,
        temporal_patch_size=vision.temporal_patch_size)

    def make(engine=None, disabled=(), **rules):
        environment = Environment(
            store, engine or WordSearch(pageworld.layouts), dataclasses.replace(RULES, **rules),
            disabled=disabled)
        return World(environment, ChatFormat(tokenizer),
                     ImagePreprocessor(processor, image_spec(model_config)), model_config)

    return make


@pytest.fixture(scope='session')
def world(make_world):
    return make_world()


@pytest.fixture
def act(pageworld):
    """The careful expert, as `run_expert` asks for turns."""
    expert = ScriptedExpert(pageworld.layouts, STYLES['careful'])
    return lambda question, episode: expert.act(
        question, ExpertState([view.frame for view in episode.images], len(episode.turns)))


@pytest.fixture(scope='session')
def policy(model_config):
    """Graph definition and random parameters of the tiny policy."""
    create = lambda: flat_params(Qwen2_5_VL(model_config, rngs=nnx.Rngs(0)))  # noqa: E731
    graphdef, _ = nnx.eval_shape(create)
    # Random queries and keys of the usual size make attention nearly uniform.
    return graphdef, {path: value * 4 if re.search('[qk]_proj/kernel$', path) else value
                      for path, value in jax.jit(lambda: create()[1])().items()}


@pytest.fixture(scope='session')
def sampler(policy, world, tokenizer, model_config):
    table = build_stop_table(token_bytes(tokenizer, model_config.text.vocab_size))
    sizes = SamplerConfig(slots=4, max_length=320, max_new_tokens=12, decode_tokens=8,
                          prefill_shapes=((4, 32), (2, 96)), cache_tokens=1024)
    return Sampler(policy[0], model_config, sizes, table, [world.chat.end_of_turn_id])


@pytest.fixture(scope='session')
def features(policy, model_config):
    # A long crop, such as 140 x 84 pixels, takes two attention windows.
    return ImageFeatureCache(make_encoder(policy[0]), model_config, rows=256, windows=8, span=2)
