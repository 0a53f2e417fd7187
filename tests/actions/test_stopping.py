"""The stop automaton accepts exactly where `parse_action` first sees a closed action."""

import base64
import importlib.util
import random
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vrag_jax.actions.grammar import parse_action
from vrag_jax.actions.rules import ActionRules
from vrag_jax.actions.stopping import StopTable, build_stop_table

# Closes whatever is open and adds an action: only a turn that is over ignores it.
PROBE = '></think></search></bbox></answer><answer>probe 7</answer>'

INDEXED = ActionRules(allow_image_index=True)
PIECES = [
    '<think>', '</think>', '<search>', '</search>', '<answer>', '</answer>', '<bbox>', '</bbox>',
    '<bbox ', '<bbox', '<', '</', '>', 'think>', 'search>', 'bbox', '<sea', 'rch>', '</ans', 'wer>',
    '<<', 'image="1"', '[1, 2, 3, 4]', ' ', '\n', 'a', 'é', '中文', '😀', '<think', '</bbox', '<b']


def is_over(text: bytes) -> bool:
    """Whether a turn holds a closed action: nothing that follows changes its parse."""
    turn = text.decode(errors='replace')
    return parse_action(turn, rules=INDEXED) == parse_action(turn + PROBE, rules=INDEXED)


def first_accepted(table: StopTable, tokens: list[int]) -> int | None:
    state = table.initial
    for i, token in enumerate(tokens):
        state = table.transitions[state, token]
        if table.accepting[state]:
            return i
    return None


def first_over(parts: list[bytes]) -> int | None:
    return next((i for i in range(len(parts)) if is_over(b''.join(parts[:i + 1]))), None)


@settings(deadline=None, max_examples=400)
@given(st.lists(st.sampled_from(PIECES), max_size=25).map(''.join), st.data())
def test_agrees_with_the_parser_for_any_tokenisation(text, data):
    encoded = text.encode()
    cuts = data.draw(st.sets(st.integers(0, len(encoded)), max_size=30))
    bounds = sorted({0, len(encoded), *cuts})
    parts = [encoded[a:b] for a, b in zip(bounds, bounds[1:], strict=False)]
    vocabulary = sorted({*parts, b''})
    table = build_stop_table(vocabulary)
    tokens = [vocabulary.index(part) for part in parts]
    assert first_accepted(table, tokens) == first_over(parts)


def test_the_turn_is_over_for_good():
    vocabulary = [b'<answer>x</answer> and', b'<think>', b'']
    table = build_stop_table(vocabulary)
    state = table.transitions[table.initial, 0]
    assert table.accepting[state]
    assert (table.transitions[state] == state).all()


def test_tokens_without_text_change_nothing():
    table = build_stop_table([b'', b'<'])
    np.testing.assert_array_equal(table.transitions[:, 0], np.arange(len(table.accepting)))


@pytest.fixture(scope='module')
def qwen_vocabulary() -> list[bytes]:
    spec = importlib.util.find_spec('dashscope')
    if spec is None or spec.origin is None:
        pytest.skip("dashscope, whose wheel ships Qwen's vocabulary, is not installed")
    lines = (Path(spec.origin).parent / 'resources' / 'qwen.tiktoken').read_bytes().splitlines()
    return [base64.b64decode(line.split()[0]) for line in lines]


def test_qwen_vocabulary(qwen_vocabulary):
    started = time.perf_counter()
    table = build_stop_table(qwen_vocabulary)
    assert time.perf_counter() - started < 20
    assert table.transitions.shape == (len(table.accepting), 151643)

    ids = {token: i for i, token in enumerate(qwen_vocabulary)}
    generator = random.Random(0)
    for _ in range(150):
        rest = ''.join(generator.choices(PIECES, k=generator.randrange(1, 25))).encode()
        parts = []
        while rest:
            longest = generator.randrange(1, 9)
            size = next(n for n in range(longest, 0, -1) if rest[:n] in ids)
            parts.append(rest[:size])
            rest = rest[size:]
        assert first_accepted(table, [ids[part] for part in parts]) == first_over(parts)
