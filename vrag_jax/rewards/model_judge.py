"""Answers judged by a language model behind an OpenAI-compatible server."""

import dataclasses
import logging
import os
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import urlsplit

import httpx

from vrag_jax.rewards.judge import AnswerJudge, JudgeError, Judgement, JudgeRequest, RuleJudge
from vrag_jax.rewards.verdicts import PROMPT, JudgePrompt, VerdictPattern

_LOG = logging.getLogger(__name__)

# Answers to a request that a later attempt may not get.
_TRANSIENT_STATUS = frozenset({408, 409, 425, 429})
# Answers that every request will get: the configuration is wrong.
_MISCONFIGURED_STATUS = frozenset({401, 403, 404})


@dataclasses.dataclass(frozen=True)
class JudgeConfig:
    """Who judges answers: a model behind an OpenAI-compatible server, or a rule.

    Attributes:
      base_url: of the server, up to and without '/v1'; '' judges by the rule.
      model: name of the judge model.
      rule: 'exact', the answer equals a reference after normalisation; 'contains', it may say
        so in a sentence of the question's words and few others; 'anls', a score in [0, 1] by
        edit distance. Also scores answers on which the model gives no verdict.
      prompt: what the model is asked, with `{question}`, `{references}` and `{answer}`; ''
        takes `rewards.verdicts.PROMPT`.
      prompt_file: a text file with the prompt, instead of `prompt`.
      correct, incorrect: regular expressions of the verdicts in the model's reply, of which the
        last counts; '' for both reads CORRECT and INCORRECT, and their negations.
      api_key_env: environment variable that holds the key; '' sends none.
      timeout_s: seconds to wait for a connection and for each part of a reply.
      attempts: most times that one answer is sent.
      backoff_s: seconds before the second attempt; doubled for each further one.
      max_backoff_s: most seconds between two attempts.
      concurrency: answers judged at the same time.
    """

    base_url: str = ''
    model: str = ''
    rule: str = 'exact'
    prompt: str = ''
    prompt_file: str = ''
    correct: str = ''
    incorrect: str = ''
    api_key_env: str = ''
    timeout_s: float = 60.0
    attempts: int = 4
    backoff_s: float = 1.0
    max_backoff_s: float = 30.0
    concurrency: int = 16

    def __post_init__(self):
        RuleJudge(self.rule)
        for name in ('timeout_s', 'attempts', 'concurrency'):
            if getattr(self, name) <= 0:
                raise ValueError(f'{name} must be positive, got {getattr(self, name)}')
        if not 0 <= self.backoff_s <= self.max_backoff_s:
            raise ValueError(f'need 0 <= backoff_s <= max_backoff_s, got {self.backoff_s} and '
                             f'{self.max_backoff_s}')
        if not self.base_url:
            for name in ('model', 'prompt', 'prompt_file', 'correct', 'incorrect', 'api_key_env'):
                if getattr(self, name):
                    raise ValueError(f'{name} is for a judge model: give its base_url, too')
            return
        if not self.base_url.startswith(('http://', 'https://')):
            raise ValueError(f'base_url must start with http:// or https://, '
                             f'got {self.base_url!r}')
        if not self.model:
            raise ValueError('model must be given')
        self.read_prompt()
        VerdictPattern(self.correct, self.incorrect)

    def read_prompt(self) -> JudgePrompt:
        """Returns what the model is asked; raises ValueError where that cannot work."""
        if not self.prompt_file:
            return JudgePrompt(self.prompt or PROMPT)
        if self.prompt:
            raise ValueError('prompt and prompt_file: give one of them')
        try:
            return JudgePrompt(Path(self.prompt_file).read_text(encoding='utf-8'))
        except (OSError, UnicodeDecodeError) as error:
            raise ValueError(f'prompt_file: {self.prompt_file} cannot be read: {error}') from error


def open_judge(config: JudgeConfig) -> AnswerJudge:
    """Returns the judge that a config describes.

    Raises:
      JudgeError: if it is a model that cannot be asked, or gives no verdict.
    """
    if not config.base_url:
        return RuleJudge(config.rule)
    judge = OpenAIJudge(config)
    judge.check()
    return judge


class OpenAIJudge:
    """Asks a model behind an OpenAI-compatible `/v1/chat/completions`.

    A verdict is kept, so that equal answers of a group cost one request. An
    answer that gets no verdict within the allowed attempts is scored by the rule,
    not kept, marked and logged: training goes on.

    Args:
      config: where and how.

    Raises:
      JudgeError: if the environment variable of the key is not set.
    """

    def __init__(self, config: JudgeConfig):
        headers = {}
        if config.api_key_env:
            key = os.environ.get(config.api_key_env)
            if not key:
                raise JudgeError(f'config.judge.api_key_env: the environment variable '
                                 f'{config.api_key_env} is not set')
            headers['Authorization'] = f'Bearer {key}'
        self.config = config
        self._prompt = config.read_prompt()
        self._pattern = VerdictPattern(config.correct, config.incorrect)
        self._client = httpx.Client(headers=headers, timeout=config.timeout_s)
        self._pool = ThreadPoolExecutor(config.concurrency, thread_name_prefix='judge')
        self._verdicts: dict[JudgeRequest, float] = {}
        self._last_failure = ''
        self._fallback = RuleJudge(config.rule)

    @property
    def name(self) -> str:
        # Whatever the address says of a user and a password stays out of tables.
        url = urlsplit(self.config.base_url)
        host = url.netloc.rpartition('@')[2]
        return f'model: {self.config.model} at {url.scheme}://{host}{url.path}'

    def check(self) -> None:
        """Asks for the verdict on a right answer, so that what is wrong shows at once.

        Raises:
          JudgeError: if the server refuses, cannot be reached, or gives no verdict.
        """
        question = JudgeRequest('What is the capital of France?', 'Paris', ('Paris',))
        if self.judge([question])[0].failed:
            raise JudgeError(f'config.judge: {self.name} gave no verdict on a trial answer: '
                             f'{self._last_failure}')
        if not self._verdicts[question]:
            _LOG.warning('the judge, %s, calls Paris a wrong answer to %r: see that config.judge '
                         'asks and reads what it should', self.name, question.question)

    def close(self) -> None:
        """Ends the connections and threads."""
        self._pool.shutdown()
        self._client.close()

    def judge(self, requests: Sequence[JudgeRequest]) -> list[Judgement]:
        """Returns a judgement of each request, in order; without an answer the score is 0.

        Raises:
          JudgeError: if the server refuses the key, the path or the model.
        """
        new = [request for request in dict.fromkeys(requests)
               if request.answer is not None and request not in self._verdicts]
        found = dict(zip(new, self._pool.map(self._judge, new), strict=True))
        self._verdicts |= {r: verdict for r, verdict in found.items() if verdict is not None}
        failed = [request for request, verdict in found.items() if verdict is None]
        by_rule = dict(zip(failed, self._fallback.judge(failed), strict=True))
        return [
            Judgement(0.0) if request.answer is None
            else by_rule[request]._replace(failed=True) if request in by_rule
            else Judgement(self._verdicts[request])
            for request in requests
        ]

    def _judge(self, request: JudgeRequest) -> float | None:
        """Asks until there is a verdict or no attempt is left; None without one."""
        reason = ''
        for attempt in range(self.config.attempts):
            if attempt:
                delay = self.config.backoff_s * 2.0 ** (attempt - 1)
                time.sleep(min(delay, self.config.max_backoff_s))
            try:
                return self._ask(request)
            except (httpx.RequestError, _NoVerdict) as error:
                reason = f'{type(error).__name__.lstrip("_")}: {error}'
                if isinstance(error, _Refused):
                    break
        self._last_failure = reason
        _LOG.warning('judge %s gave no verdict, falling back to %s: %s',
                     self.config.model, self._fallback.name, reason)
        return None

    def _ask(self, request: JudgeRequest) -> float:
        assert request.answer is not None
        prompt = self._prompt.fill(
            request.question, '; '.join(request.references), request.answer)
        response = self._client.post(
            f'{self.config.base_url.rstrip("/")}/v1/chat/completions',
            json={'model': self.config.model, 'temperature': 0,
                  'messages': [{'role': 'user', 'content': prompt}]})
        status = response.status_code
        if status in _MISCONFIGURED_STATUS:
            raise JudgeError(f'config.judge: {response.url} answered {status} for model '
                             f'{self.config.model!r}; check base_url, model and api_key_env')
        if status != 200:
            transient = status in _TRANSIENT_STATUS or status >= 500
            raise (_NoVerdict if transient else _Refused)(f'status {status}')
        return _parse_verdict(response, self._pattern)


class _NoVerdict(Exception):
    """A reply that holds no verdict; a later attempt may bring one."""


class _Refused(_NoVerdict):
    """A reply that no later attempt will change."""


def _parse_verdict(response: httpx.Response, pattern: VerdictPattern) -> float:
    """Reads the last verdict of a reply, so that a model may think aloud first."""
    try:
        content = response.json()['choices'][0]['message']['content']
        verdict = pattern.read(content)
    except (ValueError, KeyError, IndexError, TypeError) as error:
        raise _NoVerdict(f'not a chat completion: {response.text[:200]!r}') from error
    if verdict is None:
        raise _NoVerdict(f'no verdict in {content[-200:]!r}')
    return float(verdict)
