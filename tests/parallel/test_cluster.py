"""Which process of how many: explicit settings, and what SLURM, MPI, TPU VMs and GKE say."""

import http.server
import os
import threading

import pytest
from jax._src import clusters
from jax._src.clusters import cloud_tpu_cluster

from vrag_jax.config import ConfigError, parse
from vrag_jax.parallel.cluster import CLUSTERS, DistributedConfig, Place, find_place

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
                            'JAX_LOCAL', 'TPU_', 'KUBERNETES_', 'CUDA_VIS', 'MEGASCALE')):
            monkeypatch.delenv(name)


@pytest.fixture
def environment(monkeypatch):
    """Returns a function that sets environment variables."""
    def set_all(variables):
        for name, value in variables.items():
            monkeypatch.setenv(name, value)
    return set_all


def find(**fields):
    return find_place(DistributedConfig(**fields))


def test_a_process_on_its_own_has_no_place():
    assert find() is None


@pytest.mark.parametrize('settings', [
    {'coordinator': 'head:1234', 'processes': 4, 'process': 2}, None])
def test_explicit_settings(environment, settings):
    if settings is None:
        environment(EXPLICIT)
    assert find(**(settings or {})) == Place('head:1234', 4, 2, None, 'explicit settings')


def test_the_config_comes_before_the_environment(environment):
    environment(EXPLICIT | {'JAX_LOCAL_DEVICE_IDS': '2,3'})
    assert find(coordinator='[::1]:99', process=3) == Place(
        '[::1]:99', 4, 3, (2, 3), 'explicit settings')


def test_one_process_is_no_run_of_several(environment):
    environment(EXPLICIT | {'JAX_NUM_PROCESSES': '1', 'JAX_PROCESS_ID': '0'})
    assert find() is None
    environment(SLURM | {'SLURM_NTASKS': '1', 'SLURM_PROCID': '0'})
    assert find(cluster='slurm') is None


def test_none_ignores_everything(environment):
    environment(SLURM | EXPLICIT)
    assert find(cluster='none') is None


def test_slurm(environment):
    environment(SLURM)
    # The port is one of the last 4096, by the job's number; two processes share a host, so
    # each takes the device of its index there.
    assert find() == Place(f'gpu07:{65536 - 4096 + 1}', 4, 2, (0,), 'slurm')


def test_slurm_with_one_process_a_host_gives_it_all_devices(environment):
    environment(SLURM | {'SLURM_STEP_NUM_NODES': '4'})
    assert find().local_devices is None
    assert find(local_devices=(1,)).local_devices == (1,)


def test_slurm_that_binds_one_gpu_to_each_process(environment):
    environment(SLURM | {'SLURM_LOCALID': '1'})
    assert find().local_devices == (1,)
    environment({'CUDA_VISIBLE_DEVICES': '1'})
    assert find().local_devices is None


def test_an_allocation_without_srun_is_one_process(environment):
    environment({k: v for k, v in SLURM.items() if k != 'SLURM_STEP_NODELIST'})
    assert find() is None


def test_open_mpi_4(environment):
    environment(OPEN_MPI_4)
    port = 65536 - 4096 + (1531576320 // 4096) % 4096
    assert find() == Place(f'10.96.0.1:{port}', 4, 2, (0,), 'ompi')


@pytest.mark.parametrize('variables', [
    {'OMPI_COMM_WORLD_SIZE': '4', 'OMPI_COMM_WORLD_RANK': '2'},
    {'PMI_SIZE': '4', 'PMI_RANK': '2'},
    {'JAX_NUM_PROCESSES': '4', 'JOB_COMPLETION_INDEX': '2'}])
def test_other_launchers_need_only_the_coordinator(environment, variables):
    environment({'JAX_COORDINATOR_ADDRESS': 'head:1234', **variables})
    assert find() == Place('head:1234', 4, 2, None, 'explicit settings')


@pytest.fixture
def on_tpu_vm(monkeypatch):
    monkeypatch.setattr(cloud_tpu_cluster, 'running_in_cloud_tpu_vm', True)


def test_gke_with_tpus(environment, on_tpu_vm):
    environment({'TPU_SKIP_MDS_QUERY': 'true',
                 'TPU_WORKER_HOSTNAMES': 'localhost,worker-1,worker-2,worker-3',
                 'TPU_WORKER_ID': '2', 'MEGASCALE_COORDINATOR_ADDRESS': 'localhost',
                 'MEGASCALE_NUM_SLICES': '2', 'MEGASCALE_SLICE_ID': '1'})
    assert find() == Place('localhost:8482', 2 * 4, 1 * 4 + 2, None, 'gketpu')


def test_a_pod_with_one_tpu_host_is_on_its_own(environment, on_tpu_vm):
    environment({'TPU_SKIP_MDS_QUERY': 'true', 'TPU_WORKER_HOSTNAMES': 'localhost',
                 'TPU_WORKER_ID': '0', 'MEGASCALE_NUM_SLICES': '1'})
    assert find() is None


def test_tpu_vms_by_their_metadata(environment, on_tpu_vm):
    attributes = {'agent-worker-number': '2', 'tpu-env': "ACCELERATOR_TYPE: 'v5p-32'\n",
                  'worker-network-endpoints': 'localhost,10.0.0.2,10.0.0.3,10.0.0.4'}

    class Metadata(http.server.BaseHTTPRequestHandler):
        def do_GET(self):  # noqa: N802
            assert self.headers['Metadata-Flavor'] == 'Google'
            self.send_response(200)
            self.end_headers()
            self.wfile.write(attributes[self.path.rpartition('/')[2]].encode())

        def log_message(self, *_):
            pass

    with http.server.ThreadingHTTPServer(('127.0.0.1', 0), Metadata) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        environment({'GCE_METADATA_IP': f'127.0.0.1:{server.server_address[1]}'})
        assert find() == Place('localhost:8482', 4, 2, None, 'gcetpu')
        server.shutdown()


def test_without_its_metadata_a_tpu_vm_says_what_to_do(environment, on_tpu_vm):
    environment({'GCE_METADATA_IP': '127.0.0.1:1'})
    with pytest.raises(ValueError, match="whether this is 'gcetpu'; with 'none' one process"):
        find()


def test_a_pod_outside_an_indexed_job_is_on_its_own(environment, monkeypatch):
    # Where the package kubernetes is there, JAX would ask the API for a job, and raise.
    monkeypatch.setattr(clusters.K8sCluster, 'is_env_present', classmethod(lambda cls: True))
    environment({'KUBERNETES_SERVICE_HOST': '10.0.0.1'})
    assert find() is None


def test_clusters_are_those_of_jax_in_its_order():
    known = [c for c in clusters.ClusterEnv._cluster_types
             if c is not cloud_tpu_cluster.BaseTpuCluster]
    assert list(CLUSTERS.values()) == known
    assert all(name == c.name for name, c in CLUSTERS.items() if c.name)


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
    (EXPLICIT | {'JAX_LOCAL_DEVICE_IDS': '1;2'}, 'JAX_LOCAL_DEVICE_IDS: expected numbers')])
def test_variables_that_cannot_work_are_refused(environment, variables, message):
    environment(variables)
    with pytest.raises(ValueError, match=message):
        find()


def test_a_named_cluster_has_to_be_there(environment):
    with pytest.raises(ValueError, match="cluster: JAX finds no 'slurm' here"):
        find(cluster='slurm')
    environment({**SLURM, 'SLURM_NTASKS': 'many'})
    with pytest.raises(ValueError, match="cluster: JAX found 'slurm', but not all"):
        find(cluster='slurm')
