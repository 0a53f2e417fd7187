"""The judge of a run: its settings, and that it is said which it is."""

import pytest

from vrag_jax.config import ConfigError, parse
from vrag_jax.rewards.judge import JudgeError, RuleJudge
from vrag_jax.run.judging import JudgeConfig, open_judge
from vrag_jax.run.settings import RunConfig

MODEL = {'base_url': 'http://127.0.0.1:1', 'model': 'm'}


def config_of(**judge):
    return parse(RunConfig, {'task': 'evaluate', 'judge': judge}).judge


def test_a_rule_is_named_at_the_start(capsys):
    judge = open_judge(config_of(rule='contains'))
    assert isinstance(judge, RuleJudge) and judge.rule == 'contains'
    assert capsys.readouterr().out == 'answers are judged by rule: contains\n'


def test_a_model_that_cannot_be_asked_ends_the_run_at_its_start():
    with pytest.raises(JudgeError, match='config.judge: model: m at http://127.0.0.1:1 gave no'):
        open_judge(config_of(**MODEL, attempts=1))


def test_prompt_and_patterns_reach_the_client(tmp_path):
    file = tmp_path / 'prompt.txt'
    file.write_text('{answer} {references} {question}', encoding='utf-8')
    server = config_of(
        **MODEL, prompt_file=str(file), correct='1', incorrect='0', rule='anls').server()
    assert server.prompt.text == '{answer} {references} {question}'
    assert (server.verdict.correct, server.verdict.incorrect, server.rule) == ('1', '0', 'anls')
    assert config_of(**MODEL, prompt='{answer}{references}').server().prompt.text == (
        '{answer}{references}')
    assert 'CORRECT or INCORRECT' in JudgeConfig(**MODEL).server().prompt.text


@pytest.mark.parametrize('judge, message', [
    ({'rule': 'fuzzy'}, "rule must be one of .*'anls'"),
    ({'model': 'm'}, 'model is for a judge model: give its base_url'),
    ({'prompt': '{answer} {references}'}, 'prompt is for a judge model'),
    ({'correct': 'a', 'incorrect': 'b'}, 'correct is for a judge model'),
    (MODEL | {'prompt': 'x {answer}'}, r'prompt: does not hold \{references\}'),
    (MODEL | {'prompt_file': 'none.txt'}, 'prompt_file: none.txt cannot be read'),
    (MODEL | {'prompt': 'x', 'prompt_file': 'y'}, 'give one of them'),
    (MODEL | {'correct': '('}, 'give both or neither'),
    (MODEL | {'correct': '(', 'incorrect': 'b'}, 'correct: not a regular expression')])
def test_settings_that_cannot_work(judge, message):
    with pytest.raises(ConfigError, match='config.judge.*' + message):
        config_of(**judge)
