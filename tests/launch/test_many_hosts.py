"""Launchers of many hosts, with commands that only note what they are called with."""

import os
import re
import shlex
import string
import subprocess
from pathlib import Path

import pytest
import yaml

from vrag_jax.parallel.distributed import DistributedConfig, find_place

ROOT = Path(__file__).resolve().parents[2]
LAUNCH = ROOT / 'launch'
RUN = ['-u', '-m', 'vrag_jax.main', '--config=configs/tiny.py']


@pytest.fixture
def desk(tmp_path):
    """A folder whose `bin` has srun and gcloud, which fail the first two times."""
    (tmp_path / 'bin').mkdir()
    for name in ('srun', 'gcloud', 'python'):
        path = tmp_path / 'bin' / name
        path.write_text(f'#!/bin/bash\nprintf "%s\\0" "$@" >> {tmp_path}/{name}.calls\n'
                        f'printf "\\1" >> {tmp_path}/{name}.calls\necho working\n'
                        f'[ $(tr -cd "\\1" < {tmp_path}/{name}.calls | wc -c)'
                        ' -gt ${FAILURES:-0} ]\n')
        path.chmod(0o755)
    return tmp_path


def launch(desk, script, *arguments, **variables):
    environment = {k: v for k, v in os.environ.items() if not k.startswith('SLURM_')}
    return subprocess.run(
        [LAUNCH / script, *arguments], capture_output=True, text=True, cwd=desk,
        env=environment | {'PATH': f'{desk}/bin:{os.environ["PATH"]}',
                           'PYTHON': f'{desk}/bin/python', **variables})


def calls(desk, command):
    """The arguments of every call."""
    text = (desk / f'{command}.calls').read_text()
    return [call.split('\0')[:-1] for call in text.split('\1')[:-1]]


def slurm(desk, *flags, **variables):
    return launch(desk, 'slurm.sh', 'configs/tiny.py', f'{desk}/run', *flags,
                  SLURM_JOB_ID='7', SLURM_SUBMIT_DIR=str(ROOT), **variables)


def test_slurm_starts_one_process_a_node(desk):
    done = slurm(desk, '--config.seed=1', '--config.prompt.text=two words')
    assert done.returncode == 0, done.stderr
    [call] = calls(desk, 'srun')
    options, command = call[:call.index('-u') - 1], call[call.index('-u') - 1:]
    assert '--ntasks-per-node=1' in options and all(o.startswith('--') for o in options)
    assert command == [f'{desk}/bin/python', *RUN, f'--workdir={desk}/run', '--config.seed=1',
                       '--config.prompt.text=two words']
    assert (desk / 'run' / 'log.txt').read_text() == 'working\n'


def test_slurm_starts_again_until_it_ends_well(desk):
    assert slurm(desk, FAILURES='2', RESTARTS='5').returncode == 0
    assert len(calls(desk, 'srun')) == 3
    assert 'restart 2 of 5' in (desk / 'run' / 'log.txt').read_text()


def test_slurm_starts_no_more_often_than_asked_for(desk):
    assert slurm(desk, FAILURES='9', RESTARTS='1').returncode == 1
    assert len(calls(desk, 'srun')) == 2


def test_slurm_outside_a_job_says_what_to_do(desk):
    done = launch(desk, 'slurm.sh', 'configs/tiny.py', 'run')
    assert done.returncode == 2 and 'sbatch' in done.stderr
    done = launch(desk, 'slurm.sh', 'configs/tiny.py', 'run', SLURM_JOB_ID='7',
                  SLURM_SUBMIT_DIR=str(desk))
    assert done.returncode == 2 and 'from its root' in done.stderr
    assert not (desk / 'srun.calls').exists()


def test_the_options_for_sbatch_stand_before_the_first_command():
    lines = (LAUNCH / 'slurm.sh').read_text().splitlines()
    options = [i for i, line in enumerate(lines) if line.startswith('#SBATCH ')]
    assert '#SBATCH --ntasks-per-node=1' in lines
    assert max(options) < lines.index('set -uo pipefail')


TPU = {'TPU': 'pod', 'ZONE': 'us-east5-a'}


def test_tpu_vm_runs_on_all_hosts(desk):
    done = launch(desk, 'tpu_vm.sh', 'configs/tiny.py', '/nfs/run', "--config.prompt.text=it's {x}",
                  **TPU, PROJECT='mine')
    assert done.returncode == 0, done.stderr
    [call] = calls(desk, 'gcloud')
    assert call[:5] == ['compute', 'tpus', 'tpu-vm', 'ssh', 'pod']
    assert set(call[5:-1]) == {'--zone=us-east5-a', '--project=mine', '--worker=all'}
    # As the shell of a host reads it.
    assert shlex.split(call[-1].removeprefix('--command=')) == [
        'cd', 'vrag_jax', '&&', '.venv/bin/python', *RUN, '--workdir=/nfs/run',
        "--config.prompt.text=it's {x}"]
    assert (desk / 'pod.log').read_text() == 'working\n'


def test_tpu_vm_starts_again_until_it_ends_well(desk):
    done = launch(desk, 'tpu_vm.sh', 'configs/tiny.py', '/nfs/run', **TPU, FAILURES='2',
                  RESTARTS='2', LOG='elsewhere')
    assert done.returncode == 0
    assert len(calls(desk, 'gcloud')) == 3
    assert (desk / 'elsewhere').read_text().count('working') == 3


def test_tpu_vm_installs_what_is_committed(desk):
    done = launch(desk, 'tpu_vm.sh', 'install', **TPU)
    assert done.returncode == 0, done.stderr
    copy, ssh = calls(desk, 'gcloud')
    assert copy[:4] == ['compute', 'tpus', 'tpu-vm', 'scp'] and '--worker=all' in copy
    assert copy[5] == 'pod:vrag_jax.tar.gz'
    assert not Path(copy[4]).exists()
    assert ssh[3] == 'ssh' and 'make -C vrag_jax install ACCELERATOR=tpu' in calls_text(desk)


def calls_text(desk):
    return (desk / 'gcloud.calls').read_text()


def test_tpu_vm_stops_a_run_and_not_itself(desk):
    assert launch(desk, 'tpu_vm.sh', 'stop', **TPU).returncode == 0
    [call] = calls(desk, 'gcloud')
    pattern = re.search(r"pkill -f '(.+)'", call[-1])[1]
    assert re.search(pattern, ' '.join(['.venv/bin/python', *RUN]))
    assert not re.search(pattern, call[-1])


def test_tpu_vm_needs_a_name_and_a_zone(desk):
    done = launch(desk, 'tpu_vm.sh', 'configs/tiny.py', 'run', TPU='pod', ZONE='')
    assert done.returncode == 2 and 'ZONE' in done.stderr
    assert not (desk / 'gcloud.calls').exists()


@pytest.mark.parametrize('script', ['slurm.sh', 'tpu_vm.sh'])
def test_without_arguments_they_say_how_they_are_used(desk, script):
    done = launch(desk, script)
    assert done.returncode == 2
    assert f'launch/{script} CONFIG WORKDIR' in done.stderr
    assert all(line[:1] not in '#$' for line in done.stderr.splitlines() if line)
    assert 'pipefail' not in done.stderr


VALUES = {
    'NAME': 'grpo-7b', 'IMAGE': 'registry/vrag_jax:1', 'CONFIG': 'configs/grpo_7b.py',
    'FLAGS': '"--config.mesh.fsdp=16", "--config.prompt.text=a: {question}"', 'CLAIM': 'runs',
    'ACCELERATOR': 'some-kind', 'TOPOLOGY': '2x2x4', 'HOSTS': '4', 'CHIPS': '4', 'SLICES': '2',
    'RESTARTS': '5', 'NODES': '4', 'GPUS': '8'}


def manifest(name, **values):
    """A template with its values, as `envsubst` fills them in."""
    text = (LAUNCH / name).read_text()
    return yaml.safe_load(string.Template(text).substitute(VALUES | values))


def job(manifest):
    return manifest['spec']['replicatedJobs'][0]['template']['spec']


@pytest.mark.parametrize('name', ['gke_tpu.yaml', 'gke_gpu.yaml'])
def test_templates_document_each_of_their_variables(name):
    text = (LAUNCH / name).read_text()
    documented = re.findall(r'^#   ([A-Z]+)  +\S', text, re.M)
    assert set(documented) == set(re.findall(r'\$\{(\w+)\}', text))


@pytest.mark.parametrize('name,resource,count', [
    ('gke_tpu.yaml', 'google.com/tpu', 4), ('gke_gpu.yaml', 'nvidia.com/gpu', 8)])
def test_templates_start_main_in_every_pod(name, resource, count):
    filled = manifest(name)
    assert filled['metadata']['name'] == 'grpo-7b'
    assert filled['spec']['failurePolicy'] == {'maxRestarts': 5}
    spec = job(filled)
    assert (spec['completionMode'], spec['parallelism'], spec['completions']) == ('Indexed', 4, 4)
    assert spec['backoffLimit'] == 0 and spec['template']['spec']['restartPolicy'] == 'Never'
    [container] = spec['template']['spec']['containers']
    assert container['resources']['limits'] == {resource: count}
    assert container['command'] == ['python', *RUN[:-1]]
    assert container['args'] == [
        '--config=configs/grpo_7b.py', '--workdir=/runs/grpo-7b', '--config.mesh.fsdp=16',
        '--config.prompt.text=a: {question}']
    mounted = {m['name'] for m in container['volumeMounts']}
    assert mounted == {v['name'] for v in spec['template']['spec']['volumes']}
    assert job(manifest(name, FLAGS=''))['template']['spec']['containers'][0]['args'] == \
        container['args'][:2]


def test_slices_of_tpus_are_jobs():
    filled = manifest('gke_tpu.yaml')
    assert filled['spec']['replicatedJobs'][0]['replicas'] == 2
    assert job(filled)['template']['spec']['nodeSelector'] == {
        'cloud.google.com/gke-tpu-accelerator': 'some-kind',
        'cloud.google.com/gke-tpu-topology': '2x2x4'}


def test_gpu_pods_find_each_other(monkeypatch):
    filled = manifest('gke_gpu.yaml')
    [container] = job(filled)['template']['spec']['containers']
    for entry in container['env']:
        # The API fills in a pod's index.
        index = "metadata.annotations['batch.kubernetes.io/job-completion-index']"
        monkeypatch.setenv(entry['name'], entry.get('value', '3'))
        assert 'value' in entry or entry['valueFrom'] == {'fieldRef': {'fieldPath': index}}
    # A pod's name is JobSet-job-number-index, its domain that of the JobSet.
    [group] = filled['spec']['replicatedJobs']
    coordinator = f'{filled["metadata"]["name"]}-{group["name"]}-0-0.{filled["metadata"]["name"]}'
    assert find_place(DistributedConfig()) == {
        'coordinator_address': f'{coordinator}:8482', 'num_processes': 4, 'process_id': 3,
        'local_device_ids': None, 'cluster_detection_method': 'deactivate'}
    assert {'containerPort': 8482} in container['ports']
