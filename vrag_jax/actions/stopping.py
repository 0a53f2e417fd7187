"""An automaton over token ids that knows when a turn's action has been closed.

It reads the bytes of each token as `actions.parse_action` reads text, so that a
jitted decode loop can stop on the device at the very token that closes the
action, whatever the tokenizer: tags may be split over tokens in any way.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np

from vrag_jax.actions.action import THINK, ActionType
from vrag_jax.actions.registry import get_actions

OUTSIDE = 0  # the state outside any tag with nothing of a tag read


@dataclasses.dataclass(frozen=True)
class StopTable:
    """The automaton, `S` states over a vocabulary of `V` tokens.

    Attributes:
      transitions: `[S, V]` uint8, the state after a token.
      initial: the state at the start of a turn.
      accepting: `[S]` bool, True where the action has been closed; it stays so.
    """

    transitions: np.ndarray
    initial: int
    accepting: np.ndarray


def build_stop_table(token_bytes: Sequence[bytes], actions: Sequence[ActionType] | None = None
                     ) -> StopTable:
    """Builds the automaton for a vocabulary.

    Args:
      token_bytes: bytes that each token id stands for; b'' for ids that add no
        text (special tokens that are skipped in decoding, unused ids).
      actions: of the grammar; None takes `registry.DEFAULT_ACTIONS`.

    Returns:
      The table; stepping it over the tokens of a turn accepts at the first token
      with which the text holds a closed action outside `<think>`.

    Raises:
      ValueError: if the tags are too many or too long for 256 states.
    """
    by_byte, accepted = _byte_automaton(get_actions() if actions is None else actions)
    states = len(by_byte)
    lengths = np.array([len(token) for token in token_bytes], np.int64)
    starts = np.cumsum(lengths) - lengths
    flat = np.frombuffer(b''.join(token_bytes), np.uint8)
    transitions = np.repeat(np.arange(states, dtype=np.uint8)[:, None], len(lengths), axis=1)
    # The vocabulary is stepped through byte by byte, all its tokens at a time.
    for position in range(np.max(lengths, initial=0)):
        tokens = np.flatnonzero(lengths > position)
        byte = flat[starts[tokens] + position]
        transitions[:, tokens] = by_byte[transitions[:, tokens], byte]
    return StopTable(transitions, OUTSIDE, np.arange(states) == accepted)


def _byte_automaton(actions: Sequence[ActionType]) -> tuple[np.ndarray, int]:
    """Returns next states `[S, 256]` uint8 by byte, and the accepting state.

    A state is what has been read of a tag: of an opening tag outside, or of the
    one closing tag that matters inside. '<' occurs only at the start of a tag,
    so after a mismatch a tag can only begin anew at that byte.
    """
    tags = (THINK, *(action.tag for action in actions))
    outside = sorted({f'<{tag}'[:n] for tag in tags for n in range(len(tag) + 2)})
    inside = [(tag, f'</{tag}'[:n]) for tag in tags for n in range(len(tag) + 3)]
    number = {('', read): i for i, read in enumerate(outside)}
    number |= {state: len(outside) + i for i, state in enumerate(inside)}
    accepted = len(number)
    if accepted > 255:
        raise ValueError(f'the tags {tags} take {accepted + 1} states, but there are 256: take '
                         'fewer actions or shorter tags')

    table = np.zeros((accepted + 1, 256), np.uint8)
    for (tag, _), state in number.items():
        table[state] = number[tag, '']
        table[state, ord('<')] = number[tag, '<']
    for (tag, read), state in number.items():
        if read:
            table[number[tag, read[:-1]], ord(read[-1])] = state
    for tag in tags:
        table[number['', f'<{tag}'], ord('>')] = number[tag, '']
        table[number[tag, f'</{tag}'], ord('>')] = (
            number['', ''] if tag == THINK else accepted)
    for action in actions:
        if action.attributes:
            table[number['', f'<{action.tag}'], ord(' ')] = number[action.tag, '']
    table[accepted] = accepted
    return table, accepted
