"""Actions chosen by a config, one of them from outside the package, through whole episodes."""

import numpy as np
import pytest
from PIL import Image

from tests.actions import flip_config
from vrag_jax.actions.grammar import parse_action
from vrag_jax.actions.registry import DEFAULT_ACTIONS, action_metrics, get_actions, hints, label
from vrag_jax.actions.stopping import build_stop_table
from vrag_jax.config import ConfigError, parse
from vrag_jax.evaluation.compare import compare
from vrag_jax.evaluation.report import write_report
from vrag_jax.evaluation.results import save_results
from vrag_jax.evaluation.summary import summarize
from vrag_jax.evaluation.trajectory_io import load_trajectories, save_trajectories
from vrag_jax.models.common.tokenizer import token_bytes
from vrag_jax.rollout.driver import run_expert
from vrag_jax.run.context import RunContext
from vrag_jax.run.run_config import RunConfig


@pytest.fixture(scope='module')
def space(tmp_path_factory):
    return RunContext(parse(RunConfig, flip_config.get_config()), tmp_path_factory.mktemp('flip'))


@pytest.fixture(scope='module')
def play(space):
    """Returns a function that lets an expert write turns of a question about a page."""
    world = space.world()
    question = space.corpus.questions['train'][0]

    def run(*turns):
        search = f'<think>a</think><search>{question.query}</search>'
        texts = [search, *(f'<think>b</think>{turn}' for turn in turns)]
        trajectory, = run_expert(
            world, [question], lambda _, episode: texts[len(episode.turns)], 10_000)
        return trajectory

    return run


def page_pixels(space, view):
    return np.asarray(space.corpus.store.image(view.frame.page_id).convert('RGB'))


def shown(pixels, view):
    """What the encoder must see of a part of a page, worked out with numpy and Pillow."""
    image = Image.fromarray(np.ascontiguousarray(pixels))
    return np.asarray(image.resize(view.frame.encoder_size, Image.Resampling.BICUBIC))


def box(view, shape, x1, y1, x2, y2):
    """A box of pixels of the full-resolution image, as it is written on what is shown of it."""
    width, height = view.frame.box_size
    x, y = width / shape[1], height / shape[0]
    return f'<bbox>[{x1 * x:.6f}, {y1 * y:.6f}, {x2 * x:.6f}, {y2 * y:.6f}]</bbox>'


def test_rotate_turns_the_last_image_and_boxes_on_it_find_the_page(play, space):
    page, turned = play('<rotate>90</rotate>', '<answer>1</answer>').images
    pixels = page_pixels(space, page)
    clockwise = np.rot90(pixels, -1)
    np.testing.assert_array_equal(np.asarray(turned.image), shown(clockwise, turned))
    written = box(turned, clockwise.shape, 40, 100, 200, 180)
    trajectory = play('<rotate>90</rotate>', written, '<rotate>270</rotate>', '<answer>1</answer>')
    _, _, crop, back = trajectory.images
    np.testing.assert_array_equal(np.asarray(crop.image), shown(clockwise[100:180, 40:200], crop))
    height = pixels.shape[0]
    region = crop.frame.to_page((0, 0, *crop.frame.box_size))
    assert region == pytest.approx((100, height - 200, 180, height - 40))
    # Turned back, it is the plain crop of that region of the page.
    assert back.frame.region == pytest.approx(region)
    np.testing.assert_array_equal(
        np.asarray(back.image), shown(pixels[height - 200:height - 40, 100:180], back))


@pytest.mark.parametrize('angle', ['45', '', '90 180', '-90', 'nan'])
def test_other_angles_are_invalid(play, angle):
    turn = play(f'<rotate>{angle}</rotate>', '<answer>1</answer>').turns[1]
    assert (turn.action.kind, turn.action.reason) == (
        'invalid', 'the angle must be 90, 180 or 270')


def test_an_action_from_outside_the_package_shows_what_it_says(play, space):
    trajectory = play('<flip>left-right</flip>', '<answer>472</answer>')
    page, flipped = trajectory.images
    np.testing.assert_array_equal(
        np.asarray(flipped.image), shown(np.fliplr(page_pixels(space, page)), flipped))
    turn = trajectory.turns[1]
    assert (turn.action.kind, turn.action.text, turn.action.thought, turn.observation) == (
        'flip', 'left-right', 'b', 'Flipped: ')
    assert trajectory.answer == '472' and trajectory.finished


def test_its_tags_are_tokens_and_end_a_turn(space):
    tokens = ['<flip>', '</flip>', '<rotate>', '</rotate>']
    ids = space.tokenizer.convert_tokens_to_ids(tokens)
    assert space.tokenizer.convert_ids_to_tokens(ids) == tokens
    text = '<think>x <flip>a</flip></think><flip>left-right</flip>'
    for actions, over in ((space.actions, True), (get_actions(), False)):
        table = build_stop_table(token_bytes(space.tokenizer), actions)
        states = [table.initial]
        for token in space.chat.encode(text):
            states.append(table.transitions[states[-1], token])
        assert table.accepting[states].tolist() == [False] * (len(states) - 1) + [over]
    assert parse_action(text).reason == 'there is no action'


def test_prompt_and_messages_name_it(play, space):
    question = space.corpus.questions['train'][0]
    assert space.chat.prompt_text(question.query) == (
        'Do one of these:\n'
        '- <search>words to look for</search> shows the best page that you have not seen yet.\n'
        '- <bbox>[x1, y1, x2, y2]</bbox> cuts a region out of the last image and shows it larger; '
        'the corners are in pixels of that image.\n'
        '- <rotate>90</rotate> turns the last image clockwise, by 90, 180 or 270 degrees.\n'
        '- <flip>left-right</flip> or <flip>top-bottom</flip> mirrors the last image.\n'
        '- <answer>the answer, as short as it can be</answer> ends the task.\n' + question.query)
    turn = play('<flip>up</flip>', '<answer>1</answer>').turns[1]
    assert turn.observation.startswith(
        "it must be one of ['left-right', 'top-bottom']! search with <search> query </search>, ")
    assert hints(get_actions(['search', 'flip', 'answer'])).endswith(
        '</search>, mirror the last image with <flip>left-right</flip>, or answer with <answer> '
        'answer </answer>')


def test_it_is_measured_and_drawn(play, space, tmp_path):
    played = [play('<flip>left-right</flip>', '<flip>top-bottom</flip>', '<answer>1</answer>'),
              play('<answer>1</answer>')]
    taken = [turn.action for trajectory in played for turn in trajectory.turns]
    assert action_metrics(space.actions, taken) == pytest.approx(
        {'searches': 2 / 6, 'crops': 0, 'rotations': 0, 'flips': 2 / 6})
    for trajectory in played:
        trajectory.rewards = {'answer': 0.0, 'total': 0.0}
    figures = summarize(played, space.actions)
    assert (figures['flipped']['value'], figures['rotated']['value']) == (0.5, 0.0)
    save_results(tmp_path / 'results.json', {'grpo': figures}, {'judge_failures': 0})
    assert compare([tmp_path]).splitlines()[0].endswith('| zoomed | rotated | flipped |')
    save_trajectories(tmp_path / 'grpo', played)
    report = write_report(tmp_path, {'SFT + GRPO': tmp_path / 'grpo'}).read_text(encoding='utf-8')
    assert '>Flipped</th>' in report and '</span> Flip</p>' in report
    first, second = load_trajectories(tmp_path / 'grpo')
    assert [turn.label for turn in first.turns] == ['Search', 'Flip', 'Flip', 'Answer']
    assert [turn.text for turn in first.turns[1:]] == ['left-right', 'top-bottom', '1']
    # Also where the action is not known, e.g. in a report of an older run.
    assert label('unheard_of') == 'Unheard_of' and label('invalid') == 'Invalid action'


@pytest.mark.parametrize(('actions', 'message'), [
    (('search', 'zap', 'answer'), r"config\.actions: must be some of \['answer', 'bbox', 'flip', "
                                  r"'rotate', 'search'\], got 'zap'"),
    (('search', 'bbox'), r"config\.actions: must hold \('search', 'answer'\)"),
    (('search', 'search', 'answer'), r'config\.actions: must hold .* and no action twice'),
    ('answer', r'config\.actions: expected a tuple')])
def test_a_list_that_cannot_work_is_refused(actions, message):
    config = flip_config.get_config()
    del config.actions
    config.actions = actions
    with pytest.raises(ConfigError, match=message):
        parse(RunConfig, config)


def test_a_config_that_says_nothing_has_the_default_actions():
    assert RunConfig('loop').actions == DEFAULT_ACTIONS == ('search', 'bbox', 'answer')


def test_the_field_of_before_is_refused_with_what_to_set_instead():
    with pytest.raises(ConfigError, match=r'^config\.environment\.allow_crop: .*config\.actions'):
        parse(RunConfig, {'task': 'grpo', 'environment': {'allow_crop': False}})
