"""Judging by a model behind a real HTTP server on loopback, and the judge's config."""

import dataclasses
import json
import threading
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from tests.rewards.test_judge import MISSING, RIGHT, WRONG, score
from vrag_jax.config import ConfigError, parse
from vrag_jax.rewards.judge import JudgeError, JudgeRequest, RuleJudge
from vrag_jax.rewards.model_judge import JudgeConfig, OpenAIJudge, open_judge
from vrag_jax.run.run_config import RunConfig


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
        judges.append(OpenAIJudge(JudgeConfig(**settings)))
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
    assert make_judge().judge([WRONG]) == [(expected, False)]


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
    assert make_judge().judge([RIGHT]) == [(0.0, False)]
    assert len(server.received) == 3


def test_a_lasting_fault_ends_in_the_rule_and_is_not_kept(server, make_judge, caplog):
    server.reply = lambda prompt, attempt: (503, 'down')
    judge = make_judge()
    assert judge.judge([RIGHT, WRONG]) == [(1.0, True), (0.0, True)]
    assert len(server.received) == 6
    assert 'falling back to rule: exact' in caplog.text and '503' in caplog.text
    server.reply = lambda prompt, attempt: (200, completion('INCORRECT'))
    assert score(judge, [RIGHT]) == [0.0]


def test_a_slow_server_times_out(server, make_judge):
    def slow(prompt, attempt):
        time.sleep(0.5)
        return 200, completion('INCORRECT')

    server.reply = slow
    judge = make_judge(timeout_s=0.05, attempts=2)
    assert judge.judge([RIGHT]) == [(1.0, True)]
    assert len(server.received) == 2


def test_no_server_at_all(make_judge):
    judge = make_judge(base_url='http://127.0.0.1:1', attempts=2)
    assert judge.judge([RIGHT]) == [(1.0, True)]


def test_delays_double_up_to_the_greatest(server, make_judge, monkeypatch):
    delays = []
    monkeypatch.setattr(time, 'sleep', delays.append)
    server.reply = lambda prompt, attempt: (500, '')
    score(make_judge(attempts=6, backoff_s=1.0, max_backoff_s=5.0), [RIGHT])
    assert [delay for delay in delays if delay >= 1] == [1.0, 2.0, 4.0, 5.0, 5.0]


def test_a_refused_answer_is_not_sent_again(server, make_judge):
    server.reply = lambda prompt, attempt: (400, 'content filter')
    judge = make_judge()
    assert judge.judge([WRONG]) == [(0.0, True)]
    assert len(server.received) == 1


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
        prompt='Is <{answer}> {references}? {"json": 1} {question}',
        correct='score: 1', incorrect='score: 0')
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


MODEL = {'base_url': 'http://127.0.0.1:1', 'model': 'm'}


def config_of(**judge):
    return parse(RunConfig, {'task': 'evaluate', 'judge': judge}).judge


def test_a_config_without_a_server_judges_by_its_rule():
    judge = open_judge(config_of(rule='contains'))
    assert isinstance(judge, RuleJudge) and judge.rule == 'contains'


def test_a_model_that_cannot_be_asked_ends_the_run_at_its_start():
    with pytest.raises(JudgeError, match='config.judge: model: m at http://127.0.0.1:1 gave no'):
        open_judge(config_of(**MODEL, attempts=1))


def test_the_prompt_may_stand_in_a_file(server, make_judge, tmp_path):
    file = tmp_path / 'prompt.txt'
    file.write_text('Ist {answer} gleich {references}?', encoding='utf-8')
    score(make_judge(prompt_file=str(file)), [WRONG])
    assert server.received[0][2]['messages'][0]['content'] == 'Ist blue gleich red?'
    score(make_judge(), [WRONG])
    assert 'CORRECT or INCORRECT' in server.received[1][2]['messages'][0]['content']


@pytest.mark.parametrize('judge, message', [
    ({'rule': 'fuzzy'}, "rule must be one of .*'anls'"),
    ({'model': 'm'}, 'model is for a judge model: give its base_url'),
    ({'prompt': '{answer} {references}'}, 'prompt is for a judge model'),
    ({'correct': 'a', 'incorrect': 'b'}, 'correct is for a judge model'),
    (MODEL | {'base_url': 'localhost:8000'}, 'base_url must start with http'),
    ({'base_url': 'http://h'}, 'model must be given'),
    (MODEL | {'attempts': 0}, 'attempts must be positive'),
    (MODEL | {'timeout_s': 0.0}, 'timeout_s must be positive'),
    (MODEL | {'concurrency': 0}, 'concurrency must be positive'),
    (MODEL | {'backoff_s': 60.0}, 'backoff_s <= max_backoff_s'),
    (MODEL | {'prompt': 'x {answer}'}, r'prompt: does not hold \{references\}'),
    (MODEL | {'prompt_file': 'none.txt'}, 'prompt_file: none.txt cannot be read'),
    (MODEL | {'prompt': 'x', 'prompt_file': 'y'}, 'give one of them'),
    (MODEL | {'correct': '('}, 'give both or neither'),
    (MODEL | {'correct': '(', 'incorrect': 'b'}, 'correct: not a regular expression')])
def test_settings_that_cannot_work(judge, message):
    with pytest.raises(ConfigError, match='^config.judge: .*' + message):
        config_of(**judge)
