"""Characters that cannot be seen are written out; all others stay as they are."""

import pytest

from vrag_jax.evaluation.display_text import visible


@pytest.mark.parametrize('text', ['', 'a b', '云上\u3000数据', 'one\ntwo\tthree', 'é\xa0☂ 🎈'])
def test_what_can_be_seen_stays(text):
    assert visible(text) == text


@pytest.mark.parametrize(('text', 'shown'), [
    ('4\x007', '4\\x007'), ('\r', '\\r'), ('\x7f\x85', '\\x7f\\x85'), ('\u202e12', '\\u202e12'),
    ('a\u200bb', 'a\\u200bb'), ('\u2028', '\\u2028'), ('\ud800', '\\ud800'),
    ('\U000f0000', '\\U000f0000')])
def test_what_cannot_be_seen_is_written_out(text, shown):
    assert visible(text) == shown
