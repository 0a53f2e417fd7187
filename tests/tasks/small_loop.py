"""The loop of configs/tiny.py made small for tests: few documents, few steps, one process.

It learns nothing. The entropy bonus makes GRPO move the weights although every
reward is equal.
"""

from ml_collections import ConfigDict

from configs import tiny


def get_config() -> ConfigDict:
    config = tiny.get_config()
    config.data.pageworld.update({
        'train_documents': 6, 'validation_documents': 2, 'test_documents': 3,
        'train_questions': 48, 'validation_questions': 4, 'test_questions': 16,
    })
    config.sampler.update({
        'slots': 8, 'max_new_tokens': 24, 'prefill_lengths': (128,), 'attend_lengths': ()})
    config.pretrain.update({'stages': ((2, 2, 4, 0, 0, 0), (3, 0, 0, 3, 2, 3)), 'save_every': 2})
    config.sft.update({'steps': 5, 'sequences': 8, 'trajectories': 24, 'save_every': 2})
    config.grpo.update({
        'steps': 5, 'prompts': 4, 'group_size': 2, 'mini_batches': 2, 'save_every': 2})
    config.grpo.loss.entropy_coef = 0.01
    for learner in (config.pretrain.learner, config.sft.learner, config.learner):
        learner.rows = 8
        learner.fewer_rows = ()
    config.evaluation.update({'questions': 10, 'report_trajectories': 8})
    return config
