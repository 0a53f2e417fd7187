"""Which process of how many: explicit settings, launchers, and what is left to JAX to find out."""

import os

import pytest

from vrag_jax.config import ConfigError, parse
from vrag_jax.parallel.distributed import DistributedConfig, find_place, processes

# What the launchers set in the third of four processes, two on each host.
SLURM = {'SLURM_JOB_ID': '4097', 'SLURM_STEP_NODELIST': 'gpu[07-08],gpu11', 'SLURM_NTASKS': '4',
         'SLURM_PROCID': '2', 'SLURM_LOCALID': '0', 'SLURM_STEP_NUM_NODES': '2'}
OPEN_MPI_4 = {'OMPI_MCA_orte_hnp_uri': '1531576320.0;tcp://10.96.0.1,10.148.0.1:34911',
              'OMPI_COMM_WORLD_SIZE': '4', 'OMPI_COMM_WORLD_RANK': '2',
              'OMPI_COMM_WORLD_LOCAL_RANK': '0', 'OMPI_COMM_WORLD_LOCAL_SIZE': '2'}
EXPLICIT = {'JAX_COORDINATOR_ADDRESS': 'head:1234', 'JAX_NUM_PROCESSES': '4',
            'JAX_PROCESS_ID': '2'}


@pytest.fixture(autouse=True)
def nowhere(monkeypatch):
    """Takes away whatever the tests themselves run under."""
    for name in list(os.environ):
        if name.startswith(('SLURM_', 'OMPI_', 'PMI_', 'JAX_NUM', 'JAX_PROCESS', 'JAX_COORD',
                            'JAX_LOCAL', 'TPU_', 'KUBERNETES_', 'CUDA_VIS', 'MEGASCALE',
                            'JOB_COMPLETION')):
            monkeypatch.delenv(name)


@pytest.fixture
def environment(monkeypatch):
    """Returns a function that sets environment variables."""
    def set_all(variables):
        for name, value in variables.items():
            monkeypatch.setenv(name, value)
    return set_all


def find(**fields):
    """Coordinator, processes, process, local devices and method for JAX; None: on its own."""
    place = find_place(DistributedConfig(**fields))
    return place and tuple(place[name] for name in (
        'coordinator_address', 'num_processes', 'process_id', 'local_device_ids',
        'cluster_detection_method'))


def test_a_process_on_its_own_has_no_place():
    assert find() is None


@pytest.mark.parametrize('settings', [
    {'coordinator': 'head:1234', 'processes': 4, 'process': 2}, None])
def test_explicit_settings(environment, settings):
    if settings is None:
        environment(EXPLICIT)
    assert find(**(settings or {})) == ('head:1234', 4, 2, None, 'deactivate')


def test_the_config_comes_before_the_environment(environment):
    environment(EXPLICIT | {'JAX_LOCAL_DEVICE_IDS': '2,3'})
    assert find(coordinator='[::1]:99', process=3) == ('[::1]:99', 4, 3, (2, 3), 'deactivate')


def test_one_process_is_no_run_of_several(environment):
    environment(EXPLICIT | {'JAX_NUM_PROCESSES': '1', 'JAX_PROCESS_ID': '0'})
    assert find() is None
    environment({'JAX_NUM_PROCESSES': '', **SLURM, 'SLURM_NTASKS': '1', 'SLURM_PROCID': '0'})
    assert find(cluster='slurm') is None
    # Four steps of one process each that are told of each other are a run of four.
    assert find(processes=4, process=1)[:3] == ('head:1234', 4, 1)


def test_none_ignores_everything(environment):
    environment(SLURM | EXPLICIT)
    assert find(cluster='none') is None


@pytest.mark.parametrize('variables', [SLURM, OPEN_MPI_4])
def test_jax_finds_out_what_slurm_and_open_mpi_say(environment, variables):
    environment(variables)
    assert find() == (None, None, None, None, None)
    assert find(local_devices=(1,), cluster='slurm') == (None, None, None, (1,), 'slurm')


def test_an_allocation_without_srun_is_one_process(environment):
    environment({k: v for k, v in SLURM.items() if k != 'SLURM_STEP_NODELIST'})
    assert find() is None


@pytest.mark.parametrize('variables', [
    {'OMPI_COMM_WORLD_SIZE': '4', 'OMPI_COMM_WORLD_RANK': '2'},
    {'PMI_SIZE': '4', 'PMI_RANK': '2'}, SLURM,
    {'JAX_NUM_PROCESSES': '4', 'JOB_COMPLETION_INDEX': '2'}])
def test_with_a_coordinator_launchers_say_the_rest(environment, variables):
    environment({'JAX_COORDINATOR_ADDRESS': 'head:1234', **variables})
    assert find() == ('head:1234', 4, 2, None, 'deactivate')


def test_a_pod_is_on_its_own(environment):
    environment({'KUBERNETES_SERVICE_HOST': '10.0.0.1'})
    assert find() is None


@pytest.mark.parametrize('values,message', [
    ({'cluster': 'lsf'}, 'config: cluster: must be'),
    ({'coordinator': 'head'}, "config: coordinator: expected HOST:PORT, got 'head'"),
    ({'coordinator': 'head:99999'}, 'config: coordinator: expected HOST:PORT'),
    ({'processes': -1}, 'config: processes: must be at least 0'),
    ({'process': -2}, 'config: process: must be at least -1'),
    ({'heartbeat_s': 1}, 'config: heartbeat_s: must be at least 2'),
    ({'start_timeout_s': 0}, 'config: start_timeout_s: must be at least 1'),
    ({'local_devices': (-1,)}, 'config: local_devices: must not be negative'),
    ({'heartbeat_s': 'soon'}, 'config.heartbeat_s: expected int')])
def test_fields_that_cannot_work_are_refused(values, message):
    with pytest.raises(ConfigError) as error:
        parse(DistributedConfig, values)
    assert str(error.value).startswith(message)


@pytest.mark.parametrize('variables,message', [
    ({'JAX_NUM_PROCESSES': '4', 'JAX_PROCESS_ID': '1'}, 'JAX_COORDINATOR_ADDRESS'),
    ({'JAX_COORDINATOR_ADDRESS': 'head:1', 'JAX_PROCESS_ID': '1'}, 'JAX_NUM_PROCESSES'),
    ({'JAX_COORDINATOR_ADDRESS': 'head:1', 'JAX_NUM_PROCESSES': '4'}, 'JAX_PROCESS_ID'),
    (EXPLICIT | {'JAX_PROCESS_ID': '4'}, 'process: must be below the number of processes, 4'),
    (EXPLICIT | {'JAX_PROCESS_ID': 'two'}, 'JAX_PROCESS_ID: expected a whole number'),
    (EXPLICIT | {'JAX_NUM_PROCESSES': '0'}, 'JAX_NUM_PROCESSES: expected a whole number from 1'),
    (EXPLICIT | {'JAX_COORDINATOR_ADDRESS': 'head'}, 'JAX_COORDINATOR_ADDRESS: expected HOST'),
    (EXPLICIT | {'JAX_LOCAL_DEVICE_IDS': '1;2'}, 'JAX_LOCAL_DEVICE_IDS: expected numbers'),
    (SLURM | {'SLURM_NTASKS': 'many'}, 'SLURM_NTASKS: expected a whole number')])
def test_variables_that_cannot_work_are_refused(environment, variables, message):
    environment(variables)
    with pytest.raises(SystemExit, match=message), processes(DistributedConfig()):
        pass
