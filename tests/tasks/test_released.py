"""The released checkpoint's path: its conversations, SFT, GRPO, evaluation; one prompt for all."""

import dataclasses
import functools
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy
from PIL import Image, ImageDraw

from tests.embedders import golden_cases
from tests.tasks.tiny_checkpoint import write_checkpoint
from vrag_jax.config import ConfigError, parse
from vrag_jax.data.chat import ChatFormat
from vrag_jax.data.prompt import PROMPT_FILE, Prompt, read_prompt
from vrag_jax.data.records import Message, load_sharegpt, split_system
from vrag_jax.models.common.tokenizer import load_tokenizer
from vrag_jax.models.families import read_config
from vrag_jax.run.context import RunContext
from vrag_jax.run.run_config import RunConfig
from vrag_jax.tasks import registry

ROOT = Path(__file__).resolve().parents[2]
CONFIG = 'configs/vrag_released.py'
FRAME = ('Answer the question. Think inside <think> and </think>. Search with <search> words '
         '</search>. For example, <answer> 5 </answer>. Question: {question}')
FACTS = {'harbour': 412, 'railway': 97, 'airport': 1288}
# What makes a run of 7B one that two cores finish in seconds.
SMALL = {
    'mesh.fsdp': 1, 'policy.dtype': 'float32', 'vision_features.rows': 1024,
    'vision_features.windows': '(8,)', 'vision_features.span': 8,
    'environment.min_pixels': 16 * 784, 'environment.max_pixels': 32 * 784,
    'sampler.slots': 4, 'sampler.fewer_slots': '()', 'sampler.max_length': 1024,
    'sampler.max_new_tokens': 24, 'sampler.decode_tokens': 24,
    'sampler.prefill_shapes': '((4,256),)', 'sampler.attend_lengths': '()',
    'sampler.cache_tokens': 0, 'sampler.cache_dtype': 'float32', 'grpo.learner.rows': 1,
    'grpo.learner.length': 1024, 'grpo.steps': 1, 'grpo.prompts': 2, 'grpo.group_size': 2,
    'grpo.mini_batches': 1, 'sft.steps': 1, 'sft.sequences': 2, 'sft.learner.rows': 1,
    'sft.learner.length': 1024, 'evaluation.questions': 2,
    'retrieval.embedders.pages.dtype': 'float32',
    'retrieval.embedders.pages.visual.min_pixels': 8 * 64,
    'retrieval.embedders.pages.visual.max_pixels': 40 * 64,
}


def conversation(topic, images):
    return {'messages': [
        {'role': 'user', 'content': FRAME.replace('{question}', f'{topic.title()}: how many?')},
        {'role': 'assistant', 'content': f'<think>Look.</think>\n<search>{topic}</search>'},
        {'role': 'user', 'content': '<image>'},
        {'role': 'assistant', 'content': '<think>Small.</think>\n<bbox>[100, 60, 420, 300]</bbox>'},
        {'role': 'user', 'content': '<image>'},
        {'role': 'assistant', 'content': f'<think>So.</think>\n<answer>{FACTS[topic]}</answer>'},
    ], 'images': images}


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    """Pages, questions, conversations, a policy and a retriever, all of them small."""
    folder = tmp_path_factory.mktemp('released')
    pages, questions, records = [], [], []
    for number, (topic, value) in enumerate(FACTS.items(), start=1):
        page = Image.new('RGB', (1024, 768), 'white')
        ImageDraw.Draw(page).text((200, 150), f'{topic} {value}', 'black', font_size=90)
        page.save(folder / f'deck_{number}.png')
        page.crop((140, 84, 588, 420)).save(folder / f'crop_{number}.png')
        pages.append({'page_id': f'deck_{number}', 'document': 'deck', 'page': number,
                      'file': f'deck_{number}.png', 'width': 1024, 'height': 768})
        questions.append({
            'uid': number, 'query': f'{topic.title()}: how many?', 'reference_answer': str(value),
            'meta_info': {'file_name': 'deck.pdf', 'reference_page': [number]}})
        records.append(conversation(topic, [f'deck_{number}.png', f'crop_{number}.png']))
    (folder / 'pages.jsonl').write_text('\n'.join(map(json.dumps, pages)))
    (folder / 'questions.json').write_text(json.dumps({'examples': questions}))
    (folder / 'sft.json').write_text(json.dumps(records))
    texts = [message['content'] for record in records for message in record['messages']]
    write_checkpoint(folder / 'policy', texts)
    with np.load(golden_cases.GOLDENS / 'colqwen2.npz') as stored:
        golden_cases.write_checkpoint(
            folder / 'colqwen', *(json.loads(str(stored[name])) for name in ('config', 'shapes')))
    golden_cases.write_processor(folder / 'colqwen')
    return folder


def flags(folder, workdir, task, **changes):
    fields = SMALL | {
        'policy.checkpoint': folder / 'policy', 'data.manifest': folder / 'pages.jsonl',
        'data.train_questions': folder / 'questions.json',
        'data.eval_questions': folder / 'questions.json',
        'retrieval.embedders.pages.path': folder / 'colqwen'} | changes
    if task == 'sft':
        fields |= {'data.trajectories': folder / 'sft.json'}
    return [f'--config={CONFIG}:{task}', f'--workdir={workdir}',
            *(f'--config.{name}={value}' for name, value in fields.items())]


def run(*arguments, module='vrag_jax.main'):
    environment = {k: v for k, v in os.environ.items() if k != 'XLA_FLAGS'}
    done = subprocess.run([sys.executable, '-m', module, *map(str, arguments)], cwd=ROOT,
                          env=environment, text=True, capture_output=True)
    return done.returncode, done.stdout + done.stderr


@pytest.fixture(scope='module')
def runs(folder, tmp_path_factory):
    """Folders of an SFT step from the checkpoint and of a GRPO step from its policy."""
    sft, grpo = (tmp_path_factory.mktemp('runs') / name for name in ('sft', 'grpo'))
    code, text = run(*flags(folder, sft, 'sft', **{
        'sft.learner.frozen': '', 'sft.learner.windows': 64, 'sft.learner.span': 8,
        'sft.learner.lr': 0.01, 'sft.learner.warmup_fraction': 0.0}))
    assert code == 0, text[-3000:]
    assert 'prompt of the conversations' in text
    # The vision tower is trained, as in the authors' script; the bonus moves the weights of
    # the decoder although a random policy earns nothing, and searches for nothing.
    tuned = {'policy.checkpoint': sft / 'policy', 'grpo.learner.frozen': '',
             'grpo.learner.windows': 64, 'grpo.learner.span': 8, 'grpo.learner.warmup_steps': 0,
             'grpo.learner.lr': 0.01, 'grpo.loss.entropy_coef': 0.1}
    code, text = run(*flags(folder, grpo, 'grpo', **tuned))
    assert code == 0, text[-3000:]
    return sft, grpo


@pytest.mark.slow
def test_sft_keeps_the_prompt_of_its_conversations_and_grpo_goes_on_with_it(folder, runs):
    for workdir in runs:
        assert read_prompt(workdir / 'policy' / PROMPT_FILE) == Prompt(FRAME)
    sft, grpo = runs
    tokenizer = load_tokenizer(folder / 'policy')
    records = [json.loads(line) for line in
               next((grpo / 'trajectories').rglob('trajectories.jsonl')).read_text().splitlines()]
    assert {record['question'] for record in records} <= {f'{t.title()}: how many?' for t in FACTS}
    # The ids with which an episode begins are those of the conversation with that question.
    chat = ChatFormat(tokenizer, read_prompt(sft / 'policy' / PROMPT_FILE))
    for record in load_sharegpt(folder / 'sft.json'):
        question = record.messages[0].content.removeprefix(FRAME.removesuffix('{question}'))
        text = tokenizer.apply_chat_template(
            [{'role': 'user', 'content': record.messages[0].content}], tokenize=False,
            add_generation_prompt=True)
        assert chat.prompt_ids(question) == tokenizer.encode(text, add_special_tokens=False)


@pytest.mark.slow
def test_a_step_moves_the_weights_and_both_are_measured(folder, runs):
    sft, grpo = runs
    steps = [json.loads(line) for line in (sft / 'metrics.jsonl').read_text().splitlines()]
    assert len(steps) == 1 and min(steps[0]['values'][k] for k in ('loss', 'grad_norm')) > 0
    base, tuned, trained = (
        safetensors.numpy.load_file(directory / 'policy' / 'model.safetensors')
        for directory in (folder, *runs))
    for name, value in base.items():
        # In the dtype of the export: rounding is no training.
        assert (value.astype(tuned[name].dtype) != tuned[name]).any(), name
    decoder = [name for name in tuned if 'layers' in name and name.endswith('proj.weight')]
    assert decoder and all((tuned[name] != trained[name]).any() for name in decoder)
    results = json.loads((grpo / 'results.json').read_text())
    assert results['methods']['before']['n'] == results['methods']['grpo']['n'] == 2


def test_the_prompt_from_the_authors_conversations_evaluates_their_policy(folder, tmp_path):
    code, text = run(*flags(folder, tmp_path / 'none', 'evaluate'))
    assert code != 0 and 'config.prompt.file: not given' in text and 'Traceback' not in text
    prompt = tmp_path / 'prompt.json'
    code, text = run(f'--conversations={folder}/sft.json', f'--prompt={prompt}',
                     module='vrag_jax.data.prepare')
    assert code == 0 and read_prompt(prompt) == Prompt(FRAME), text
    code, text = run(*flags(folder, tmp_path / 'run', 'evaluate', **{'prompt.file': prompt}))
    assert code == 0, text[-3000:]
    results = json.loads((tmp_path / 'run' / 'results.json').read_text())
    assert results['methods']['policy']['n'] == 2


@pytest.mark.slow
def test_another_prompt_than_that_of_the_policy_is_refused(folder, runs, tmp_path):
    other = {'policy.checkpoint': runs[0] / 'policy', 'prompt.text': 'Say it: {question}'}
    code, text = run(*flags(folder, tmp_path / 'run', 'grpo', **other))
    assert code != 0 and 'Traceback' not in text
    assert 'Say it' in text and 'Answer the question' in text


def config_of(task, **changes):
    from configs import vrag_released
    config = vrag_released.get_config(task)
    with config.unlocked():
        for name, value in changes.items():
            section, _, field = name.rpartition('.')
            target = functools.reduce(getattr, section.split('.'), config) if section else config
            target[field] = value
    return config


def test_it_is_what_the_authors_validation_does():
    config = parse(RunConfig, config_of('evaluate'))
    rules, messages = config.environment, config.messages
    assert (rules.max_turns, rules.padding, rules.two_step_sizes) == (5, 28, True)
    assert (rules.min_pixels, rules.max_pixels) == (200704, 401408)
    assert (messages.page, messages.crop, messages.answer_now) == ('<image>', '<image>', '')
    assert config.evaluation.sampling.temperature == 0
    assert config.retrieval.retrievers == ('pages',)
    assert config.retrieval.embedders['pages'].kind == 'colqwen'
    assert config.retrieval.late_interaction.exact_below >= 10**6


@pytest.mark.parametrize('dtype', ['bfloat16', 'float16'])
def test_half_precision_that_would_swallow_updates_is_refused(folder, dtype):
    config = config_of('grpo', **{
        'policy.param_dtype': dtype, 'policy.checkpoint': str(folder / 'policy'),
        'prompt.text': FRAME, 'data.manifest': str(folder / 'pages.jsonl'),
        'data.train_questions': str(folder / 'questions.json'), 'mesh.fsdp': -1})
    with pytest.raises(ConfigError, match=f'config.policy.param_dtype: {dtype} rounds updates'):
        registry.check(parse(RunConfig, config))


def test_the_conversations_of_the_reference_become_the_ids_of_the_template(shared_dir, folder):
    """The released file's first messages are whole prompts; every reply ends and is trained."""
    source = shared_dir / 'real_pages' / 'example_sft_sharegpt.json'
    conversations = load_sharegpt(source)
    assert_ids_of_the_template(folder, conversations, shared_dir / 'real_pages' / 'pages')


def test_system_turns_and_texts_around_images_become_the_ids_of_the_template(folder):
    conversations = load_sharegpt(folder / 'sft.json')
    system = Message('system', 'You read pages.')
    around = [dataclasses.replace(c, messages=tuple(
        dataclasses.replace(m, content='Page:\n<image>\n Read it. ') if m.content == '<image>'
        else m for m in c.messages)) for c in conversations]
    assert_ids_of_the_template(folder, conversations, folder)
    assert_ids_of_the_template(folder, around, folder)
    assert_ids_of_the_template(
        folder, [dataclasses.replace(c, messages=(system, *c.messages)) for c in around], folder)


def parts(content):
    """Content of a message as a template takes it: a text, or texts and an image."""
    before, mark, after = content.partition('<image>')
    texts = [{'type': 'text', 'text': text} for text in (before, after)]
    return [texts[0], {'type': 'image'}, texts[1]] if mark else content


def assert_ids_of_the_template(folder, conversations, pictures):
    from vrag_jax.experts.conversations import conversation_sequences
    from vrag_jax.run.prompt_choice import conversation_prompt

    config = parse(RunConfig, config_of('sft', **{'policy.checkpoint': str(folder / 'policy')}))
    space = RunContext(config, folder / 'unused')
    prompt = conversation_prompt(config, conversations, 'the file')
    assert prompt.text.endswith('Question: {question}')
    chat = ChatFormat(space.tokenizer, prompt)
    files = sorted(p.name for p in pictures.iterdir() if p.suffix in ('.png', '.jpg'))
    shown = [type(c)(c.messages, tuple(files[i] for i in range(len(c.images))))
             for c in conversations]
    sequences = conversation_sequences(
        shown, pictures, chat, space.preprocess, read_config(folder / 'policy'),
        config.environment.limits, 16384)
    end = space.tokenizer.convert_tokens_to_ids('<|im_end|>')
    for conversation, sequence in zip(conversations, sequences, strict=True):
        counts = iter([image.tokens for image in sequence.images])
        text = space.tokenizer.apply_chat_template(
            [{'role': m.role, 'content': parts(m.content)} for m in conversation.messages],
            tokenize=False)
        text = re.sub(r'<\|image_pad\|>', lambda m, counts=counts: m[0] * next(counts), text)
        ids = space.tokenizer.encode(text, add_special_tokens=False)
        # The template ends the last line, which nobody samples.
        assert sequence.tokens.tolist() == ids[:len(sequence)]
        assert space.tokenizer.decode(ids[len(sequence):]) == '\n'
        trained = [space.tokenizer.decode(part) for part in np.split(
            sequence.tokens, np.flatnonzero(np.diff(sequence.loss_mask)) + 1)[1::2]]
        replies = [m.content for m in conversation.messages if m.role == 'assistant']
        assert trained == [f'{reply}<|im_end|>' for reply in replies]
        assert sequence.tokens[-1] == end and sequence.loss_mask[-1] == 1
        # GRPO asks the same question with the same ids.
        question = split_system(conversation)[1][0].content[len(prompt.before):]
        first = int(np.flatnonzero(sequence.loss_mask)[0])
        assert sequence.tokens[:first].tolist() == chat.prompt_ids(question)
