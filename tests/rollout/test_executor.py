"""Observations come back in the order that was asked for, and what fails is heard of."""

import dataclasses
import threading

import numpy as np
import pytest

from vrag_jax.actions.grammar import parse_action
from vrag_jax.rollout import environment
from vrag_jax.rollout.executor import ActionExecutor
from vrag_jax.rollout.world import ObservingConfig
from vrag_jax.sampling.scheduler import SampledTurn

SEARCH = '<think>x</think><search>{}</search>'


def ended(world, question, text):
    """An episode that has just sampled a turn."""
    episode = world.start(question)
    tokens = np.asarray(world.chat.encode(text), np.int32)
    episode.append_text(tokens, np.zeros(len(tokens)), sampled=True)
    return episode, SampledTurn(tokens, np.zeros(len(tokens)), 'action')


class Gate:
    """A search that waits until it is let through, then finds nothing."""

    def __init__(self):
        self.open = threading.Event()
        self.calls = []

    def search(self, queries, k):
        self.calls.append(list(queries))
        assert self.open.wait(20)
        return [[] for _ in queries]


@pytest.fixture
def gate():
    return Gate()


def executor(make_world, gate, **config):
    world = make_world(gate)
    world = dataclasses.replace(world, observing=ObservingConfig(**config))
    return world, ActionExecutor(world, 320)


def test_in_order_the_last_call_may_take_as_long_as_the_next(make_world, gate, questions):
    world, watcher = executor(make_world, gate)
    with watcher:
        searching = ended(world, questions[0], SEARCH.format('a'))
        cropping = ended(world, questions[1], '<think>x</think><bbox>[1, 2, 30, 40]</bbox>')
        watcher.submit([searching, cropping])
        # The crop has long been done; its call is still the last one.
        assert watcher.collect(wait=False) == [] and watcher.busy
        watcher.submit([])
        gate.open.set()
        assert set(map(id, watcher.collect(wait=False))) == {id(searching[0]), id(cropping[0])}
        assert watcher.collect(wait=False) == []
    assert len(searching[0].turns) == len(cropping[0].turns) == 1


def test_without_order_a_slow_search_holds_up_none(make_world, gate, questions):
    world, watcher = executor(make_world, gate, in_order=False)
    with watcher:
        searching = ended(world, questions[0], SEARCH.format('a'))
        cropping = ended(world, questions[1], '<think>x</think><bbox>[1, 2, 30, 40]</bbox>')
        watcher.submit([searching, cropping])
        assert watcher.collect(wait=True) == [cropping[0]]
        assert watcher.collect(wait=False) == [] and watcher.busy
        gate.open.set()
        assert watcher.collect(wait=True) == [searching[0]]
        assert not watcher.busy


def test_searches_of_a_call_go_out_together(make_world, gate, questions):
    gate.open.set()
    world, watcher = executor(make_world, gate, threads=2)
    turns = [ended(world, q, SEARCH.format(n)) for n, q in enumerate(questions[:5])]
    turns.insert(2, ended(world, questions[5], '<think>x</think><answer>1</answer>'))
    with watcher:
        watcher.submit(turns)
        assert set(map(id, watcher.collect(wait=True))) == {id(e) for e, _ in turns}
    assert [sorted(queries) for queries in gate.calls] == [['0', '1', '2', '3', '4']]
    assert turns[2][0].done and not turns[0][0].done


def test_what_searches_have_found_is_shared_by_the_threads(make_world, questions):
    """Two episodes' pages are processed at the same time, or the barrier breaks."""
    world = make_world()
    meeting = threading.Barrier(2, timeout=20)

    def preprocess(images):
        meeting.wait()
        return world.preprocess(images)

    slow = dataclasses.replace(
        world, preprocess=preprocess, observing=ObservingConfig(threads=2))
    turns = [ended(world, q, SEARCH.format(q.query)) for q in questions[:4]]
    with ActionExecutor(slow, 320) as watcher:
        watcher.submit(turns)
        assert len(watcher.collect(wait=True)) == 4
    alone = [ended(world, q, SEARCH.format(q.query)) for q in questions[:4]]
    with ActionExecutor(world, 320) as watcher:
        watcher.submit(alone)
        watcher.collect(wait=True)
    for (one, _), (other, _) in zip(turns, alone, strict=True):
        assert one.retrieved == other.retrieved != []
        np.testing.assert_array_equal(one.tail(0)[0], other.tail(0)[0])


def test_a_turn_is_parsed_once(make_world, gate, questions, monkeypatch):
    gate.open.set()
    _, watcher = executor(make_world, gate)
    texts = [SEARCH.format('a'), '<think>x</think><answer>1</answer>', 'nothing',
             '<think>is it <search>a</search>?</think><bbox>[1, 2, 30, 40]</bbox>']
    parsed = []
    monkeypatch.setattr(environment, 'parse_action', lambda text, *rest: (
        parsed.append(text), parse_action(text, *rest))[1])
    with watcher:
        watcher.submit([ended(watcher._world, q, text)
                        for q, text in zip(questions, texts, strict=False)])
        done = watcher.collect(wait=True)
    assert sorted(parsed) == sorted(texts)
    # What is said of a search in a thought is not searched for.
    assert gate.calls == [['a']] and len(done) == 4


def test_what_goes_wrong_after_a_search_is_raised(make_world, questions):
    def broken(images):
        raise MemoryError('too large') if images else AssertionError

    world = dataclasses.replace(make_world(), preprocess=broken)
    with ActionExecutor(world, 320) as watcher, pytest.raises(MemoryError, match='too large'):
        watcher.submit([ended(world, q, SEARCH.format(q.query)) for q in questions[:6]])
        watcher.collect(wait=True)


def test_what_goes_wrong_in_a_thread_is_raised(make_world, questions):
    class Broken:
        def search(self, queries, k):
            raise ConnectionError('the index is gone')

    for in_order in (True, False):
        world, watcher = executor(make_world, Broken(), in_order=in_order)
        with watcher, pytest.raises(ConnectionError, match='the index is gone'):
            watcher.submit([ended(world, questions[0], SEARCH.format('a'))])
            watcher.collect(wait=True)


def test_threads_must_be_positive():
    with pytest.raises(ValueError, match='threads'):
        ObservingConfig(threads=0)
