"""Judges: by rule, and by a model behind a real HTTP server on loopback."""

import dataclasses
import json
import threading
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from vrag_jax.rewards.judge import (
    JudgeError,
    JudgeRequest,
    OpenAIJudge,
    OpenAIJudgeConfig,
    RuleJudge,
)
from vrag_jax.rewards.verdicts import JudgePrompt, VerdictPattern

RIGHT = JudgeRequest('What colour?', 'Red.', ('red',))
WRONG = JudgeRequest('What colour?', 'blue', ('red',))
MISSING = JudgeRequest('What colour?', None, ('red',))


def score(judge, requests):
    return [judgement.score for judgement in judge.judge(requests)]


def test_rule_judge_is_exact_match():
    judge = RuleJudge()
    assert score(judge, [RIGHT, WRONG, MISSING]) == [1.0, 0.0, 0.0]
    assert judge.name == 'rule: exact'


@pytest.mark.parametrize('rule, scores', [
    ('exact', [0.0, 0.0, 0.0]), ('contains', [1.0, 0.0, 0.0]),
    ('anls', [0.0, pytest.approx(2 / 3), 0.0])])
def test_rules_differ_on_sentences_and_near_misses(rule, scores):
    sentence = JudgeRequest('What colour is it?', 'The colour is red.', ('red',))
    assert score(RuleJudge(rule), [sentence, dataclasses.replace(RIGHT, answer='rad'),
                                   MISSING]) == scores


def test_a_rule_that_does_not_exist():
    with pytest.raises(ValueError, match="rule must be one of .*'contains'.*, got 'fuzzy'"):
        RuleJudge('fuzzy')


class FakeServer:
    """A chat completions server whose replies a test decides.

    `reply(prompt, attempt)` returns a status and a body; a str body that is no
    JSON is sent as it is.
    """

    def __init__(self):
        self.reply: Callable[[str, int], tuple[int, object]] = lambda prompt, attempt: (
            200, completion('CORRECT'))
        self.received: list[tuple[str, dict, dict]] = []
        self.most_at_once = 0
        self._at_once = 0
        self._lock = threading.Lock()
        self._server = ThreadingHTTPServer(('127.0.0.1', 0), self._handler())
        self.url = f'http://127.0.0.1:{self._server.server_port}'
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,))
        self._thread.start()

    def close(self):
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def answer(self, path: str, headers: dict, body: dict) -> tuple[int, object]:
        prompt = body['messages'][0]['content']
        with self._lock:
            attempt = sum(b['messages'][0]['content'] == prompt for _, _, b in self.received)
            self.received.append((path, headers, body))
            self._at_once += 1
            self.most_at_once = max(self.most_at_once, self._at_once)
        try:
            return self.reply(prompt, attempt)
        finally:
            with self._lock:
                self._at_once -= 1

    def _handler(fake):
        class Handler(BaseHTTPRequestHandler):
            def do_POST(self):
                body = json.loads(self.rfile.read(int(self.headers['Content-Length'])))
                status, reply = fake.answer(self.path, dict(self.headers), body)
                data = (reply if isinstance(reply, str) else json.dumps(reply)).encode()
                self.send_response(status)
                self.send_header('Content-Length', str(len(data)))
                self.end_headers()
                try:
                    self.wfile.write(data)
                except OSError:
                    pass  # the client has given up waiting

            def log_message(self, *args):
                pass

        return Handler


def completion(content) -> dict:
    return {'choices': [{'message': {'role': 'assistant', 'content': content}}]}


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setenv('NO_PROXY', '127.0.0.1')
    fake = FakeServer()
    yield fake
    fake.close()


@pytest.fixture
def make_judge(server):
    judges = []

    def make(**changes) -> OpenAIJudge:
        settings = dict(base_url=server.url, model='grader', attempts=3, backoff_s=0.01,
                        timeout_s=5.0, concurrency=4) | changes
        judges.append(OpenAIJudge(OpenAIJudgeConfig(**settings)))
        return judges[-1]

    yield make
    for judge in judges:
        judge.close()


def test_request_is_openai_compatible_and_carries_the_key(server, make_judge, monkeypatch):
    monkeypatch.setenv('GRADER_KEY', 'secret')
    judge = make_judge(api_key_env='GRADER_KEY', base_url=server.url + '/')
    assert score(judge, [JudgeRequest('Q {x}?', 'an answer', ('one', 'two'))]) == [1.0]
    (path, headers, body), = server.received
    assert path == '/v1/chat/completions'
    assert headers['Authorization'] == 'Bearer secret'
    assert body['model'] == 'grader' and body['messages'][0]['role'] == 'user'
    for part in ('Q {x}?', 'an answer', 'one; two'):
        assert part in body['messages'][0]['content']


@pytest.mark.parametrize('content, expected', [
    ('CORRECT', 1.0), ('INCORRECT', 0.0), ('incorrect.', 0.0), ('**Correct**', 1.0),
    ('<think>It may look incorrect, but</think>CORRECT', 1.0),
    ('The answer is not correct.', 0.0)])
def test_verdicts(server, make_judge, content, expected):
    server.reply = lambda prompt, attempt: (200, completion(content))
    judge = make_judge()
    assert score(judge, [WRONG]) == [expected]
    assert judge.counts.judged == 1 and judge.counts.failures == 0


def test_batch_keeps_its_order_and_missing_answers_cost_nothing(server, make_judge):
    server.reply = lambda prompt, attempt: (
        200, completion('CORRECT' if 'answer 3' in prompt else 'INCORRECT'))
    requests = [JudgeRequest('Q', f'answer {i}', ('r',)) for i in range(5)] + [MISSING]
    assert score(make_judge(), requests) == [0.0, 0.0, 0.0, 1.0, 0.0, 0.0]
    assert len(server.received) == 5


def test_equal_requests_are_sent_once(server, make_judge):
    judge = make_judge()
    assert score(judge, [RIGHT, WRONG, RIGHT]) == [1.0, 1.0, 1.0]
    assert score(judge, [WRONG]) == [1.0]
    assert len(server.received) == 2
    assert (judge.counts.judged, judge.counts.cached) == (2, 2)


def test_requests_run_beside_each_other_within_the_bound(server, make_judge):
    def slow(prompt, attempt):
        time.sleep(0.1)
        return 200, completion('CORRECT')

    server.reply = slow
    score(make_judge(concurrency=3), [JudgeRequest('Q', str(i), ()) for i in range(9)])
    assert 2 <= server.most_at_once <= 3


@pytest.mark.parametrize('bad', [
    (500, 'oops'), (429, 'slow down'), (200, 'no json'), (200, {'choices': []}), (200, []),
    (200, completion(None)), (200, completion('Maybe?'))])
def test_a_passing_fault_is_retried(server, make_judge, bad):
    server.reply = lambda prompt, attempt: bad if attempt < 2 else (200, completion('INCORRECT'))
    judge = make_judge()
    assert score(judge, [RIGHT]) == [0.0]
    assert (judge.counts.judged, judge.counts.retries, judge.counts.failures) == (1, 2, 0)


def test_a_lasting_fault_ends_in_the_rule_is_counted_and_not_kept(server, make_judge, caplog):
    server.reply = lambda prompt, attempt: (503, 'down')
    judge = make_judge()
    assert score(judge, [RIGHT, WRONG]) == [1.0, 0.0]
    assert len(server.received) == 6
    assert (judge.counts.judged, judge.counts.retries, judge.counts.failures) == (0, 4, 2)
    assert 'falling back to rule: exact' in caplog.text and '503' in caplog.text
    server.reply = lambda prompt, attempt: (200, completion('INCORRECT'))
    assert score(judge, [RIGHT]) == [0.0]


def test_a_slow_server_times_out(server, make_judge):
    def slow(prompt, attempt):
        time.sleep(0.5)
        return 200, completion('INCORRECT')

    server.reply = slow
    judge = make_judge(timeout_s=0.05, attempts=2)
    assert score(judge, [RIGHT]) == [1.0]
    assert (judge.counts.retries, judge.counts.failures) == (1, 1)


def test_no_server_at_all(make_judge):
    judge = make_judge(base_url='http://127.0.0.1:1', attempts=2)
    assert score(judge, [RIGHT]) == [1.0]
    assert judge.counts.failures == 1


def test_delays_double_up_to_the_greatest(server, make_judge, monkeypatch):
    delays = []
    monkeypatch.setattr(time, 'sleep', delays.append)
    server.reply = lambda prompt, attempt: (500, '')
    score(make_judge(attempts=6, backoff_s=1.0, max_backoff_s=5.0), [RIGHT])
    assert [delay for delay in delays if delay >= 1] == [1.0, 2.0, 4.0, 5.0, 5.0]


def test_a_refused_answer_is_not_sent_again(server, make_judge):
    server.reply = lambda prompt, attempt: (400, 'content filter')
    judge = make_judge()
    assert score(judge, [WRONG]) == [0.0]
    assert len(server.received) == 1 and judge.counts.failures == 1


@pytest.mark.parametrize('status', [401, 403, 404])
def test_a_wrong_key_path_or_model_is_an_error(server, make_judge, status):
    server.reply = lambda prompt, attempt: (status, 'no')
    with pytest.raises(JudgeError, match=f"answered {status} for model 'grader'"):
        score(make_judge(), [RIGHT])
    assert len(server.received) == 1


def test_failures_are_marked_and_scored_by_the_rule_that_was_chosen(server, make_judge):
    server.reply = lambda prompt, attempt: (503, 'down')
    judge = make_judge(rule='contains', attempts=1)
    sentence = dataclasses.replace(RIGHT, answer='The colour is red.')
    assert judge.judge([sentence, WRONG, MISSING]) == [(1.0, True), (0.0, True), (0.0, False)]


def test_what_is_asked_and_how_it_is_read_can_be_chosen(server, make_judge):
    server.reply = lambda prompt, attempt: (
        200, completion('score: 0 ... score: 1' if '<red {answer}>' in prompt else 'score: 0'))
    judge = make_judge(
        prompt=JudgePrompt('Is <{answer}> {references}? {"json": 1} {question}'),
        verdict=VerdictPattern('score: 1', 'score: 0'))
    asked = JudgeRequest('Q {answer}', 'red {answer}', ('red', 'reddish'))
    assert score(judge, [asked, WRONG]) == [1.0, 0.0]
    assert {body['messages'][0]['content'] for _, _, body in server.received} == {
        'Is <red {answer}> red; reddish? {"json": 1} Q {answer}',
        'Is <blue> red? {"json": 1} What colour?'}


def test_the_name_says_which_model_where_and_no_password(make_judge):
    judge = make_judge(base_url='http://me:secret@host:8000/x')
    assert judge.name == 'model: grader at http://host:8000/x'


def test_a_trial_shows_a_judge_that_cannot_be_asked_or_read(server, make_judge, caplog):
    make_judge().check()
    assert not caplog.records
    server.reply = lambda prompt, attempt: (200, completion('INCORRECT'))
    make_judge().check()
    assert 'calls Paris a wrong answer' in caplog.text
    server.reply = lambda prompt, attempt: (200, completion('Yes, it is.'))
    with pytest.raises(JudgeError, match='no verdict on a trial answer: .*Yes, it is'):
        make_judge().check()
    with pytest.raises(JudgeError, match='no verdict on a trial answer: .*refused'):
        make_judge(base_url='http://127.0.0.1:1', attempts=1).check()


def test_a_missing_key_is_an_error_before_anything_is_sent(make_judge, monkeypatch):
    monkeypatch.delenv('GRADER_KEY', raising=False)
    with pytest.raises(JudgeError, match='GRADER_KEY is not set'):
        make_judge(api_key_env='GRADER_KEY')


@pytest.mark.parametrize('changes, name', [
    ({'base_url': 'localhost:8000'}, 'base_url'), ({'model': ''}, 'model'),
    ({'attempts': 0}, 'attempts'), ({'timeout_s': 0}, 'timeout_s'),
    ({'concurrency': 0}, 'concurrency'), ({'backoff_s': 60.0}, 'backoff_s')])
def test_config_that_cannot_work(changes, name):
    with pytest.raises(ValueError, match=name):
        OpenAIJudgeConfig(**({'base_url': 'http://h', 'model': 'm'} | changes))
