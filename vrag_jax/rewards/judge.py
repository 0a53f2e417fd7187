"""Who says whether an answer is right: a rule, or a language model over HTTP."""

import dataclasses
import logging
import os
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple, Protocol
from urllib.parse import urlsplit

import httpx

from vrag_jax.config import ConfigError
from vrag_jax.rewards.answer import anls, exact_match
from vrag_jax.rewards.containment import contains
from vrag_jax.rewards.registry import ScoredEpisode, reward
from vrag_jax.rewards.verdicts import JudgePrompt, VerdictPattern

_LOG = logging.getLogger(__name__)

# Answers to a request that a later attempt may not get.
_TRANSIENT_STATUS = frozenset({408, 409, 425, 429})
# Answers that every request will get: the configuration is wrong.
_MISCONFIGURED_STATUS = frozenset({401, 403, 404})


@dataclasses.dataclass(frozen=True)
class JudgeRequest:
    """An answer to be judged; `answer` is None where none was given."""

    question: str
    answer: str | None
    references: tuple[str, ...]


class Judgement(NamedTuple):
    """A score in [0, 1], and whether a judge model was to give it, but gave no verdict."""

    score: float
    failed: bool = False


class AnswerJudge(Protocol):
    """Scores answers in batches."""

    @property
    def name(self) -> str:
        """Which judge it is, as tables say."""

    def judge(self, requests: Sequence[JudgeRequest]) -> list[Judgement]:
        """Returns a judgement of each request, in order; without an answer the score is 0."""
        ...


RULES: Mapping[str, Callable[[JudgeRequest], float]] = {
    'exact': lambda request: exact_match(request.answer or '', request.references),
    'contains': lambda request: contains(
        request.answer or '', request.references, request.question),
    'anls': lambda request: anls(request.answer or '', request.references),
}
"""Scores of answers in [0, 1]; all but `contains` are told more of in `rewards.answer`."""


@reward('answer')
def answer(trajectory: ScoredEpisode) -> float:
    """The judge's score, which every trajectory gets before it is rewarded."""
    return trajectory.answer_score


class RuleJudge:
    """Compares answers with their references by a rule.

    Args:
      rule: of `RULES`.

    Raises:
      ValueError: if there is no such rule.
    """

    def __init__(self, rule: str = 'exact'):
        if rule not in RULES:
            raise ValueError(f'rule must be one of {tuple(RULES)}, got {rule!r}')
        self.rule = rule

    @property
    def name(self) -> str:
        return f'rule: {self.rule}'

    def judge(self, requests: Sequence[JudgeRequest]) -> list[Judgement]:
        """Returns a judgement of each request, in order; without an answer the score is 0."""
        rule = RULES[self.rule]
        return [Judgement(0.0 if request.answer is None else rule(request))
                for request in requests]


class JudgeError(ConfigError):
    """A judge that cannot work as configured."""


@dataclasses.dataclass(frozen=True)
class OpenAIJudgeConfig:
    """Where the judge model is and how patiently it is asked.

    Attributes:
      base_url: of an OpenAI-compatible server, up to and without '/v1'.
      model: name of the judge model.
      api_key_env: environment variable that holds the key; '' sends none.
      timeout_s: seconds to wait for a connection and for each part of a reply.
      attempts: most times that one answer is sent.
      backoff_s: seconds before the second attempt; doubled for each further one.
      max_backoff_s: most seconds between two attempts.
      concurrency: answers judged at the same time.
      rule: of `RULES`; scores answers on which there is no verdict.
      prompt: what is asked.
      verdict: how replies are read.
    """

    base_url: str
    model: str
    api_key_env: str = ''
    timeout_s: float = 60.0
    attempts: int = 4
    backoff_s: float = 1.0
    max_backoff_s: float = 30.0
    concurrency: int = 16
    rule: str = 'exact'
    prompt: JudgePrompt = JudgePrompt()
    verdict: VerdictPattern = VerdictPattern()

    def __post_init__(self):
        if not self.base_url.startswith(('http://', 'https://')):
            raise ValueError(f'base_url must start with http:// or https://, '
                             f'got {self.base_url!r}')
        if not self.model:
            raise ValueError('model must be given')
        for name in ('timeout_s', 'attempts', 'concurrency'):
            if getattr(self, name) <= 0:
                raise ValueError(f'{name} must be positive, got {getattr(self, name)}')
        if not 0 <= self.backoff_s <= self.max_backoff_s:
            raise ValueError(f'need 0 <= backoff_s <= max_backoff_s, got {self.backoff_s} and '
                             f'{self.max_backoff_s}')


@dataclasses.dataclass
class JudgeCounts:
    """What happened so far.

    Attributes:
      judged: answers that the model gave a verdict on.
      cached: answers whose verdict was known already.
      retries: attempts after a first one.
      failures: answers without a verdict after all attempts, scored by rule.
    """

    judged: int = 0
    cached: int = 0
    retries: int = 0
    failures: int = 0


class OpenAIJudge:
    """Asks a model behind an OpenAI-compatible `/v1/chat/completions`.

    A verdict is kept, so that equal answers of a group cost one request. An
    answer that gets no verdict within the allowed attempts is scored by the rule,
    not kept, counted in `counts.failures` and logged: training goes on.

    Args:
      config: where and how.

    Raises:
      JudgeError: if the environment variable of the key is not set.
    """

    def __init__(self, config: OpenAIJudgeConfig):
        headers = {}
        if config.api_key_env:
            key = os.environ.get(config.api_key_env)
            if not key:
                raise JudgeError(f'config.judge.api_key_env: the environment variable '
                                 f'{config.api_key_env} is not set')
            headers['Authorization'] = f'Bearer {key}'
        self.config = config
        self.counts = JudgeCounts()
        self._client = httpx.Client(headers=headers, timeout=config.timeout_s)
        self._pool = ThreadPoolExecutor(config.concurrency, thread_name_prefix='judge')
        self._verdicts: dict[JudgeRequest, float] = {}
        self._lock = threading.Lock()
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
        given = [request for request in requests if request.answer is not None]
        new = [request for request in dict.fromkeys(given) if request not in self._verdicts]
        self._count(cached=len(given) - len(new))
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
                self._count(retries=1)
                delay = self.config.backoff_s * 2.0 ** (attempt - 1)
                time.sleep(min(delay, self.config.max_backoff_s))
            try:
                verdict = self._ask(request)
            except (httpx.RequestError, _NoVerdict) as error:
                reason = f'{type(error).__name__.lstrip("_")}: {error}'
                if isinstance(error, _Refused):
                    break
            else:
                self._count(judged=1)
                return verdict
        self._count(failures=1)
        self._last_failure = reason
        _LOG.warning('judge %s gave no verdict, falling back to %s (%d so far): %s',
                     self.config.model, self._fallback.name, self.counts.failures, reason)
        return None

    def _ask(self, request: JudgeRequest) -> float:
        assert request.answer is not None
        prompt = self.config.prompt.fill(
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
        return _parse_verdict(response, self.config.verdict)

    def _count(self, **changes: int) -> None:
        with self._lock:
            for name, change in changes.items():
                setattr(self.counts, name, getattr(self.counts, name) + change)


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
