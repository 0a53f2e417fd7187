"""Which prompt a run asks with, and that SFT, GRPO and evaluation ask with the same."""

from pathlib import Path

import pytest

from vrag_jax.config import ConfigError
from vrag_jax.data.prompt import PROMPT_FILE, Prompt, PromptConfig
from vrag_jax.data.records import Conversation, Message
from vrag_jax.models.common.lora import LoraConfig
from vrag_jax.run.prompt_choice import choose_prompt, conversation_prompt
from vrag_jax.run.run_config import PolicyConfig, RunConfig

TUNED = 'Think first. Question: {question}'
OTHER = 'Answer this: {question}'


@pytest.fixture
def tuned(tmp_path):
    """Directory of a policy that was fine-tuned on a prompt."""
    folder = tmp_path / 'policy'
    folder.mkdir()
    Prompt(TUNED, 'You read.').write(folder / PROMPT_FILE)
    return str(folder)


def run(prompt=None, checkpoint='', adapter='', **settings):
    policy = PolicyConfig(checkpoint=checkpoint, adapter=adapter,
                          lora=LoraConfig(rank=2 if adapter else 0))
    return RunConfig(task='grpo', prompt=prompt or PromptConfig(), policy=policy, **settings)


def asked(*questions, frame=TUNED, system=None):
    opening = (Message('system', system),) if system else ()
    return [Conversation((*opening, Message('user', frame.replace('{question}', question)),
                          Message('assistant', '<answer>1</answer>')), ())
            for question in questions]


QUESTIONS = ('Who won?', 'What is it?')


def test_a_policy_that_was_never_tuned_gets_the_fallback_or_what_the_config_says(tmp_path):
    assert choose_prompt(run()) == Prompt('{question}')
    assert choose_prompt(run(PromptConfig(fallback=OTHER))) == Prompt(OTHER)
    assert choose_prompt(run(PromptConfig(text=OTHER, system='x'))) == Prompt(OTHER, 'x')
    (tmp_path / 'p.txt').write_text(OTHER)
    config = PromptConfig(file=str(tmp_path / 'p.txt'), fallback='')
    assert choose_prompt(run(config)) == Prompt(OTHER)
    with pytest.raises(ConfigError, match='config.prompt.file: not given.*--prompt=PROMPT.json'):
        choose_prompt(run(PromptConfig(fallback='')))
    with pytest.raises(ConfigError, match='config.prompt.file: .*none.txt'):
        choose_prompt(run(PromptConfig(file=str(tmp_path / 'none.txt'))))


def test_a_tuned_policy_gets_its_own_prompt(tuned):
    assert choose_prompt(run(checkpoint=tuned)) == Prompt(TUNED, 'You read.')
    assert choose_prompt(run(PromptConfig(fallback=OTHER), tuned)) == Prompt(TUNED, 'You read.')
    assert choose_prompt(run(adapter=tuned)) == Prompt(TUNED, 'You read.')
    same = PromptConfig(text=TUNED, system='You read.')
    assert choose_prompt(run(same, tuned)) == Prompt(TUNED, 'You read.')


@pytest.mark.parametrize('config', [
    {'text': OTHER, 'system': 'You read.'}, {'text': TUNED}, {'system': 'You write.'}])
def test_another_prompt_than_a_policy_was_tuned_on_is_refused_naming_both(tuned, config):
    with pytest.raises(ConfigError, match='was fine-tuned on another prompt') as error:
        choose_prompt(run(PromptConfig(**config), tuned))
    if config.get('text') == OTHER:
        assert 'Think first.' in str(error.value) and 'Answer this' in str(error.value)
    chosen = choose_prompt(run(PromptConfig(**config, may_differ=True), tuned))
    assert chosen.text == config.get('text', TUNED)


def test_conversations_bring_their_prompt():
    assert conversation_prompt(run(), asked(*QUESTIONS), 'f.json') == Prompt(TUNED)
    assert conversation_prompt(
        run(), asked(*QUESTIONS, system='You read.'), 'f.json') == Prompt(TUNED, 'You read.')
    assert conversation_prompt(
        run(PromptConfig(system='S')), asked(*QUESTIONS), 'f.json') == Prompt(TUNED, 'S')
    # All ask the same: where the prompt ends is not to be seen.
    assert conversation_prompt(run(), asked('Who won?'), 'f.json') is None


def test_conversations_with_another_prompt_than_the_policys_are_refused_naming_both(tuned):
    config = run(checkpoint=tuned)
    expected = Prompt(TUNED, 'You read.')
    assert conversation_prompt(config, asked(*QUESTIONS), 'f.json') == expected
    assert conversation_prompt(config, asked('Who won?'), 'f.json') == expected
    for wrong in (asked(*QUESTIONS, frame=OTHER), asked('Who won?', frame=OTHER),
                  asked(*QUESTIONS, system='You write.')):
        with pytest.raises(ConfigError, match=f'{len(wrong)} of {len(wrong)} conversations of '
                                              'f.json have another prompt') as error:
            conversation_prompt(config, wrong, 'f.json')
        assert 'You write.' in str(error.value) or (
            'Think first.' in str(error.value) and 'Answer this' in str(error.value))
    differing = run(PromptConfig(may_differ=True), tuned)
    assert conversation_prompt(differing, asked(*QUESTIONS, frame=OTHER), 'f') == Prompt(OTHER)


def test_conversations_with_another_prompt_than_the_configs_are_refused():
    config = run(PromptConfig(text=OTHER))
    assert conversation_prompt(config, asked(*QUESTIONS, frame=OTHER), 'f') == Prompt(OTHER)
    mixed = [*asked('Who won?', frame=OTHER), *asked('Who won?')]
    with pytest.raises(ConfigError, match='1 of 2 conversations of f.json.*config.prompt gives'):
        conversation_prompt(config, mixed, 'f.json')
    with pytest.raises(ConfigError, match='config.prompt.system.*You read'):
        conversation_prompt(run(PromptConfig(system='You write.')),
                            asked(*QUESTIONS, system='You read.'), 'f.json')


def test_a_prompt_file_that_is_damaged_is_named(tuned):
    Path(tuned, PROMPT_FILE).write_text('{')
    with pytest.raises(ConfigError, match='config.policy: .*prompt.json'):
        choose_prompt(run(checkpoint=tuned))


def test_conversations_of_several_prompts_are_refused_and_bare_questions_warned_of(caplog):
    long = 'Think inside <think> and </think> first. Question: {question}'
    mixed = [*asked(*(f'Who is {n}?' for n in range(9)), frame=long), *asked('Who won?')]
    with pytest.raises(ConfigError, match='f.json have no prompt in common: 9 of 10 begin with'):
        conversation_prompt(run(), mixed, 'f.json')
    chosen = PromptConfig(text=long, may_differ=True)
    assert conversation_prompt(run(chosen), mixed, 'f.json') == Prompt(long)
    bare = asked('Who won?', 'Name the harbour.', frame='{question}')
    assert conversation_prompt(run(), bare, 'f.json') == Prompt('{question}')
    assert 'asked with bare questions' in caplog.text


def test_a_system_turn_of_some_conversations_is_not_put_before_the_others(caplog):
    mixed = [*asked('Who won?', system='You read.'), *asked('What is it?')]
    assert conversation_prompt(run(), mixed, 'f.json') == Prompt(TUNED)
    assert 'different system turns' in caplog.text
