"""Real runs of several processes: what they tell each other, and how they end together."""

import json
import re

import pytest

from tests.parallel.processes import Processes
from vrag_jax.parallel import distributed, processes
from vrag_jax.parallel.cluster import DistributedConfig

pytestmark = pytest.mark.alone

TALK = """
import dataclasses, json, os, jax, numpy as np
from vrag_jax.parallel import distributed, processes
from vrag_jax.parallel.cluster import DistributedConfig

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

with distributed.processes(DistributedConfig(start_timeout_s=60)) as place:
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
        'place': dataclasses.astuple(place), 'main': distributed.is_main(),
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
    assert [s['place'][1:3] for s in said] == [[2, 0], [2, 1]]
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
    expected = ['RuntimeError',
                "the processes are not in step: process 0: 'load'; process 1: 'save'"]
    assert [s['out of step'] for s in said] == [expected] * 2
    assert [s['in step again'] for s in said] == [None, None]


def test_a_good_end_is_silent(talk):
    ended, _ = talk
    assert [e.stderr for e in ended.values()] == ['', '']


# On event: work on the host, or steps over all devices, for ever.
LOOP = """
import os, sys, time, jax, numpy as np
from vrag_jax.parallel import distributed
from vrag_jax.parallel.cluster import DistributedConfig

work, event = os.environ['WORK'], os.environ.get('EVENT')
config = DistributedConfig(heartbeat_s=int(os.environ['HEARTBEAT_S']), start_timeout_s=60)
with distributed.processes(config) as place:
    mesh = jax.make_mesh((jax.device_count(),), ('x',))
    sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec('x'))
    step = jax.jit(lambda x: x + 0 * x.sum(), out_shardings=sharding)
    x = jax.make_array_from_callback((mesh.size,), sharding, lambda index: np.ones(1))
    for i in range(10**9):
        x = step(x)
        x.block_until_ready()
        if i == 3:
            print('READY', flush=True)
        if i == 10 and place.process == 1 and event == 'exception':
            raise KeyError('no such page')
        if i == 10 and place.process == 0 and event == 'exit':
            sys.exit('config.seed: wrong')
        if i == 10 and work == 'host':
            time.sleep(1000)
        if i == 10 and work == 'barrier':
            if place.process == int(os.environ['VICTIM']):
                time.sleep(1000)
            distributed.barrier('the other is still away')
print('never here')
"""
HEARTBEAT_S = 5
KILLS = {f'{work}, process {victim}': (work, victim)
         for work in ('host', 'devices', 'barrier') for victim in (0, 1)}
FAILURES = {f'{event}, {work}': (work, event)
            for event in ('exception', 'exit') for work in ('host', 'devices')}


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
    """Runs of which one process ended by itself."""
    folder = tmp_path_factory.mktemp('failed')
    runs = {name: start(folder, name, work, event) for name, (work, event) in FAILURES.items()}
    return {name: run.wait() for name, run in runs.items()}


@pytest.mark.parametrize('name', KILLS)
def test_a_killed_process_ends_the_other_and_is_named(killed, name):
    _, victim = KILLS[name]
    survivor = killed[name][1 - victim]
    assert killed[name][victim].status == -9
    assert survivor.status == 1, survivor.stderr
    assert survivor.after < HEARTBEAT_S + 10
    # JAX, which hears of it at the same time, may say so in many lines before it or after it.
    assert re.search(rf'process {victim} \([^)]*\) died: .*; process {1 - victim} \(.* ends too\n',
                     survivor.stderr), survivor.stderr
    assert 'never here' not in survivor.stdout


@pytest.mark.parametrize('name', FAILURES)
def test_a_process_that_fails_ends_the_other_and_says_why(failed, name):
    _, event = FAILURES[name]
    culprit, reason = {'exception': (1, "KeyError: 'no such page'"),
                       'exit': (0, 'config.seed: wrong')}[event]
    at_fault, other = failed[name][culprit], failed[name][1 - culprit]
    assert (at_fault.status, other.status) == (1, 1)
    assert ('Traceback' in at_fault.stderr) == (event == 'exception')
    line = other.stderr.splitlines()[-1]
    assert line.startswith(f'process {culprit} (') and f') failed: {reason}; ' in line
    assert at_fault.stderr.splitlines()[-1].endswith(f') failed: {reason}')


def test_with_three_processes_the_failed_one_is_named_not_one_that_followed(tmp_path):
    ended = start(tmp_path, 'three', 'devices', 'exception', count=3).wait()
    assert [e.status for e in ended.values()] == [1, 1, 1]
    for process in (0, 2):
        assert ') failed: KeyError: ' in ended[process].stderr
        assert ended[process].stderr.splitlines()[-1].startswith('process 1 (')


@pytest.mark.parametrize('process,reason', [(0, 'not all 2 processes have come to 127.0.0.1:'),
                                            (1, 'process 0 at 127.0.0.1:')])
def test_a_process_that_never_comes_is_missed(tmp_path, process, reason):
    program = LOOP.replace('start_timeout_s=60', 'start_timeout_s=2')
    ended = Processes(tmp_path, program, environment={'WORK': 'host', 'HEARTBEAT_S': '5'},
                      started=(process,)).wait()[process]
    assert ended.status == 1
    expected = f'process {process} of 2 (explicit settings): after 2 s {reason}'
    assert ended.stderr.splitlines()[-1].startswith(expected)


def test_one_process_does_without(monkeypatch):
    for name in ('JAX_COORDINATOR_ADDRESS', 'JAX_NUM_PROCESSES', 'JAX_PROCESS_ID'):
        monkeypatch.delenv(name, raising=False)
    value = {'a': 1}
    with distributed.processes(DistributedConfig()) as place:
        assert place is None
        assert distributed.is_main()
        distributed.barrier('here')
        processes.agree('anything', 'a word')
        [same] = processes.exchange(value)
        assert same is value
    with pytest.raises(KeyError, match='inside'), distributed.processes(DistributedConfig()):
        raise KeyError('inside')
