"""Real runs of several processes: what they tell each other, and how they end together."""

import json
import signal

import pytest

from tests.parallel.processes import Processes
from vrag_jax.parallel import distributed, processes
from vrag_jax.parallel.distributed import DistributedConfig

TALK = """
import dataclasses, json, os, jax, numpy as np
from vrag_jax.parallel import distributed, processes
from vrag_jax.parallel.distributed import DistributedConfig

@dataclasses.dataclass(frozen=True)
class Part:
    name: str
    rows: np.ndarray
    sizes: tuple[int, ...]

def raised(call, *arguments):
    try:
        call(*arguments)
    except (RuntimeError, ValueError) as error:
        return type(error).__name__, str(error)

with distributed.processes(DistributedConfig(start_timeout_s=60)):
    me = jax.process_index()
    rng = np.random.default_rng(me)
    # Of unequal sizes, one of them empty.
    processes.CHUNK_BYTES = 4096
    parts = processes.exchange(Part(f'part {me}', rng.normal(size=(1000 * me, 3)), (me, 7)))
    big = rng.integers(0, 256, 100_000 + 50_000 * me, dtype=np.uint8).tobytes()
    gathered = processes.exchange(big)
    processes.agree('seed 3', 'config')
    words = [f'word {i}' for i in range(7)]
    mine = [f'{words[i]} by {me}' for i in processes.share(words, group=2)]
    merged = processes.merge_shares(mine, 7, group=2)
    mesh = jax.make_mesh((4,), ('x',))
    rows = jax.make_array_from_callback(
        (4,), jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec('x')),
        lambda index: np.arange(4.0)[index])
    print(json.dumps({
        'place': [jax.process_count(), me], 'main': distributed.is_main(),
        'devices': [jax.device_count(), jax.local_device_count()],
        'sum': float(jax.jit(lambda x: x.sum())(rows)),
        'parts': [(p.name, p.rows.shape, float(p.rows.sum()), p.sizes) for p in parts],
        'lengths': [len(g) for g in gathered], 'own': gathered[me] == big, 'merged': merged,
        'checksums': [sum(g) for g in gathered],
        'differing': raised(processes.agree, f'digest {me}', 'config'),
        'out of step': raised(distributed.barrier, ['load', 'save'][me]),
        'in step again': raised(distributed.barrier, 'end'),
    }))
"""


@pytest.fixture(scope='module')
def talk(tmp_path_factory):
    """What both processes of a run have printed, and how they ended."""
    ended = Processes(tmp_path_factory.mktemp('talk'), TALK).wait()
    assert [e.status for e in ended.values()] == [0, 0], ended
    return ended, [json.loads(ended[i].stdout.splitlines()[-1]) for i in (0, 1)]


def test_each_process_has_its_place_and_its_devices(talk):
    _, said = talk
    assert [s['place'] for s in said] == [[2, 0], [2, 1]]
    assert [s['main'] for s in said] == [True, False]
    assert [s['devices'] for s in said] == [[4, 2]] * 2


def test_programs_run_over_the_devices_of_all(talk):
    _, said = talk
    assert [s['sum'] for s in said] == [0.0 + 1 + 2 + 3] * 2


def test_all_get_the_values_of_all_in_order(talk):
    _, said = talk
    assert said[0]['parts'] == said[1]['parts']
    (name, shape, total, sizes), second = said[0]['parts']
    assert (name, shape, total, sizes) == ('part 0', [0, 3], 0.0, [0, 7])
    assert second[:2] == ['part 1', [1000, 3]] and second[3] == [1, 7]


def test_bytes_survive_in_pieces(talk):
    _, said = talk
    assert said[0]['lengths'] == said[1]['lengths'] == [100_000, 150_000]
    assert said[0]['own'] and said[1]['own']
    assert said[0]['checksums'] == said[1]['checksums']


def test_shares_are_whole_groups_and_come_back_in_order(talk):
    _, said = talk
    expected = [f'word {i} by {process}' for i, process in enumerate((0, 0, 1, 1, 0, 0, 1))]
    assert [s['merged'] for s in said] == [expected] * 2


def test_what_differs_is_refused_in_all_and_named(talk):
    _, said = talk
    expected = ['ValueError', "config differs: process 0: 'digest 0'; process 1: 'digest 1'"]
    assert [s['differing'] for s in said] == [expected] * 2


def test_processes_at_different_places_are_told_so(talk):
    _, said = talk
    assert [s['out of step'] for s in said] == [
        ['RuntimeError', f"the processes are not in step; this one is at '{place}'"]
        for place in ('load', 'save')]
    assert [s['in step again'] for s in said] == [None, None]


def test_a_good_end_is_silent(talk):
    ended, _ = talk
    assert [e.stderr for e in ended.values()] == ['', '']


# On event: work on the host, or steps over all devices, for ever.
LOOP = """
import os, sys, time, jax, numpy as np
from vrag_jax.parallel import distributed
from vrag_jax.parallel.distributed import DistributedConfig

work, event, victim = os.environ['WORK'], os.environ['EVENT'], int(os.environ['VICTIM'])
config = DistributedConfig(heartbeat_s=int(os.environ['HEARTBEAT_S']), start_timeout_s=60)
with distributed.processes(config):
    mesh = jax.make_mesh((jax.device_count(),), ('x',))
    sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec('x'))
    step = jax.jit(lambda x: x + 0 * x.sum(), out_shardings=sharding)
    x = jax.make_array_from_callback((mesh.size,), sharding, lambda index: np.ones(1))
    for i in range(10**9):
        x = step(x)
        x.block_until_ready()
        if i == 3:
            print('READY', flush=True)
        if i == 10 and event == 'exit':
            sys.exit('config.seed: wrong')
        if i == 10 and jax.process_index() == victim:
            if event == 'exception':
                raise KeyError('no such page')
            if work == 'barrier':
                time.sleep(1000)
        if i == 10 and work == 'host':
            time.sleep(1000)
        if i == 10 and work == 'barrier':
            distributed.barrier('the other is still away')
print('never here')
"""
HEARTBEAT_S = 4
KILLS = {f'{work}, process {victim}': (work, victim)
         for work in ('host', 'devices', 'barrier') for victim in (0, 1)}
FAILURES = {f'{work}, process {victim}': (work, victim)
            for work in ('host', 'devices') for victim in (0, 1)}


def start(folder, name, work, event='', count=2, victim=-1):
    return Processes(folder / name, LOOP, count, {
        'WORK': work, 'EVENT': event, 'HEARTBEAT_S': str(HEARTBEAT_S), 'VICTIM': str(victim)})


@pytest.fixture(scope='module')
def killed(tmp_path_factory):
    """Runs of which one process was killed, side by side."""
    folder = tmp_path_factory.mktemp('killed')
    runs = {name: start(folder, name, work, victim=victim)
            for name, (work, victim) in KILLS.items()}
    for name, (_, victim) in KILLS.items():
        runs[name].kill(victim)
    return {name: run.wait() for name, run in runs.items()}


@pytest.fixture(scope='module')
def failed(tmp_path_factory):
    """Runs of which one process raised an exception, side by side."""
    folder = tmp_path_factory.mktemp('failed')
    runs = {name: start(folder, name, work, 'exception', victim=victim)
            for name, (work, victim) in FAILURES.items()}
    return {name: run.wait() for name, run in runs.items()}


@pytest.mark.parametrize('name', KILLS)
def test_a_killed_process_ends_the_other(killed, name):
    _, victim = KILLS[name]
    survivor = killed[name][1 - victim]
    assert killed[name][victim].status == -signal.SIGKILL
    assert survivor.status != 0
    assert survivor.after < HEARTBEAT_S + 15
    assert 'coordination service' in survivor.stderr
    assert 'never here' not in survivor.stdout


@pytest.mark.parametrize('name', FAILURES)
def test_a_process_that_fails_says_why_and_ends_the_other(failed, name):
    _, victim = FAILURES[name]
    at_fault, other = failed[name][victim], failed[name][1 - victim]
    assert at_fault.status != 0 and other.status != 0
    assert "KeyError: 'no such page'" in at_fault.stderr
    assert "KeyError: 'no such page'" not in other.stderr
    assert 'never here' not in at_fault.stdout + other.stdout


def test_of_three_processes_none_is_left(tmp_path):
    ended = start(tmp_path, 'three', 'devices', 'exception', count=3, victim=1).wait()
    assert all(e.status != 0 for e in ended.values())
    assert ["KeyError: 'no such page'" in ended[i].stderr for i in range(3)] == [
        False, True, False]


def test_what_all_find_wrong_ends_all_with_one_line(tmp_path):
    ended = start(tmp_path, 'exit', 'host', 'exit').wait()
    assert [(e.status, e.stderr) for e in ended.values()] == [(1, 'config.seed: wrong\n')] * 2


def test_processes_that_are_told_to_end_do(tmp_path):
    run = start(tmp_path, 'terminated', 'host')
    run.send_when_ready(signal.SIGTERM, (0, 1))
    assert [e.status for e in run.wait().values()] == [-signal.SIGTERM] * 2


@pytest.mark.parametrize('process', [0, 1])
def test_a_process_that_never_comes_is_missed(tmp_path, process):
    program = LOOP.replace('start_timeout_s=60', 'start_timeout_s=2')
    ended = Processes(
        tmp_path, program, started=(process,), environment={
            'WORK': 'host', 'HEARTBEAT_S': '5', 'EVENT': '', 'VICTIM': '-1'}).wait(60)[process]
    assert ended.status != 0
    assert 'DEADLINE_EXCEEDED' in ended.stderr
    assert 'never here' not in ended.stdout


def test_one_process_does_without(monkeypatch):
    for name in ('JAX_COORDINATOR_ADDRESS', 'JAX_NUM_PROCESSES', 'JAX_PROCESS_ID'):
        monkeypatch.delenv(name, raising=False)
    value = {'a': 1}
    with distributed.processes(DistributedConfig()):
        assert distributed.is_main()
        distributed.barrier('here')
        processes.agree('anything', 'a word')
        [same] = processes.exchange(value)
        assert same is value
    with pytest.raises(KeyError, match='inside'), distributed.processes(DistributedConfig()):
        raise KeyError('inside')
