"""Programs of a run's steps, and what is made of a compiled one."""

import dataclasses
import json
import math
import warnings

import jax
import pytest

from configs import grpo_3b, grpo_3b_lora_16gb, tiny
from vrag_jax.config import ConfigError, parse
from vrag_jax.models.common.flops import adapter_flops, decoder_flops, training_flops
from vrag_jax.models.common.lora import LoraConfig
from vrag_jax.models.families import preset
from vrag_jax.parallel.sharding import RULES
from vrag_jax.planning.chips import CHIPS
from vrag_jax.planning.compile import Compiled, iteration_seconds, record, resident_bytes
from vrag_jax.planning.plan import plan
from vrag_jax.planning.run_programs import programs
from vrag_jax.planning.work import Work
from vrag_jax.run.context import RunContext
from vrag_jax.run.policy_setup import sampling_shapes
from vrag_jax.run.run_config import RunConfig
from vrag_jax.tasks import compile as compilation
from vrag_jax.tasks.registry import phases

GRPO = ['encode images', 'prefill', 'decode', 'grpo: log-probs', 'grpo: gradients',
        'grpo: optimiser']


@pytest.fixture(scope='module')
def paper():
    config = parse(RunConfig, grpo_3b.get_config())
    return {p.name: p for p in programs(config, plan(config, phases(config)))}


def test_all_programs_of_a_grpo_step(paper):
    assert list(paper) == GRPO
    assert [p.learns for p in paper.values()] == [False] * 4 + [True, False]
    assert [p.samples for p in paper.values()] == [True] * 3 + [False] * 3


def test_calls_of_an_iteration_of_the_papers_settings(paper):
    # 160 trajectories of 8,192 tokens and 2,048 sampled ones, four images of 512 tokens each.
    assert paper['encode images'].calls == 160 * 4 * 512 / (256 * 16)
    assert paper['prefill'].calls == 160 * 8192 / (8 * 640)
    assert paper['decode'].calls == 160 * 2048 / (80 * 128)
    # Four rows a micro-batch; the reference and the old policy are both scored.
    assert paper['grpo: log-probs'].calls == 2 * 160 / 4
    assert paper['grpo: gradients'].calls == 160 / 4
    assert paper['grpo: optimiser'].calls == 5


def test_every_program_lowers_for_the_mesh_it_is_planned_for():
    # On a small model: its programs are traced with the shapes and shardings they run with.
    config = tiny.get_config()
    config.mesh.fsdp = 2
    for learner in (config.pretrain.learner, config.sft.learner, config.grpo.learner):
        learner.rows, learner.row_buckets, learner.window_buckets = 8, (), ()
    config = parse(RunConfig, config)
    for program in programs(config, plan(config, phases(config))):
        text = program.lower().as_text()
        assert 'mhlo.num_partitions = 8' in text, program.name


def test_least_operations_by_hand():
    config = preset('tiny', vocab_size=64)
    text = config.text
    tokens, size, wide = 3 * 10, text.hidden_size, text.intermediate_size
    kv = text.num_key_value_heads * text.head_dim
    layers = 2 * tokens * text.num_hidden_layers * (2 * size * size + 2 * size * kv
                                                    + 3 * size * wide)
    # Keys and values, of 1 + 2 + ... + 10 pairs a row.
    attention = 2 * 2 * 3 * 55 * size * text.num_hidden_layers
    forward = layers + 2 * tokens * size * 64 + attention
    assert decoder_flops(config, 3, 10) == forward
    assert training_flops(config, 3, 10, LoraConfig()) == 3 * forward
    lora = LoraConfig(rank=4, targets=('q_proj', 'down_proj'))
    adapters = 2 * tokens * text.num_hidden_layers * 4 * (2 * size + wide + size)
    assert adapter_flops(config, lora, tokens) == adapters
    # Of a frozen kernel, backwards, only the gradient of the activations.
    assert training_flops(config, 3, 10, lora) == (
        2 * (forward - attention) + 3 * attention + 3 * adapters)


def compiled(**changes):
    return dataclasses.replace(Compiled(
        'decode', 3.0, arguments=5 << 30, temporaries=2 << 30, outputs=0, resident=7 << 30,
        inputs=1 << 30, work=Work(flops=197e12, bytes=819e9 * 2), calls=4.0), **changes)


def test_a_program_holds_the_run_and_its_own_inputs_and_temporaries():
    assert compiled().total == 10 << 30
    row = record(compiled(), CHIPS['v5e'], 10.0)
    assert row['fits'] and row['limit'] == 'memory'
    assert not record(compiled(), CHIPS['v5e'], 9.99)['fits']
    assert not record(compiled(error='no'), CHIPS['v5e'], 99.0)['fits']
    json.dumps(row)


@pytest.mark.parametrize('dtype', ['float32', 'bfloat16'])
def test_overlap_holds_the_cache_and_the_weights_of_before(dtype):
    config = tiny.get_config()
    config.policy.dtype, config.grpo.old_logprobs = dtype, 'sampler'
    one = jax.devices()[:1]
    held = {}
    for config.grpo.overlap in (False, True):
        parsed = parse(RunConfig, config)
        planned = plan(parsed, phases(parsed), devices=one)
        by_name = {p.name: p for p in programs(parsed, planned)}
        held[config.grpo.overlap] = {
            name: resident_bytes(parsed, planned, by_name[name])
            for name in ('decode', 'grpo: gradients')}
    size = lambda x: math.prod(x.shape) * x.dtype.itemsize  # noqa: E731
    pool = sum(map(size, jax.tree.leaves(planned.pool)))
    trained = {path for path in planned.params if not path.startswith('visual/')}
    placed = sampling_shapes(planned.params, parsed, planned.mesh, RULES)
    cast = {path for path, x in placed.items() if x.dtype != planned.params[path].dtype}
    assert bool(cast) == (dtype == 'bfloat16') and trained - cast
    copied = sum(size(placed[path]) for path in cast)
    old = sum(size(planned.params[path]) for path in trained - cast)
    assert held[True]['decode'] - held[False]['decode'] == old
    assert held[True]['grpo: gradients'] - held[False]['grpo: gradients'] == pool + copied + old


def test_bounds_add_up_to_an_iteration():
    rows = [record(c, CHIPS['v5e'], 16.0) for c in (
        compiled(), compiled(name='update', work=Work(flops=197e12 * 5), calls=1.5),
        compiled(name='none', error='does not compile'))]
    # Memory traffic of two seconds, four times; arithmetic of five, one and a half times.
    assert iteration_seconds(rows) == {'decode': 8.0, 'update': 7.5}


def test_mfu_is_of_the_least_operations():
    row = record(compiled(minimum=197e12), CHIPS['v5e'], 16.0)
    assert row['mfu_at_bound'] == 0.5 and row['flops_over_minimum'] == 1.0


@pytest.mark.parametrize('topology', ['', 'v5e', 'h100:8'])
def test_a_topology_that_is_none_is_refused(topology, tmp_path):
    config = grpo_3b_lora_16gb.get_config()
    config.task, config.compile.topology = 'compile', topology
    with pytest.raises(ConfigError, match=r'config\.compile\.topology must be like'):
        compilation.run(RunContext(parse(RunConfig, config), tmp_path))


@pytest.fixture(scope='module')
def small():
    """The smallest run that has all programs, for one chip."""
    pytest.importorskip('libtpu')
    config = tiny.get_config()
    config.task, config.compile.topology = 'compile', 'v5e:1x1'
    config.compile.programs = ('encode', 'prefill', 'decode', 'grpo')
    config.policy.dtype = 'bfloat16'
    return config


def run_compile(small, workdir):
    config = parse(RunConfig, small)
    compilation.run(RunContext(config, workdir, phases(config)))


@pytest.mark.slow
def test_for_a_real_tpu(small, tmp_path, capsys):
    run_compile(small, tmp_path)
    written = json.loads((tmp_path / 'compile.json').read_text())
    assert written['chips'] == 1 and written['jax'] == jax.__version__
    rows = {row['program']: row for row in written['programs']}
    assert GRPO == list(rows) and all(row['fits'] for row in rows.values())
    for name, row in rows.items():
        assert row['kernels_not_counted'] == {}
        if name.endswith('gradients'):
            # Nothing is done less often than it must be; remat is off.
            assert 1 <= row['flops_over_minimum'] < 2.5, name
    shown = capsys.readouterr().out.splitlines()
    assert len(shown) == 3 + len(rows) and all('fits' in line for line in shown[2:-1])


def test_compiling_again_for_chips_that_are_not_there_leaves_the_cache_alone(small, tmp_path):
    # What is compiled without a chip can be written to JAX's cache, but not be read again.
    small = small.copy_and_resolve_references()
    small.compile.programs = ('grpo: optimiser',)
    with warnings.catch_warnings():
        warnings.filterwarnings('error', message='.*persistent compilation cache')
        for _ in range(2):
            run_compile(small, tmp_path)
    assert jax.config.jax_enable_compilation_cache  # As it was.


def test_what_does_not_fit_ends_with_a_message(small, tmp_path):
    small = small.copy_and_resolve_references()
    small.compile.memory_gib, small.compile.programs = 0.001, ('grpo: optimiser',)
    with pytest.raises(SystemExit, match='1 of 1 programs do not fit: grpo: optimiser'):
        run_compile(small, tmp_path)
    assert not any(r['fits'] for r in json.loads(
        (tmp_path / 'compile.json').read_text())['programs'])
