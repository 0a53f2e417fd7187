"""A run that trains adapters alone, on a base in 8 bits: what it leaves behind."""

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from tests.tasks.conftest import SMALL_LOOP, finish, start
from tests.tasks.small_loop import STEPS
from tests.tasks.test_resume import rows

pytestmark = pytest.mark.slow

TARGETS = ('q_proj', 'v_proj', 'up_proj')


@pytest.fixture(scope='module')
def run(finished_run, run_once) -> Path:
    """Folder of the run; its base is the policy of the small loop."""
    pytest.importorskip('qwix')
    config = SMALL_LOOP.with_name('small_lora.py')
    checkpoint = f'--config.policy.checkpoint={finished_run / "policy"}'
    return run_once('lora', lambda workdir: finish(start(config, workdir, checkpoint), workdir))


@pytest.fixture(scope='module')
def tensors(finished_run, run):
    """Of the base and of the exported policy, by published name."""
    return [load_file(folder / 'policy' / 'model.safetensors') for folder in (finished_run, run)]


def adapter(run):
    """Matrices by module and kind."""
    return load_file(run / 'adapter' / 'adapter_model.safetensors')


def is_decoder_matrix(name):
    return name.startswith('model.layers.') and name.endswith('_proj.weight')


def test_every_phase_ran_and_moved_the_adapters(run):
    found = [(row['phase'], row['step']) for row in rows(run)]
    assert found == [(phase, step) for phase, count in STEPS.items() if phase != 'pretrain'
                     for step in range(1, count + 1)]
    assert all(row['values']['grad_norm'] > 0 for row in rows(run) if row['phase'] == 'sft')
    matrices = adapter(run)
    assert matrices and all(value.any() for value in matrices.values())


def test_what_has_no_adapter_is_the_base_bit_for_bit(tensors):
    base, exported = tensors
    assert base.keys() == exported.keys()
    for name, value in base.items():
        if not is_decoder_matrix(name):
            np.testing.assert_array_equal(exported[name], value, err_msg=name)


def test_decoder_matrices_are_the_rounded_base_and_their_adapters(run, tensors):
    base, exported = tensors
    matrices = adapter(run)
    seen = 0
    for name in filter(is_decoder_matrix, base):
        scale = np.abs(base[name]).max(axis=1, keepdims=True) / 127.5
        change = exported[name] - base[name]
        module = name.removeprefix('model.').removesuffix('.weight')
        stem = f'base_model.model.model.language_model.{module}'
        if any(name.endswith(f'{target}.weight') for target in TARGETS):
            a, b = (matrices[f'{stem}.lora_{kind}.weight'] for kind in 'AB')
            change, seen = change - 8.0 / 4 * b @ a, seen + 1
        assert (np.abs(change) < 0.502 * scale + 1e-6).all(), name
    assert seen == 3 * len(TARGETS)  # Layers, by targets.


def test_checkpoints_hold_no_base(run):
    sizes = {folder.name: sum(f.stat().st_size for f in folder.rglob('*') if f.is_file())
             for folder in (run / 'checkpoints').iterdir()}
    policy = (run / 'policy' / 'model.safetensors').stat().st_size
    # Adapters and their two moments, of which several are kept.
    assert sizes and max(sizes.values()) < policy / 4


def test_the_settings_of_the_adapters_are_saved(run, finished_run):
    stored = json.loads((run / 'adapter' / 'adapter_config.json').read_text())
    assert (stored['r'], stored['lora_alpha']) == (4, 8.0)
    assert stored['base_model_name_or_path'] == str(finished_run / 'policy')

