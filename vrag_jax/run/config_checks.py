"""Checks of a config that need the machine, files, or several sections at once."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import jax

from vrag_jax.config import ConfigError, naming
from vrag_jax.corpus.names import existing
from vrag_jax.data.chat import ChatFormat
from vrag_jax.data.datasets import check_conversations, check_questions, split_sources
from vrag_jax.embedders.registry import check_embedder
from vrag_jax.models.common.hf_checkpoint import Tensors
from vrag_jax.models.common.tokenizer import load_tokenizer
from vrag_jax.models.families import family_of, image_spec, needs_tokenizer, read_config
from vrag_jax.parallel.mesh import resolve_shape
from vrag_jax.run.prompt_choice import choose_prompt
from vrag_jax.run.run_config import RunConfig
from vrag_jax.run.task import Task
from vrag_jax.training.phase import Phase


def check(config: RunConfig, task: Task, phases: Sequence[Phase]) -> None:
    """Refuses a config that cannot run here, before anything heavy starts.

    Args:
      config: of the run.
      task: that it names.
      phases: of the config, see `tasks.registry.phases`.

    Raises:
      ConfigError: naming the field.
    """
    _check_paths(config, task)
    task.check(config)
    if config.retrieval.index_dir and not Path(config.retrieval.index_dir).is_dir():
        raise ConfigError(f'config.retrieval.index_dir: {config.retrieval.index_dir} is no folder')
    if task.mesh:
        try:
            count = jax.device_count() if task.devices is None else task.devices(config)
            shape = resolve_shape(config.mesh.sizes(), count)
        except ValueError as error:
            raise ConfigError(f'config.{error}') from error
        if task.policy:
            _check_policy(config, task)
            _check_shapes(config, phases, shape['data'] * shape['fsdp'])
    if task.searches(config) and not config.retrieval.url:
        for name, embedder in config.retrieval.embedders.items():
            with naming(f'config.retrieval.{config.retrieval.embedder_field(name)}'):
                check_embedder(embedder)


def refuse_without_iterations(phase: Phase) -> None:
    """Refuses a phase that is what a task is for, and has no iteration."""
    if not phase.trains:
        raise ConfigError(f'config.{phase.name}: steps and epochs are both 0: nothing would be '
                          f'trained; pass --config.{phase.name}.epochs=1, for instance')


def _check_policy(config: RunConfig, task: Task) -> None:
    if config.policy.checkpoint:
        _check_checkpoint(Path(config.policy.checkpoint), whole=task.asks)
    # Fine-tuning on conversations takes the prompt that these begin with.
    on_conversations = config.data.trajectories and 'data.trajectories' in task.needs(config)
    if task.asks and not on_conversations:
        choose_prompt(config)
    if task.phases and not config.policy.lora.rank and config.policy.param_dtype != 'float32':
        # A weight of 0.02 changes by 6e-5 or not at all: steps of 1e-6 would all be lost.
        raise ConfigError(f'config.policy.param_dtype: {config.policy.param_dtype} rounds updates '
                          'away where all weights are trained; take float32, or adapters '
                          '(policy.lora.rank)')


def _check_shapes(config: RunConfig, phases: Sequence[Phase], shards: int) -> None:
    """Refuses what does not fit together, or does not split over the devices."""
    longest = config.sampler.max_length
    for phase in phases:
        field = f'config.{phase.name}.learner'
        if phase.rollout and phase.learner.length < longest:
            raise ConfigError(
                f'{field}.length: {phase.learner.length} is shorter than '
                f'config.sampler.max_length = {longest}: trajectories would not fit')
        if phase.learner.rows % shards:
            raise ConfigError(f'{field}.rows: {phase.learner.rows} rows do not split over '
                              f'data * fsdp = {shards} devices')
        if phase.overlap and jax.process_count() > 1:
            raise ConfigError(
                f'config.{phase.name}.overlap: a rollout beside an update needs one process: '
                'several would run global programs in different orders')
    if config.sampler.slots % shards:
        raise ConfigError(f'config.sampler.slots: {config.sampler.slots} slots do not split over '
                          f'data * fsdp = {shards} devices')


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


def _check_paths(config: RunConfig, task: Task) -> None:
    """Says what to pass where a file is not given, or not there."""
    needs = task.needs(config)
    paths = {'policy.checkpoint': (
        config.policy.checkpoint, task.asks and not needs_tokenizer(config.policy.preset))}
    if config.retrieval.sources and config.task != 'build_index':
        raise ConfigError('config.retrieval.sources: only the task build_index reads documents; '
                          'pass the pages it has made with --config.data.manifest=PATH')
    for source in config.retrieval.source_paths:
        if not existing(Path(source)).exists():
            raise ConfigError(f'config.retrieval.sources: {source} does not exist')
    if config.data.source == 'files':
        for name in ('manifest', 'train_questions', 'eval_questions'):
            paths[f'data.{name}'] = getattr(config.data, name), f'data.{name}' in needs
    paths['data.trajectories'] = (
        config.data.trajectories, 'data.trajectories' in needs and config.data.source == 'files')
    paths['data.image_root'] = (config.data.image_root, False)
    checkpoint = config.policy.checkpoint
    if checkpoint and Path(checkpoint).exists() and not Path(checkpoint, 'config.json').is_file():
        raise ConfigError(f'config.policy.checkpoint: {checkpoint} holds no config.json; '
                          'pass a checkpoint directory with --config.policy.checkpoint=PATH')
    for name, (value, required) in paths.items():
        if required and not value:
            raise ConfigError(f'config.{name}: not given; pass --config.{name}=PATH')
        if value:
            try:
                _PATH_CHECKS.get(name, _check_exists)(value)
            except FileNotFoundError as error:
                raise ConfigError(f'config.{name}: {error}; '
                                  f'pass an existing path with --config.{name}=PATH') from error
            except ValueError as error:
                raise ConfigError(f'config.{name}: {error}') from error


def _check_exists(path: str) -> None:
    if not Path(path).exists():
        raise FileNotFoundError(f'{path} does not exist')


def _check_manifest(path: str) -> None:
    _check_exists(str(existing(Path(path))))


def _check_question_sources(text: str) -> None:
    for source in split_sources(text):
        check_questions(source)


def _check_folder(path: str) -> None:
    if not Path(path).is_dir():
        raise FileNotFoundError(f'{path} is no folder')


_PATH_CHECKS: Mapping[str, Callable[[str], None]] = {
    'data.manifest': _check_manifest,
    'data.train_questions': _check_question_sources,
    'data.eval_questions': _check_question_sources,
    'data.image_root': _check_folder,
    'data.trajectories': check_conversations,
}
