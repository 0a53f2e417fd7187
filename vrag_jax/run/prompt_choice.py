"""The prompt of a run: of its config, of its policy, or of the conversations it learns from."""

import logging
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from vrag_jax.actions.registry import get_actions, prompt_lines
from vrag_jax.config import ConfigError
from vrag_jax.data.prompt import (
    PROMPT_FILE,
    QUESTION,
    Prompt,
    common_prompt,
    difference,
    read_prompt,
)
from vrag_jax.data.records import Conversation, split_system
from vrag_jax.run.run_config import PolicyConfig, RunConfig

ACTIONS = '{actions}'
_LOG = logging.getLogger(__name__)
_BEGINNING, _SHARE = 30, 0.4  # Characters, and conversations that share them: a prompt.
_ON_PURPOSE = 'to change it on purpose, pass --config.prompt.may_differ=True'


def choose_prompt(config: RunConfig) -> Prompt:
    """Returns what questions are asked with: by the config, else as the policy has learnt it.

    Raises:
      ConfigError: if the policy was fine-tuned on another prompt than the config gives (both
        are named), if neither gives one and there is no fallback, or a file is faulty.
    """
    given, own = _given(config), policy_prompt(config.policy)
    if given is None:
        text = own.text if own else with_actions(config.prompt.fallback, config)
        if not text:
            raise ConfigError(
                'config.prompt.file: not given, and the policy brings no prompt; pass a file with '
                "{question} in it (`python -m vrag_jax.data.prepare --conversations=SFT.json "
                "--prompt=PROMPT.json` extracts that of the conversations a policy was tuned on)")
        given = Prompt(text, config.prompt.system or (own.system if own else None))
    if own is not None and given != own and not config.prompt.may_differ:
        raise ConfigError(
            f'config.prompt: the policy of {_holder(config.policy)} was fine-tuned on another '
            f'prompt than it now gets: {difference(own, given)}; leave config.prompt.text, file '
            f'and system empty to take its own, or {_ON_PURPOSE}')
    return given


def conversation_prompt(
    config: RunConfig, conversations: Sequence[Conversation], source: str
) -> Prompt | None:
    """Returns the prompt of conversations to learn from, whose first turns hold it.

    Args:
      config: of the run.
      conversations: at least one.
      source: what they come from, for messages.

    Returns:
      The prompt; None if it cannot be told, because all ask the same.

    Raises:
      ConfigError: if the config gives, or the policy was fine-tuned on, another prompt; both
        are named.
    """
    own = None if config.prompt.may_differ else policy_prompt(config.policy)
    given = _given(config)
    if given and config.prompt.may_differ:
        return given
    expected = choose_prompt(config) if own or given else None
    turns = [_opening(conversation) for conversation in conversations]
    systems = {system for system, _ in turns if system is not None}
    everywhere = all(system is not None for system, _ in turns)
    if systems and not (everywhere and len(systems) == 1):
        _LOG.warning('the conversations of %s have different system turns, or none: GRPO and '
                     'evaluation take that of config.prompt.system', source)
    system = systems.pop() if everywhere and len(systems) == 1 else None
    if config.prompt.system and not expected:
        if systems or system not in (None, config.prompt.system):
            raise ConfigError(f'config.prompt.system: conversations of {source} have another '
                              f'system turn, for instance {system or systems.pop()!r}')
        system = config.prompt.system
    try:
        found = common_prompt((text for _, text in turns), system)
    except ValueError:
        found = None
    if expected is None:
        shown = f'prompt of the conversations: {found.text!r}' if found else (
            'the prompt of the conversations cannot be told: they all ask the same')
        if found and found.text == QUESTION:
            _refuse_several([text for _, text in turns], source)
        _LOG.info('%s%s', shown, f', system turn {system!r}' if system else '')
        return found
    wrong = [(system, text) for system, text in turns if not expected.matches(text)
             or system is not None and system != expected.system]
    if wrong:
        other = Prompt(found.text if found else expected.text,
                       wrong[0][0] if wrong[0][0] is not None else expected.system)
        shown = difference(expected, other) or (
            f'{expected.text!r} and, for instance, {wrong[0][1]!r}')
        holder = (f'the policy of {_holder(config.policy)} was fine-tuned on' if own
                  else 'config.prompt gives')
        raise ConfigError(
            f'config.data.trajectories: {len(wrong)} of {len(turns)} conversations of {source} '
            f'have another prompt than {holder}: {shown}; {_ON_PURPOSE}')
    return expected


def _refuse_several(texts: Sequence[str], source: str) -> None:
    """Raises if conversations have no prompt in common, but several, or some have none."""
    beginnings = Counter(text[:_BEGINNING] for text in texts)
    (first, count), = beginnings.most_common(1)
    if count > 1 and count >= _SHARE * len(texts):
        other = next(text for text in texts if not text.startswith(first))
        raise ConfigError(
            f'config.data.trajectories: the conversations of {source} have no prompt in common: '
            f'{count} of {len(texts)} begin with {first!r}, others for instance with '
            f'{other[:_BEGINNING]!r}; give them one prompt, or pass the one that GRPO and '
            'evaluation shall ask with: --config.prompt.text=... '
            '--config.prompt.may_differ=True')
    _LOG.warning('the conversations of %s have no prompt around their questions: the policy will '
                 'be asked with bare questions', source)


def policy_prompt(policy: PolicyConfig) -> Prompt | None:
    """Returns the prompt that a policy was fine-tuned on; None where its directory has none."""
    holder = _holder(policy)
    if not holder:
        return None
    try:
        return read_prompt(Path(holder, PROMPT_FILE))
    except ValueError as error:
        raise ConfigError(f'config.policy: {error}') from error


def _holder(policy: PolicyConfig) -> str:
    """The directory that says on which prompt the policy was fine-tuned, or ''."""
    return next((directory for directory in (policy.adapter, policy.checkpoint)
                 if directory and Path(directory, PROMPT_FILE).is_file()), '')


def _given(config: RunConfig) -> Prompt | None:
    """The prompt that a config spells out."""
    prompt = config.prompt
    if not prompt.file:
        text = with_actions(prompt.text, config)
        return Prompt(text, prompt.system or None) if text else None
    try:
        read = read_prompt(prompt.file)
    except (OSError, ValueError) as error:
        raise ConfigError(f'config.prompt.file: {error}') from error
    return Prompt(with_actions(read.text, config), prompt.system or read.system)


def with_actions(text: str, config: RunConfig) -> str:
    """Returns the text of a prompt, with a line about each action of the run for `{actions}`."""
    return text.replace(ACTIONS, prompt_lines(get_actions(config.actions)))


def _opening(conversation: Conversation) -> tuple[str | None, str]:
    """System text, or None, and text of the first turn."""
    system, messages = split_system(conversation)
    return system, messages[0].content
