"""results.json comes back as it was written, and says what is wrong with it."""

import pytest

from vrag_jax.evaluation.results import load_results, ordered_methods, save_results

ACCURACY = {'accuracy': {'value': 0.5, 'low': 0.4, 'high': 0.6, 'n': 100}}


def test_round_trip(tmp_path):
    path = tmp_path / 'run' / 'results.json'
    save_results(path, {'sft': ACCURACY, 'grpo': ACCURACY}, {'seed': 0, 'config': '配置.py'})
    assert load_results(path) == {
        'methods': {'sft': ACCURACY, 'grpo': ACCURACY}, 'run': {'seed': 0, 'config': '配置.py'}}
    assert [p.name for p in path.parent.iterdir()] == ['results.json']


def test_missing_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match='results.json'):
        load_results(tmp_path / 'results.json')


@pytest.mark.parametrize('content,message', [
    ('{"methods": ', 'not JSON'),
    ('[]', "'methods' must be"),
    ('{"methods": {"sft": {"accuracy": {}}}}', "'methods.sft.accuracy.value' is missing"),
    ('{"methods": {"sft": 0.5}}', "'methods.sft.accuracy.value' is missing"),
])
def test_broken_file_names_the_field(tmp_path, content, message):
    path = tmp_path / 'results.json'
    path.write_text(content)
    with pytest.raises(ValueError, match=message):
        load_results(path)


def test_known_methods_come_first_in_a_fixed_order():
    methods = {'mine': {}, 'grpo': {}, 'sft': {}, 'vanilla_rag': {}, 'no_crop': {}}
    assert ordered_methods(methods) == ['vanilla_rag', 'no_crop', 'sft', 'grpo', 'mine']
