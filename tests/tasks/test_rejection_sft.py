"""Fine-tuning on the policy's own right trajectories: trained, resumed, planned, compiled."""

import dataclasses
import types

import numpy as np
import pytest

from configs import tiny
from tests.tasks import small_loop
from vrag_jax.config import ConfigError, parse
from vrag_jax.metrics import read_rows
from vrag_jax.planning.plan import plan
from vrag_jax.planning.run_programs import programs
from vrag_jax.run.context import RunContext
from vrag_jax.tasks import registry, rejection_sft
from vrag_jax.training.sft import finetune, sft_phase

PROGRAMS = ['encode images', 'prefill', 'decode', 'rejection_sft: gradients',
            'rejection_sft: optimiser']


def config_of(values, **changes):
    values.task = 'rejection_sft'
    values.mesh.update({'data': 1, 'tensor': -1})
    values.rejection_sft = {'steps': 2, 'prompts': 2, 'group_size': 4, 'keep': 2, 'save_every': 1,
                            **changes}
    return parse(registry.config_class(), values)


@pytest.fixture(scope='module')
def context(tmp_path_factory):
    """A run whose policy has learnt two questions by heart."""
    values = small_loop.get_config()
    values.data.pageworld.update({'train_questions': 2})
    values.sft.update({'steps': 60, 'epochs': 0, 'careful': 1.0, 'loose': 0.0, 'hasty': 0.0,
                       'trajectories': 8, 'save_every': 100})
    values.sft.learner.update({'algorithm': 'muon', 'lr': 4e-3, 'warmup_steps': 5, 'frozen': ''})
    return RunContext(
        config_of(values, learner={'lr': 1e-3, 'length': 384, 'rows': 4, 'frozen': '^visual/'}),
        tmp_path_factory.mktemp('rejection'))


@pytest.fixture(scope='module')
def policy(context):
    config = context.config.sft
    played = context.demonstrations().scripted(
        context.world(), config.shares, config.trajectories)
    return finetune(context, sft_phase(config), config, context.initial_params(),
                    [t.sequence() for t in played])


def rows_of(context):
    rows = read_rows(context.workdir / 'metrics.jsonl')
    return [row for row in rows if row['phase'] == 'rejection_sft']


@pytest.mark.slow
def test_it_learns_from_what_was_right_and_goes_on_from_its_checkpoint(context, policy):
    world, questions = context.world(), context.corpus.questions['train']
    first = rejection_sft.train(context, policy, world, questions)
    found = rows_of(context)
    assert [row['step'] for row in found] == [1, 2]
    assert all(0 < row['values']['kept'] <= 2 * 2 for row in found)
    name = 'language_model/embed_tokens/embedding'
    assert np.abs(np.asarray(first[name]) - np.asarray(policy[name])).max() > 0

    more = dataclasses.replace(
        context.config, rejection_sft=dataclasses.replace(
            context.config.section(rejection_sft.RejectionSftConfig), steps=3))
    again = RunContext(more, context.workdir)
    rejection_sft.train(again, policy, world, questions)
    assert [row['step'] for row in rows_of(context)] == [1, 2, 3]


def test_of_a_group_the_right_ones_count_once():
    def trajectory(answer_score, *tokens):
        return types.SimpleNamespace(answer_score=answer_score, tokens=np.array(tokens))

    group = [trajectory(1.0, 1, 2), trajectory(0.0, 3), trajectory(1.0, 1, 2), trajectory(1.0, 4)]
    assert [t.tokens.tolist() for t in rejection_sft.right(group)] == [[1, 2], [4]]


def test_it_is_planned_and_compiled_like_any_phase():
    values = tiny.get_config()
    for section in ('sft', 'grpo'):
        values[section].steps = 0
    values.pretrain.stages = ()
    config = config_of(values, prompts=8)
    registry.check(config)
    phases = registry.phases(config)
    planned = plan(config, phases)
    assert list(planned.phases) == ['rejection_sft'] and planned.pool is not None
    found = {program.name: program for program in programs(config, planned)}
    assert list(found) == PROGRAMS
    # 8 questions, of which 2 of 4 trajectories are learned, 8 a micro-batch.
    assert found['rejection_sft: gradients'].calls == 8 * 2 / 8
    text = found['rejection_sft: gradients'].lower().as_text()
    assert 'mhlo.num_partitions' in text
    assert 'rejection_sft: optimiser' in str(planned)


def test_without_an_iteration_it_is_refused():
    with pytest.raises(ConfigError, match='config.rejection_sft: steps and epochs are both 0'):
        registry.check(config_of(tiny.get_config(), steps=0))
    with pytest.raises(ConfigError, match='config.rejection_sft: keep must be positive, got 0'):
        config_of(tiny.get_config(), keep=0)
