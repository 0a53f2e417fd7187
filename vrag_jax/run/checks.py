"""Checks of a config that need the machine or several sections at once."""

import math
from pathlib import Path

import jax

from vrag_jax.config import ConfigError, naming
from vrag_jax.data.chat import ChatFormat
from vrag_jax.embedders.registry import check_embedder
from vrag_jax.models.common.hf_checkpoint import Tensors
from vrag_jax.models.common.tokenizer import load_tokenizer
from vrag_jax.models.families import family_of, image_spec, read_config
from vrag_jax.parallel.mesh import resolve_shape
from vrag_jax.planning.chips import parse_topology
from vrag_jax.run.corpus import check_paths
from vrag_jax.run.prompt import choose_prompt
from vrag_jax.run.settings import RunConfig
from vrag_jax.serving.config import check_packages

# Tasks that ask a policy.
ASKING = ('loop', 'sft', 'grpo', 'evaluate')
LEARNING = ('loop', 'sft', 'grpo')


def check(config: RunConfig) -> None:
    """Refuses a config that cannot run here, before anything heavy starts.

    Raises:
      ConfigError: naming the field.
    """
    check_paths(config)
    if config.retrieval.url and config.task in ('build_index', 'serve_index'):
        raise ConfigError(f'config.retrieval.url: {config.task} has its own index; leave it empty')
    if config.retrieval.index_dir:
        if config.task == 'build_index':
            raise ConfigError('config.retrieval.index_dir: build_index writes WORKDIR/index; '
                              'leave it empty')
        if not Path(config.retrieval.index_dir).is_dir():
            raise ConfigError(f'config.retrieval.index_dir: {config.retrieval.index_dir} is no '
                              'folder')
    if config.task == 'serve_index':
        _check_embedders(config)
        check_packages()
        return  # No policy, no mesh.
    try:
        count = jax.device_count()
        if config.task == 'compile':
            count = math.prod(parse_topology(config.compile.topology)[1])
        shape = resolve_shape(config.mesh.sizes(), count)
    except ValueError as error:
        raise ConfigError(f'config.{error}') from error
    if config.task == 'build_index':
        _check_embedders(config)
        return  # Neither samples nor learns.
    if config.policy.checkpoint:
        _check_checkpoint(Path(config.policy.checkpoint), whole=config.task in ASKING)
    lengths = {'sft': (config.sft.steps, config.sft.epochs),
               'grpo': (config.grpo.steps, config.grpo.epochs)}
    if config.task in lengths and not any(lengths[config.task]):
        raise ConfigError(f'config.{config.task}: steps and epochs are both 0: nothing would be '
                          f'trained; pass --config.{config.task}.epochs=1, for instance')
    if config.task in ASKING and not (config.task == 'sft' and config.data.trajectories):
        choose_prompt(config)
    if config.task in LEARNING and not config.policy.lora.rank and (
            config.policy.param_dtype != 'float32'):
        # A weight of 0.02 changes by 6e-5 or not at all: steps of 1e-6 would all be lost.
        raise ConfigError(f'config.policy.param_dtype: {config.policy.param_dtype} rounds updates '
                          'away where all weights are trained; take float32, or adapters '
                          '(policy.lora.rank)')
    shards = shape['data'] * shape['fsdp']
    for name, learner in config.learners.items():
        if learner.rows % shards:
            raise ConfigError(f'config.{name}.rows: {learner.rows} rows do not split over '
                              f'data * fsdp = {shards} devices')
    if config.grpo.overlap and jax.process_count() > 1:
        raise ConfigError('config.grpo.overlap: a rollout beside an update needs one process: '
                          'several would run global programs in different orders')
    if config.sampler.slots % shards:
        raise ConfigError(f'config.sampler.slots: {config.sampler.slots} slots do not split over '
                          f'data * fsdp = {shards} devices')
    _check_embedders(config)


def _check_embedders(config: RunConfig) -> None:
    """Refuses embedders that cannot be used, of tasks that search with them."""
    searches = config.task in ('build_index', 'serve_index', 'loop', 'grpo', 'evaluate') or (
        config.task == 'sft' and not config.data.trajectories)
    if searches and not config.retrieval.url:
        for name, embedder in config.retrieval.embedders.items():
            with naming(f'config.retrieval.{config.retrieval.embedder_field(name)}'):
                check_embedder(embedder)


def _check_checkpoint(directory: Path, whole: bool) -> None:
    """Refuses a checkpoint that cannot be used; of one that only gives sizes, the config."""
    with naming('config.policy.checkpoint'):
        try:
            sizes = read_config(directory)
        except (ArithmeticError, AttributeError, TypeError) as error:  # Of fields of odd types.
            raise ValueError(f'{directory}/config.json: a field is not of its type: '
                             f'{error}') from error
        if not whole:
            return
        family = family_of(sizes)
        Tensors(directory, family.weights(sizes))
        ChatFormat(load_tokenizer(directory))
        processor = family.load_processor(directory)
        try:
            image_spec(family.with_processor(sizes, processor)).check_processor(processor)
        except ValueError as error:
            raise ValueError(f'{directory}/preprocessor_config.json: {error}') from error
