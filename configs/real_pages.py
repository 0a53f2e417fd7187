"""The loop over real slide pages: index, SFT on evidence boxes, two GRPO updates, report.

Shows the whole path on pages of up to 5334 x 3000 pixels with the tiny policy
that `make run` has trained (its pages look different, so its answers are no
measure of anything). Prints the retrieval quality on the questions. Needs the
extra `ocr`, because the pages have no text, and a few minutes for reading them
once.

    python -m vrag_jax.main --config=configs/real_pages.py --workdir=runs/real_pages \\
        --config.data.manifest=PAGES.jsonl --config.data.train_questions=QUESTIONS.json

The paths default to data that lies beside the repository, in `../shared`.
"""

from pathlib import Path

from ml_collections import ConfigDict

from configs import tiny

_PAGES = Path(__file__).resolve().parents[2] / 'shared' / 'real_pages'


def get_config() -> ConfigDict:
    config = tiny.get_config()
    config.task = 'grpo'
    config.policy.checkpoint = 'runs/tiny/policy'
    # The questions come with evidence boxes: from them the policy learns to search
    # with such questions and to zoom into such pages.
    config.evidence_sft = True
    config.sft.update({'steps': 120, 'sequences': 24, 'save_every': 60})
    rows = {'rows': 8, 'row_buckets': (2,), 'length': 1280}
    config.sft.learner.update({'algorithm': 'muon', 'lr': 4e-3, **rows})

    config.data = ConfigDict({
        'source': 'files',
        'manifest': str(_PAGES / 'pages.jsonl'),
        'train_questions': str(_PAGES / 'questions.json'),
        'eval_questions': '',
    })
    config.retrieval = ConfigDict({'ocr': True, 'url': ''})

    # A question of 30 Chinese characters takes 90 tokens of the tiny tokenizer.
    config.sampler.update({
        'slots': 40, 'max_length': 640, 'max_new_tokens': 128,
        'attend_lengths': (256, 384, 512), 'cache_tokens': 0})
    config.grpo.update({'steps': 2, 'prompts': 8, 'mini_batches': 1, 'save_every': 1})
    config.grpo.learner.update(rows)
    config.evaluation.update({'questions': 40})
    return config
