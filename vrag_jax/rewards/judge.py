"""Who says whether an answer is right: a rule, or a language model over HTTP."""

import dataclasses
import logging
import os
import re
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Protocol

import httpx

from vrag_jax.rewards.answer import exact_match

_PROMPT = """\
You grade an answer to a question. Compare it with the reference answers; wording, units and \
formatting may differ, facts and numbers may not.

Question: {question}
Reference answers: {references}
Answer to grade: {answer}

Reply with one word, CORRECT or INCORRECT."""
_VERDICT = re.compile(r'\b(IN)?CORRECT\b', re.IGNORECASE)

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


class AnswerJudge(Protocol):
    """Scores answers in batches."""

    def score(self, requests: Sequence[JudgeRequest]) -> list[float]:
        """Returns a score in [0, 1] for each request, in order."""
        ...


class RuleJudge:
    """Exact match after normalisation."""

    def score(self, requests: Sequence[JudgeRequest]) -> list[float]:
        """Returns 1.0 for each answer that equals a reference, else 0.0."""
        return [
            0.0 if request.answer is None else exact_match(request.answer, request.references)
            for request in requests
        ]


class JudgeError(RuntimeError):
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
    """

    base_url: str
    model: str
    api_key_env: str = ''
    timeout_s: float = 60.0
    attempts: int = 4
    backoff_s: float = 1.0
    max_backoff_s: float = 30.0
    concurrency: int = 16

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
    answer that gets no verdict within the allowed attempts is scored by exact
    match, not kept, counted in `counts.failures` and logged: training goes on.

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
                raise JudgeError(f'api_key_env: the environment variable '
                                 f'{config.api_key_env} is not set')
            headers['Authorization'] = f'Bearer {key}'
        self.config = config
        self.counts = JudgeCounts()
        self._client = httpx.Client(headers=headers, timeout=config.timeout_s)
        self._pool = ThreadPoolExecutor(config.concurrency, thread_name_prefix='judge')
        self._verdicts: dict[JudgeRequest, float] = {}
        self._lock = threading.Lock()
        self._fallback = RuleJudge()

    def close(self) -> None:
        """Ends the connections and threads."""
        self._pool.shutdown()
        self._client.close()

    def score(self, requests: Sequence[JudgeRequest]) -> list[float]:
        """Returns a score for each request, in order; 0.0 where there is no answer.

        Raises:
          JudgeError: if the server refuses the key, the path or the model.
        """
        given = [request for request in requests if request.answer is not None]
        new = [request for request in dict.fromkeys(given) if request not in self._verdicts]
        self._count(cached=len(given) - len(new))
        found = dict(zip(new, self._pool.map(self._judge, new), strict=True))
        self._verdicts |= {r: verdict for r, verdict in found.items() if verdict is not None}
        failed = [request for request, verdict in found.items() if verdict is None]
        by_rule = dict(zip(failed, self._fallback.score(failed), strict=True))
        return [
            0.0 if request.answer is None
            else by_rule[request] if request in by_rule else self._verdicts[request]
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
                reason = f'{type(error).__name__}: {error}'
                if isinstance(error, _Refused):
                    break
            else:
                self._count(judged=1)
                return verdict
        self._count(failures=1)
        logging.warning('judge %s gave no verdict, falling back to exact match (%d so far): %s',
                        self.config.model, self.counts.failures, reason)
        return None

    def _ask(self, request: JudgeRequest) -> float:
        prompt = _PROMPT.format(question=request.question, answer=request.answer,
                                references='; '.join(request.references))
        response = self._client.post(
            f'{self.config.base_url.rstrip("/")}/v1/chat/completions',
            json={'model': self.config.model, 'temperature': 0,
                  'messages': [{'role': 'user', 'content': prompt}]})
        status = response.status_code
        if status in _MISCONFIGURED_STATUS:
            raise JudgeError(f'{response.url} answered {status} for model {self.config.model!r}; '
                             'check base_url, model and api_key_env')
        if status != 200:
            transient = status in _TRANSIENT_STATUS or status >= 500
            raise (_NoVerdict if transient else _Refused)(f'status {status}')
        return _parse_verdict(response)

    def _count(self, **changes: int) -> None:
        with self._lock:
            for name, change in changes.items():
                setattr(self.counts, name, getattr(self.counts, name) + change)


class _NoVerdict(Exception):
    """A reply that holds no verdict; a later attempt may bring one."""


class _Refused(_NoVerdict):
    """A reply that no later attempt will change."""


def _parse_verdict(response: httpx.Response) -> float:
    """Reads the last verdict of a reply, so that a model may think aloud first."""
    try:
        content = response.json()['choices'][0]['message']['content']
        verdicts = list(_VERDICT.finditer(content))
    except (ValueError, KeyError, IndexError, TypeError) as error:
        raise _NoVerdict(f'not a chat completion: {response.text[:200]!r}') from error
    if not verdicts:
        raise _NoVerdict(f'neither CORRECT nor INCORRECT in {content[:200]!r}')
    return 0.0 if verdicts[-1][1] else 1.0
