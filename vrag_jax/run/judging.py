"""Who judges a run's answers: settings of the judge, and the judge made of them."""

import dataclasses
from pathlib import Path

from vrag_jax.parallel.distributed import is_main
from vrag_jax.rewards.judge import AnswerJudge, OpenAIJudge, OpenAIJudgeConfig, RuleJudge
from vrag_jax.rewards.verdicts import PROMPT, JudgePrompt, VerdictPattern


@dataclasses.dataclass(frozen=True)
class JudgeConfig:
    """Who judges answers: a model behind an OpenAI-compatible server, or a rule.

    Attributes:
      base_url: of the server, without '/v1'; '' judges by the rule.
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
      timeout_s: seconds to wait for a reply.
      attempts: most times that one answer is sent.
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
    concurrency: int = 16

    def __post_init__(self):
        RuleJudge(self.rule)
        if self.base_url:
            self.server()
            return
        for name in ('model', 'prompt', 'prompt_file', 'correct', 'incorrect', 'api_key_env'):
            if getattr(self, name):
                raise ValueError(f'{name} is for a judge model: give its base_url, too')

    def server(self) -> OpenAIJudgeConfig:
        """Returns the settings of the client; raises ValueError where they cannot work."""
        return OpenAIJudgeConfig(
            self.base_url, self.model, self.api_key_env, self.timeout_s, self.attempts,
            concurrency=self.concurrency, rule=self.rule, prompt=self._prompt(),
            verdict=VerdictPattern(self.correct, self.incorrect))

    def _prompt(self) -> JudgePrompt:
        if not self.prompt_file:
            return JudgePrompt(self.prompt or PROMPT)
        if self.prompt:
            raise ValueError('prompt and prompt_file: give one of them')
        try:
            return JudgePrompt(Path(self.prompt_file).read_text(encoding='utf-8'))
        except (OSError, UnicodeDecodeError) as error:
            raise ValueError(f'prompt_file: {self.prompt_file} cannot be read: {error}') from error


def open_judge(config: JudgeConfig) -> AnswerJudge:
    """Returns the judge of a run, and says which it is.

    Raises:
      JudgeError: if it is a model that cannot be asked, or gives no verdict.
    """
    judge: AnswerJudge = RuleJudge(config.rule)
    if config.base_url:
        model = OpenAIJudge(config.server())
        model.check()
        judge = model
    if is_main():
        print(f'answers are judged by {judge.name}', flush=True)
    return judge
