"""The command line: overrides are taken, and what cannot work is refused in one line."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

# On two devices. Every case is a forked process, so that the imports are paid for once. Tasks are
# replaced: what gets as far as running one has been accepted.
PROGRAM = """
import dataclasses, json, os, sys
from pathlib import Path
from absl import app
from vrag_jax import main
from vrag_jax.tasks import registry

def accept(context):
    accepted = json.dumps(dataclasses.asdict(context.config))
    Path(context.workdir, 'accepted.json').write_text(accepted)

registry.TASKS = {name: dataclasses.replace(task, run=accept)
                  for name, task in registry.TASKS.items()}
codes = {}
for name, (folder, arguments) in json.load(sys.stdin).items():
    child = os.fork()
    if not child:
        sys.argv = ['vrag_jax.main', f'--workdir={folder}/workdir', *arguments]
        output = os.open(f'{folder}/output', os.O_CREAT | os.O_WRONLY)
        os.dup2(output, 1), os.dup2(output, 2)
        app.run(main.main, flags_parser=main.parse_flags)
    codes[name] = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
print(json.dumps(codes))
"""

TINY, GRPO = '--config=configs/tiny.py', '--config=configs/grpo_7b.py'
SFT = '--config=configs/sft_7b.py'
SMALL_MESH = ('--config.mesh.fsdp=1', '--config.mesh.tensor=2')

ACCEPTED = {
    'as it is': [TINY],
    'a number': [TINY, '--config.grpo.learner.lr=2e-6'],
    'a whole number for a real one': [TINY, '--config.grpo.learner.lr=1'],
    'a tuple': [TINY, '--config.sampler.attend_lengths=(16,32)'],
    'fields that the file leaves to their defaults':
        [TINY, '--config.grpo.loss.averaging=sequence', '--config.grpo.dynamic_sampling=2',
         '--config.judge.rule=contains'],
    'a text': [TINY, '--config.task=build_index'],
    'spaces for equals signs':
        ['--config', 'configs/tiny.py', '--config.grpo.learner.lr', '3e-6'],
    'documents to index':
        ['--config=configs/build_index.py', '--config.retrieval.sources=tests,configs'],
    'a plan without a checkpoint': [GRPO, '--config.task=plan', *SMALL_MESH],
}
# Arguments, and what the one line must hold.
REFUSED = {
    'no config': ([], '--config'),
    'missing config file': (['--config=configs/nowhere.py'], 'configs/nowhere.py'),
    'unknown field':
        ([TINY, '--config.grpo.learner.lrr=1.0'],
         "config.grpo.learner.lrr: no such field; in config.grpo.learner there are ['algorithm'"),
    'unknown field after a file with a space':
        (['--config', 'configs/tiny.py', '--config.grpo.learner.lrr=1.0'],
         "config.grpo.learner.lrr: no such field; in config.grpo.learner there are ['algorithm'"),
    'a flag with the old name of a section':
        ([TINY, '--config.learner.lr=1e-6'], 'config.learner: is called config.grpo.learner now'),
    'a flag with the old name of a field':
        ([TINY, '--config.feature_rows=8'],
         'config.feature_rows: is called config.vision_features.rows now'),
    'the old name of the lengths of rows':
        ([TINY, '--config.sft.learner.shorter=(128,)'],
         'config.sft.learner.shorter: is called config.sft.learner.length_buckets now'),
    'the old name of the size of a block':
        ([TINY, '--config.sampler.page_size=8'],
         'config.sampler.page_size: is called config.sampler.block_size now'),
    'a file with an old name':
        (['--config=OLD'], 'config.feature_span: is called config.vision_features.span now'),
    'unknown section': ([TINY, '--config.lerner.lr=1.0'], 'config.lerner: no such field'),
    'field below a number': ([TINY, '--config.seed.x=1'], 'config.seed.x: no such field'),
    'value that a field left to its default does not take':
        ([TINY, '--config.grpo.loss.averaging=median'], 'config.grpo.loss: averaging must be'),
    'text for a number':
        ([TINY, '--config.grpo.learner.lr=fast'], 'config.grpo.learner.lr=fast'),
    'fraction for a whole number': ([TINY, '--config.grpo.steps=1.5'], 'config.grpo.steps=1.5'),
    'sources that are not there':
        (['--config=configs/build_index.py', '--config.retrieval.sources=nowhere'],
         'config.retrieval.sources: nowhere does not exist'),
    'sources of another task':
        (['--config=configs/build_index.py', '--config.retrieval.sources=tests',
          '--config.task=evaluate'], 'config.retrieval.sources: only the task build_index'),
    'an index of another folder for the task that builds one':
        (['--config=configs/build_index.py', '--config.retrieval.sources=tests',
          '--config.retrieval.index_dir=tests'], 'config.retrieval.index_dir: build_index writes'),
    'unknown task': ([TINY, '--config.task=dance'], 'config.task: must be one of'),
    'unknown preset': ([TINY, '--config.policy.preset=huge'], 'config.policy: preset must be'),
    'group of one': ([TINY, '--config.grpo.group_size=1'], 'config.grpo: group_size'),
    'rewards that do not sum':
        ([TINY, '--config.reward.weights.answer=0.5'], 'config.reward: weights must sum to 1'),
    'experts that do not sum':
        ([TINY, '--config.sft.careful=0.9'], 'config.sft: careful + loose + hasty must be 1'),
    'mini-batches that do not divide':
        ([TINY, '--config.grpo.mini_batches=7'], 'config.grpo: mini_batches = 7'),
    'a judge model without a server':
        ([TINY, '--config.judge.model=x'], 'config.judge: model is for a judge model'),
    'two questions in the prompt':
        ([TINY, '--config.prompt.text={question} {question}'], 'config.prompt: text must hold'),
    'mesh that does not fit': ([TINY, '--config.mesh.fsdp=3'], 'config.mesh.data: 2 devices'),
    'mesh that is too small':
        ([TINY, '--config.mesh.data=1'], 'config.mesh.'),
    'rows that do not split':
        ([TINY, '--config.grpo.learner.rows=25'], 'config.grpo.learner.rows: 25 rows'),
    'slots that do not split': ([TINY, '--config.sampler.slots=65'], 'config.sampler.slots: 65'),
    'trajectories longer than rows':
        ([TINY, '--config.grpo.learner.length=64'], 'config.grpo.learner.length: 64 is shorter'),
    'no checkpoint': ([GRPO], 'pass --config.policy.checkpoint=PATH'),
    'missing checkpoint':
        ([GRPO, '--config.policy.checkpoint=/nowhere'],
         'config.policy.checkpoint: /nowhere does not exist'),
    'checkpoint without config':
        ([GRPO, '--config.policy.checkpoint=configs'],
         'config.policy.checkpoint: configs holds no config.json'),
    'no conversations':
        ([SFT, '--config.policy.checkpoint=CHECKPOINT'], 'pass --config.data.trajectories=PATH'),
    'no pages':
        ([GRPO, '--config.policy.checkpoint=CHECKPOINT'], 'pass --config.data.manifest=PATH'),
    'leftover arguments': ([TINY, 'configs/tiny.py'], 'unexpected arguments'),
    'a file for a folder': ([TINY, '--workdir=README.md'], '--workdir: README.md is a file'),
}


@pytest.fixture(scope='module')
def outcomes(tmp_path_factory) -> dict[str, tuple[int, str, Path]]:
    """Exit code, output and folder of every case."""
    root = tmp_path_factory.mktemp('main')
    checkpoint = root / 'checkpoint'
    checkpoint.mkdir()
    (checkpoint / 'config.json').write_text('{}')
    old = root / 'old.py'
    old.write_text('from configs import tiny\n\n\ndef get_config():\n'
                   '    config = tiny.get_config()\n    config.feature_span = 4\n'
                   '    return config\n')
    cases = {}
    for name, arguments in {**ACCEPTED, **{k: v[0] for k, v in REFUSED.items()}}.items():
        folder = root / name
        folder.mkdir()
        cases[name] = (str(folder),
                       [a.replace('CHECKPOINT', str(checkpoint)).replace('OLD', str(old))
                        for a in arguments])
    done = subprocess.run(
        [sys.executable, '-W', 'ignore', '-c', PROGRAM], input=json.dumps(cases), cwd=ROOT,
        capture_output=True, text=True, timeout=900,
        env=os.environ | {'PYTHONPATH': str(ROOT), 'JAX_PLATFORMS': 'cpu',
                          'XLA_FLAGS': '--xla_force_host_platform_device_count=2'})
    assert done.returncode == 0, done.stderr
    codes = json.loads(done.stdout.splitlines()[-1])
    return {name: (codes[name], (root / name / 'output').read_text(), root / name)
            for name in cases}


@pytest.fixture(scope='module')
def accepted(outcomes):
    """Returns a function from a case to the config that its task was given."""
    def read(name: str) -> dict:
        code, output, folder = outcomes[name]
        assert code == 0, output
        return json.loads((folder / 'workdir' / 'accepted.json').read_text())
    return read


def test_overrides_reach_the_task(accepted):
    assert accepted('as it is')['grpo']['learner']['lr'] != 2e-6
    assert accepted('a number')['grpo']['learner']['lr'] == 2e-6
    assert accepted('a whole number for a real one')['grpo']['learner']['lr'] == 1.0
    assert accepted('spaces for equals signs')['grpo']['learner']['lr'] == 3e-6
    assert accepted('a tuple')['sampler']['attend_lengths'] == [16, 32]
    assert accepted('a text')['task'] == 'build_index'
    defaults = accepted('fields that the file leaves to their defaults')
    assert defaults['grpo']['loss']['averaging'] == 'sequence'
    assert defaults['grpo']['dynamic_sampling'] == 2 and defaults['judge']['rule'] == 'contains'
    assert accepted('a plan without a checkpoint')['policy']['checkpoint'] == ''


def test_the_config_is_kept_with_the_run(outcomes):
    _, _, folder = outcomes['a number']
    kept = json.loads((folder / 'workdir' / 'config.json').read_text())
    assert kept['grpo']['learner']['lr'] == 2e-6


@pytest.mark.parametrize('name', REFUSED)
def test_what_cannot_work_is_refused_in_one_line(outcomes, name):
    code, output, folder = outcomes[name]
    lines = [line for line in output.splitlines() if line.strip()]
    assert code != 0
    assert 'Traceback' not in output
    assert len(lines) == 1, output
    assert REFUSED[name][1] in lines[0]
    # Nothing was begun.
    assert not (folder / 'workdir').exists()


def test_of_transformers_only_the_advice_about_pytorch_is_dropped():
    program = ('import logging, vrag_jax.main, transformers\n'
               "logging.getLogger('transformers').warning('something else')\n")
    done = subprocess.run([sys.executable, '-c', program], cwd=ROOT, capture_output=True,
                          text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert 'PyTorch' not in done.stderr
    assert 'something else' in done.stderr


def test_the_command_line_starts_no_backend_when_it_is_imported():
    # Processes of a run connect first, and what a backend has started cannot be forked.
    program = ('import vrag_jax.main; from jax._src import xla_bridge; '
               'print(xla_bridge.backends_are_initialized())')
    done = subprocess.run([sys.executable, '-W', 'ignore', '-c', program], cwd=ROOT,
                          capture_output=True, text=True, timeout=300)
    assert done.stdout.strip() == 'False', done.stderr
