"""The rules of an episode: what each action shows, what is invalid, when it ends."""

import dataclasses
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from vrag_jax.actions.observation import Messages
from vrag_jax.retrieval.hits import Hit
from vrag_jax.retrieval.remote import RemoteSearchConfig
from vrag_jax.rollout.environment import Environment, EnvironmentConfig
from vrag_jax.serving.service_config import ServiceLimits

SEARCH = '<think>x</think><search>{}</search>'
ANSWER = '<think>x</think><answer>42</answer>'


class ListedHits:
    """Finds the pages it was given, in their order, whatever the query."""

    def __init__(self, page_ids):
        self.page_ids = list(page_ids)
        self.calls = []

    def search(self, queries, k):
        self.calls.append((list(queries), k))
        return [[Hit(page_id, 1.0) for page_id in self.page_ids[:k]] for _ in queries]


def box(*corners, image=''):
    return f'<think>x</think><bbox{image}>[{", ".join(map(str, corners))}]</bbox>'


def play(world, question, texts, max_length=10_000, stop=''):
    """An episode whose turns are the given texts."""
    episode = world.start(question)
    for text in texts:
        episode.append_text(world.chat.encode(text), sampled=True)
        world.advance(world.read([episode], [text], [stop]), max_length)
    return episode


@pytest.fixture
def question(questions):
    return questions[0]


@pytest.fixture
def found(store):
    return ListedHits(store.ids[:2])


@pytest.fixture
def searching(make_world, found):
    return make_world(found, max_turns=9)


def test_a_search_shows_the_first_page_not_yet_seen(searching, question, found):
    episode = play(searching, question, [SEARCH.format('a')] * 3)
    first, second, third = episode.turns
    assert (first.retrieved, second.retrieved) == ((found.page_ids[0],), (found.page_ids[1],))
    assert [view.frame.page_id for view in episode.images] == found.page_ids
    assert (first.image, second.image) == (0, 1)
    assert third.retrieved == () and third.image is None
    assert third.observation == searching.environment.messages.nothing_new
    assert third.action.kind == 'search'
    assert episode.retrieved == found.page_ids


def test_a_search_without_hits_finds_nothing_new(make_world, question):
    world = make_world(ListedHits([]))
    turn, = play(world, question, [SEARCH.format('a')]).turns
    assert turn.observation == world.environment.messages.nothing_new


def test_a_page_is_shown_whole_at_the_encoders_size(searching, question):
    view, = play(searching, question, [SEARCH.format('a')]).images
    assert view.frame.region == (0, 0, 448, 448)
    assert view.frame.encoder_size == view.image.size == (112, 112)


def test_searches_of_all_episodes_go_out_together(make_world, questions, found):
    world = make_world(found, search_results=7)
    episodes = [world.start(q) for q in questions[:3]]
    texts = [SEARCH.format('a'), ANSWER, SEARCH.format('b')]
    world.advance(world.read(episodes, texts, [''] * 3), 10_000)
    assert found.calls == [(['a', 'b'], 7)]
    assert [e.done for e in episodes] == [False, True, False]
    assert [len(e.images) for e in episodes] == [1, 0, 1]


def test_only_so_many_results_are_looked_through(make_world, question, store):
    world = make_world(ListedHits(store.ids), search_results=1)
    episode = play(world, question, [SEARCH.format('a')] * 2)
    assert episode.retrieved == [store.ids[0]]
    assert episode.turns[1].observation == world.environment.messages.nothing_new


def test_a_query_that_is_too_long_is_not_searched_for(make_world, questions, found):
    world = make_world(found, search_chars=8)
    episodes = [world.start(q) for q in questions[:3]]
    texts = [SEARCH.format('a' * 9), SEARCH.format('a' * 8), SEARCH.format('b')]
    world.advance(world.read(episodes, texts, [''] * 3), 10_000)
    assert [queries for queries, _ in found.calls] == [['a' * 8, 'b']]
    assert_invalid(episodes[0].turns[0], 'the query has 9 characters; 8 are allowed')
    assert [len(e.images) for e in episodes] == [0, 1, 1] and not episodes[0].done


def test_a_search_service_takes_every_query_that_an_episode_may_ask():
    assert EnvironmentConfig().search_chars <= ServiceLimits().query_chars
    assert RemoteSearchConfig().body_bytes <= ServiceLimits().body_bytes


def test_an_answer_ends_the_episode(searching, question):
    trajectory = play(searching, question, [SEARCH.format('a'), ANSWER]).finish()
    assert trajectory.answer == '42' and trajectory.finished and not trajectory.truncated
    assert trajectory.turns[-1].observation == '' and trajectory.turns[-1].image is None


def test_the_last_turn_is_asked_for_the_answer(make_world, question, found):
    world = make_world(found, max_turns=3)
    episode = play(world, question, [SEARCH.format('a')] * 3)
    answer_now = world.environment.messages.answer_now
    assert [answer_now in turn.observation for turn in episode.turns] == [False, True, False]
    # It stands beside the image that the turn has found.
    assert episode.turns[1].image == 1 and episode.turns[1].observation == answer_now
    # The last turn was no answer: the episode is over, and nothing more is shown.
    assert episode.done and len(episode.images) == 2
    trajectory = episode.finish()
    assert trajectory.answer is None and not trajectory.finished and not trajectory.truncated


def test_an_episode_is_truncated_if_its_last_turn_is_cut_off_and_gives_no_answer(
        make_world, question, found):
    world = make_world(found, max_turns=2)
    cut = play(world, question, [SEARCH.format('a'), '<think>so'], stop='length')
    assert cut.done and cut.truncated and cut.turns[-1].action.kind == 'invalid'
    # What stopped by itself, or in mid-episode, or holds an answer, is not.
    assert not play(world, question, [SEARCH.format('a'), '<think>so'], stop='action').truncated
    assert not play(world, question, ['<think>so'], stop='length').truncated
    assert not play(world, question, ['<think>so', ANSWER], stop='length').truncated


def test_a_message_may_hold_braces(make_world, question, found, store):
    world = make_world(found)
    messages = dataclasses.replace(
        world.environment.messages, invalid='{reason}: reply as JSON: {"action": ...}')
    environment = Environment(store, found, world.environment.config, messages)
    episode = play(dataclasses.replace(world, environment=environment), question, ['hm'])
    reason = episode.turns[0].action.reason
    assert reason and episode.turns[0].observation == reason + ': reply as JSON: {"action": ...}'


def test_the_request_for_the_answer_follows_other_texts(make_world, question):
    world = make_world(ListedHits([]), max_turns=2)
    turn, = play(world, question, [SEARCH.format('a')]).turns
    messages = world.environment.messages
    assert turn.observation == f'{messages.nothing_new} {messages.answer_now}'


def test_turns_without_an_action_are_invalid_with_a_reason(searching, question):
    turn, = play(searching, question, ['I do not know.']).turns
    assert turn.action.kind == 'invalid' and turn.action.reason
    assert turn.observation == (
        f'That was not a valid action ({turn.action.reason}). Think inside <think> and </think>, '
        'then do exactly one thing: search with <search> query </search>, zoom into the last '
        'image with <bbox>[x1, y1, x2, y2]</bbox>, or answer with <answer> answer </answer>.')


def assert_invalid(turn, reason):
    assert turn.action.kind == 'invalid'
    assert reason in turn.action.reason and reason in turn.observation
    assert turn.image is None


def test_a_box_before_any_image_is_invalid(searching, question):
    turn, = play(searching, question, [box(0, 0, 50, 50)]).turns
    assert_invalid(turn, 'no image yet')


def test_a_box_is_cut_out_of_the_full_page(searching, question, store, found):
    episode = play(searching, question, [SEARCH.format('a'), box(10, 20, 60, 70)])
    # Four page pixels an encoder pixel.
    assert episode.images[1].frame.region == (40, 80, 240, 280)
    assert episode.images[1].frame.page_id == found.page_ids[0]
    cut = store.image(found.page_ids[0]).crop((40, 80, 240, 280))
    shown = cut.resize(episode.images[1].frame.encoder_size, 3)  # 3 is bicubic
    assert shown.tobytes() == episode.images[1].image.tobytes()
    assert episode.retrieved == found.page_ids[:1]


def test_a_box_on_a_crop_is_in_the_crops_frame(searching, question):
    episode = play(searching, question, [
        SEARCH.format('a'), box(10, 20, 60, 70), box(56, 0, 112, 56)])
    # The crop of 200 x 200 page pixels is shown at 112 x 112: its upper right quarter.
    assert episode.images[1].frame.encoder_size == (112, 112)
    assert episode.images[2].frame.region == (140, 80, 240, 180)


def test_padding_widens_a_box_by_encoder_pixels(make_world, question, found):
    world = make_world(found, padding=5)
    episode = play(world, question, [SEARCH.format('a'), box(10, 20, 60, 70)])
    assert episode.images[1].frame.region == (20, 60, 260, 300)


@pytest.mark.parametrize(('corners', 'reason'), [
    ((120, 10, 130, 20), 'outside the image'), ((10, 10, 400, 50), 'far outside'),
    ((50, 50, 50, 90), ''), ((60, 10, 20, 50), '')])
def test_boxes_that_cannot_be_cut_are_invalid(searching, question, corners, reason):
    episode = play(searching, question, [SEARCH.format('a'), box(*corners)])
    assert_invalid(episode.turns[1], reason)
    assert len(episode.images) == 1 and not episode.done


def test_a_disabled_action_is_invalid_and_not_offered(make_world, question, found):
    world = make_world(found, disabled=('bbox',))
    episode = play(world, question, [SEARCH.format('a'), box(10, 20, 60, 70)])
    assert_invalid(episode.turns[1], '<bbox> is not available')
    assert episode.turns[1].observation.endswith(
        'thing: search with <search> query </search> or answer with <answer> answer </answer>.')


def test_a_page_that_many_ask_for_is_opened_once(searching, store, found):
    opened, go = [], threading.Event()

    class Slow:
        def image(self, page_id):
            opened.append(page_id)
            assert go.wait(20)
            return store.image(page_id)

    environment = Environment(Slow(), found, searching.environment.config)
    with ThreadPoolExecutor(4) as pool:
        views = [pool.submit(environment.page_view, store.ids[0]) for _ in range(4)]
        while not opened:
            pass
        go.set()
        first, *others = [view.result(20) for view in views]
    assert opened == [store.ids[0]] and all(view is first for view in others)


def test_a_page_that_could_not_be_opened_is_tried_again(searching, store, found):
    class Failing:
        calls = 0

        def image(self, page_id):
            self.calls += 1
            if self.calls == 1:
                raise OSError('the disk is gone')
            return store.image(page_id)

    environment = Environment(Failing(), found, searching.environment.config)
    with pytest.raises(OSError, match='the disk is gone'):
        environment.page_view(store.ids[0])
    assert environment.page_view(store.ids[0])[1].page_id == store.ids[0]


def test_rules_may_be_changed_over_the_same_pages(searching):
    changed = searching.environment.with_config(padding=7)
    assert (changed.config.padding, searching.environment.config.padding) == (7, 0)
    assert changed.config.max_turns == searching.environment.config.max_turns


def test_a_box_may_name_an_earlier_image(make_world, question, found):
    world = make_world(found, allow_image_index=True, max_turns=9)
    episode = play(world, question, [
        SEARCH.format('a'), SEARCH.format('b'), box(10, 20, 60, 70, image=' image="1"'),
        box(0, 0, 56, 56, image=' image="3"'), box(0, 0, 9, 9, image=' image="5"')])
    first, second = found.page_ids
    assert [view.frame.page_id for view in episode.images] == [first, second, first, first]
    assert episode.images[2].frame.region == (40, 80, 240, 280)
    assert episode.images[3].frame.region == (40, 80, 140, 180)  # of the crop
    assert_invalid(episode.turns[4], 'no image 5')


def test_image_numbers_are_invalid_unless_allowed(searching, question):
    episode = play(searching, question, [
        SEARCH.format('a'), box(10, 20, 60, 70, image=' image="1"')])
    assert_invalid(episode.turns[1], '')
    assert len(episode.images) == 1


@pytest.mark.parametrize(('field', 'rules'), [
    ('max_turns', {'max_turns': 0}), ('search_results', {'search_results': 0}),
    ('search_chars', {'search_chars': 0}),
    ('min_pixels', {'min_pixels': 112 * 112 + 1}), ('padding', {'padding': -1})])
def test_impossible_rules_are_refused(make_world, field, rules):
    with pytest.raises(ValueError, match=field):
        make_world(**rules)


def test_an_image_stands_alone_or_between_texts(make_world, question, found):
    """Texts before and after an image; the request for the answer in front of both."""
    def shown(messages, turns):
        world = make_world(found, max_turns=4)
        environment = Environment(
            world.environment._store, found, world.environment.config, messages)
        world = dataclasses.replace(world, environment=environment)
        episode = play(world, question, turns)
        start = len(episode) - len(episode.tail(0)[0])
        text = world.chat.tokenizer.decode(episode.tail(start)[0], skip_special_tokens=False)
        observed = text.split('<|im_start|>user\n')[2:]
        return [part.split('<|im_end|>')[0].replace('<|image_pad|>', '') for part in observed]

    image = '<|vision_start|><|vision_end|>'
    turns = [SEARCH.format('a'), box(10, 10, 60, 60), SEARCH.format('b')]
    alone = Messages(answer_now='')
    assert shown(alone, turns) == [image] * 3
    around = Messages(page='Page: <image>\nRead it.', crop='<image> is what you chose.',
                      answer_now='Now!')
    assert shown(around, turns) == [
        f'Page: {image}\nRead it.', f'{image} is what you chose.', f'Now! Page: {image}\nRead it.']
    for wrong in ('no place', '<image> <image>'):
        with pytest.raises(ValueError, match="page must hold '<image>' once"):
            Messages(page=wrong)


def test_a_turn_that_ends_otherwise_still_gets_the_end_of_turn_token(searching, question):
    chat = searching.chat
    text, end = SEARCH.format('a'), chat.end_of_turn_id
    other = chat.tokenizer.convert_tokens_to_ids('<|endoftext|>')
    for sampled, context in (([], [end]), ([end], [end]), ([other], [other, end])):
        episode = searching.start(question)
        episode.append_text([*chat.encode(text), *sampled], sampled=True)
        length = len(episode)
        stop = 'end_of_turn' if sampled else 'action'
        searching.advance(searching.read([episode], [text], [stop]), 10_000)
        start = length - len(sampled)
        assert episode.tail(start)[0][: len(context)].tolist() == context
        assert episode.tail(start)[0][len(context)] != end


def test_boxes_of_two_steps_are_in_the_frame_of_the_first_size(make_world, question, found):
    # Pages of PageWorld shown at 108 x 108 in boxes' pixels, at 112 x 112 to the encoder.
    world = make_world(found, two_step_sizes=True, min_pixels=11000, max_pixels=11800)
    episode = play(world, question, [SEARCH.format('a'), box(0, 0, 108, 108)])
    page, crop = episode.images
    assert page.frame.box_size == (108, 108) and page.image.size == (112, 112)
    assert crop.frame.region == (0, 0, *page.frame.page_size)
