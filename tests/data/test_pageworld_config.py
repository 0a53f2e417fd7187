"""A PageWorld config that cannot work is refused, naming the field."""

import pytest

from vrag_jax.data.pageworld.config import PageWorldConfig


@pytest.mark.parametrize(('values', 'field'), [
    ({'text_share': 0.5}, 'text_share'),
    ({'text_share': -0.1, 'table_share': 0.5}, 'text_share'),
    ({'train_documents': 0}, 'train_documents'),
    ({'test_questions': -1}, 'test_questions'),
    ({'panel_jitter': -1}, 'panel_jitter'),
    ({'body_jitter': 1.5}, 'body_jitter'),
    ({'jpeg_quality': 101}, 'jpeg_quality'),
    ({'heading_letters': 'AABC'}, 'heading_letters'),
    ({'heading_letters': 'abcd'}, 'heading_letters'),
    ({'grid': (5, 5)}, 'grid'),
    ({'grid': (1, 1)}, 'grid'),
    ({'page_size': (250, 448)}, 'page_size'),
    ({'body_size': (70, 56)}, 'body_size'),
    ({'digit_height': 20}, 'body_size'),
    ({'pages_per_document': 1}, 'multi_hop_share'),
    ({'grain': -1}, 'grain'),
    ({'grid': (1, 2), 'page_size': (448, 240), 'pages_per_document': 3}, 'pages_per_document'),
])
def test_refuses_impossible_configs(values, field):
    with pytest.raises(ValueError, match=field):
        PageWorldConfig(**values)
