"""The released VRAG-RL 7B checkpoint, as its authors' validation runs it: evaluate or continue it.

What differs from `grpo_7b.py` is what this checkpoint was trained with: its own prompt,
observations of nothing but an image, boxes in the frame of an intermediate size and padded by
28 of its pixels, ColQwen2 with exact scoring, greedy decoding, four turns and a closing one that
nothing announces. `docs/RELEASED.md` compares paper, script and this config, setting by setting.

The prompt is extracted from the authors' SFT conversations once:

    python -m vrag_jax.data.prepare --conversations=SFT.json --prompt=prompt.json
    python -m vrag_jax.main --config=configs/vrag_released.py --workdir=runs/released \\
        --config.policy.checkpoint=checkpoints/vrag_rl_7b --config.prompt.file=prompt.json \\
        --config.retrieval.embedders.pages.path=checkpoints/colqwen2-v1.0-hf \\
        --config.data.manifest=PAGES.jsonl --config.data.eval_questions=TEST.json

Answers are judged by a model, as theirs are, with `--config.judge.base_url=URL
--config.judge.model=NAME`. Takes one accelerator with 80 GB, or several, over which the weights
are spread. The paper reports 57.1 % over its three benchmarks.

`configs/vrag_released.py:sft` (with `--config.data.trajectories=FILE.json`) fine-tunes, and
`configs/vrag_released.py:grpo` (with `--config.data.train_questions=TRAIN.json`) goes on with
GRPO with the settings of `grpo_7b.py`, both in float32, on eight accelerators with 80 GB. GRPO
needs the prompt file too, and is evaluated on the training questions unless
`--config.data.eval_questions` names others. An evaluation measures vanilla RAG with the same
policy as well (one page for the question, one answer).
"""

from ml_collections import ConfigDict

from configs.paper import grpo_config, sft_config

TASKS = ('evaluate', 'sft', 'grpo')


def get_config(task: str = 'evaluate') -> ConfigDict:
    if task not in TASKS:
        raise ValueError(f'configs/vrag_released.py:TASK: expected one of {TASKS}, got {task!r}')
    mesh = {'data': 1, 'fsdp': -1}
    config = grpo_config('qwen2_5_vl_7b', mesh, rows=8)
    config.sft = sft_config('qwen2_5_vl_7b', mesh, rows=8).sft
    config.task = task
    # What is not trained loses nothing: products are done in bfloat16 anyway.
    config.policy.param_dtype = 'bfloat16' if task == 'evaluate' else 'float32'
    if task == 'evaluate':
        # On one accelerator with 80 GB: 15 GiB of weights, 13 of cache, 13 that a call copies.
        config.sampler.update({
            'slots': 24, 'fewer_slots': (8,), 'prefill_shapes': ((8, 640), (24, 64)),
            'cache_tokens': 24 * (8192 + 2048)})
    # A phase without epochs is neither trained nor planned.
    if task != 'grpo':
        config.grpo.epochs = 0
    if task != 'sft':
        config.sft.epochs = 0
    config.prompt.fallback = ''  # This policy knows one prompt; without it the run is refused.
    config.messages = ConfigDict({
        'page': '<image>', 'crop': '<image>', 'answer_now': '',
    })
    config.environment.update({'max_turns': 5, 'two_step_sizes': True, 'padding': 28})
    config.retrieval = ConfigDict({
        'ocr': False, 'url': '', 'index_dir': '', 'retrievers': ('pages',),
        'embedders': {'pages': {
            'kind': 'colqwen', 'path': 'checkpoints/colqwen2-v1.0-hf', 'dtype': 'bfloat16',
            'batch_tokens': 16_384,
            'visual': {'base': '', 'min_pixels': 0, 'max_pixels': 602_112},
        }},
        # Every page is scored, however many there are.
        'late_interaction': {'exact_below': 10**9, 'tokens': {'storage': 'bfloat16', 'pooling': 1}},
    })
    return config
