"""Trajectories come back from disk as what people need to see of them."""

import dataclasses

import numpy as np
import pytest
from PIL import Image

from tests.evaluation.conftest import INVALID, SEARCH, ZOOM, make_trajectory, view
from vrag_jax.evaluation.trajectory_io import load_trajectories, save_trajectories, select


def saved(folder, *trajectories):
    save_trajectories(folder, trajectories)
    return load_trajectories(folder)


def test_texts_answers_and_rewards_come_back(tmp_path, zooming, hasty, silent):
    records = saved(tmp_path, zooming, hasty, silent)
    assert [r.uid for r in records] == ['zooming', 'hasty', 'silent']
    assert [r.correct for r in records] == [True, False, False]
    assert [r.answer for r in records] == ['472', '478', None]
    assert [r.truncated for r in records] == [False, False, True]
    assert records[0].rewards == zooming.rewards
    assert [(t.kind, t.thought, t.text) for t in records[0].turns] == [
        ('search', 'market', 'velora market'), ('bbox', 'K top right', ''),
        ('answer', '472', '472')]
    assert records[0].turns[0].retrieved == ('velora_3',)


def test_an_invalid_turn_keeps_its_raw_text_and_the_reason(tmp_path, hasty):
    turn = saved(tmp_path, hasty)[0].turns[0]
    assert (turn.kind, turn.text, turn.reason) == (
        'invalid', INVALID[0], 'a box must be four numbers')
    assert turn.observation == 'That was not a valid action.'


def test_any_character_comes_back(tmp_path):
    # At some of these Python ends a line, though JSON does not.
    said = 'a\x00\x1c\x85\u2028\r\n"b'
    record = saved(tmp_path, make_trajectory([(said, '', None, ())], answer=said))[0]
    assert (record.answer, record.turns[0].text) == (said, said)


def test_images_come_back_pixel_for_pixel_and_once_each(tmp_path, zooming, hasty):
    records = saved(tmp_path, zooming, hasty)
    for record, trajectory in zip(records, (zooming, hasty), strict=True):
        for i, shown in enumerate(trajectory.images):
            with Image.open(record.image_path(i)) as image:
                np.testing.assert_array_equal(image, shown.image)
    # Both saw the same page; the first saw a region of it too.
    assert len(list((tmp_path / 'images').iterdir())) == 2


def test_large_images_are_stored_as_jpeg(tmp_path):
    page = view('velora_3', (616, 560))
    record = saved(tmp_path, make_trajectory([SEARCH], [page]))[0]
    with Image.open(record.image_path(0)) as image:
        assert (image.format, image.size) == ('JPEG', (616, 560))
        error = np.abs(np.asarray(image, float) - np.asarray(page.image, float)).mean()
    assert error < 5


def test_a_box_is_on_the_image_it_was_given_on(tmp_path, zooming):
    record = saved(tmp_path, zooming)[0]
    assert record.boxes_on(0) == [(2, (61, 30, 92, 47))]
    assert record.boxes_on(1) == []


def test_a_box_may_name_an_earlier_image(tmp_path, zooming):
    turn = zooming.turns[1]
    again = dataclasses.replace(
        turn, image=2, action=dataclasses.replace(turn.action, image=1))
    trajectory = dataclasses.replace(
        zooming, turns=[zooming.turns[0], turn, again],
        images=[*zooming.images, zooming.images[1]])
    record = saved(tmp_path, trajectory)[0]
    assert record.boxes_on(0) == [(2, turn.action.box), (3, turn.action.box)]


@pytest.mark.parametrize('named', [None, 7])
def test_a_box_on_no_image_is_drawn_nowhere(tmp_path, named):
    trajectory = make_trajectory([(ZOOM[0], 'there is no image', None, ())])
    turn = trajectory.turns[0]
    trajectory.turns = [dataclasses.replace(
        turn, action=dataclasses.replace(turn.action, image=named))]
    assert saved(tmp_path, trajectory)[0].turns[0].box_image is None


def test_evidence_is_given_in_pixels_of_each_image(tmp_path, zooming):
    page, region = saved(tmp_path, zooming)[0].images
    # The page is shown at a quarter of its size.
    assert page.evidence == ((62, 31, 91, 46),)
    # The region (244, 120) to (368, 188) is 124 x 68 and shown at 112 x 56.
    np.testing.assert_allclose(
        region.evidence[0],
        (4 * 112 / 124, 4 * 56 / 68, 120 * 112 / 124, 64 * 56 / 68))
    assert (page.whole_page, region.whole_page) == (True, False)


def test_saving_again_replaces(tmp_path, zooming, hasty):
    save_trajectories(tmp_path, [zooming, hasty])
    assert [r.uid for r in saved(tmp_path, hasty)] == ['hasty']


def test_broken_files_are_named(tmp_path, zooming):
    with pytest.raises(FileNotFoundError, match='trajectories.jsonl'):
        load_trajectories(tmp_path)
    save_trajectories(tmp_path, [zooming])
    file = tmp_path / 'trajectories.jsonl'
    good = file.read_text()
    file.write_text(good + '{"uid": "x"}\n')
    with pytest.raises(ValueError, match='line 2: not a trajectory.*turns'):
        load_trajectories(tmp_path)
    file.write_text(good)
    image = next((tmp_path / 'images').iterdir())
    image.unlink()
    with pytest.raises(FileNotFoundError, match=f'{image.name}.*zooming'):
        load_trajectories(tmp_path)


def many(count, kind, correct):
    return [make_trajectory([], answer='472' if correct else '1', uid=f'{kind}{correct}{i}',
                            source_type=kind, rewards={'answer': float(correct)})
            for i in range(count)]


def test_select_gives_wrong_ones_their_share_and_spreads_over_kinds():
    trajectories = many(60, 'Chart', True) + many(15, 'Text', True) + many(25, 'Table', False)
    chosen = select(trajectories, 12)
    assert sum(t.answer == '1' for t in chosen) == 3
    assert [t.question.source_type for t in chosen[:9]].count('Text') == 4
    assert chosen == select(trajectories, 12)


@pytest.mark.parametrize('right,wrong,expected', [
    (100, 1, (11, 1)), (100, 0, (12, 0)), (0, 100, (0, 12)), (3, 2, (3, 2)), (2, 30, (1, 11))])
def test_select_fills_its_places_from_what_there_is(right, wrong, expected):
    chosen = select(many(right, 'Text', True) + many(wrong, 'Text', False), 12)
    found = sum(t.answer == '472' for t in chosen)
    assert (found, len(chosen) - found) == expected
