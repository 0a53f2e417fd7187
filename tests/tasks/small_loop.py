"""The loop of configs/tiny.py made small for tests: few documents, few steps, one process.

It learns to search and nothing else, so that GRPO sees images. The entropy bonus makes
GRPO move the weights although the rewards of a group are often equal, and its small
learning rate keeps that from undoing the searches.
"""

from ml_collections import ConfigDict

from configs import tiny

# Steps of each phase, in the order in which they come.
STEPS = {'pretrain': 43, 'sft': 6, 'grpo': 5, 'sft_no_crop': 6, 'grpo_no_crop': 5}


def get_config() -> ConfigDict:
    config = tiny.get_config()
    config.data.pageworld.update({
        'train_documents': 6, 'validation_documents': 2, 'test_documents': 3,
        'train_questions': 48, 'validation_questions': 4, 'test_questions': 16,
    })
    config.sampler.update({
        'slots': 8, 'fewer_slots': (), 'max_new_tokens': 32, 'prefill_shapes': ((8, 64),),
        'attend_lengths': ()})
    config.pretrain.update({
        'stages': ((40, 14, 0, 0, 0, 0), (3, 0, 2, 2, 2, 3)), 'save_every': 20})
    config.sft.update({
        'steps': 0, 'epochs': 2, 'sequences': 8, 'trajectories': 24, 'save_every': 2})
    config.grpo.update({
        'steps': 5, 'prompts': 4, 'group_size': 2, 'mini_batches': 2, 'save_every': 2})
    config.grpo.loss.entropy_coef = 0.01
    for learner in (config.pretrain.learner, config.sft.learner, config.grpo.learner):
        learner.rows = 4
        learner.row_buckets = learner.window_buckets = ()
    config.pretrain.learner.update({'lr': 3e-3, 'warmup_steps': 5, 'rows': 1, 'windows': 24})
    config.grpo.learner.lr = 1e-5
    config.grpo.sampling.temperature = 0.5
    config.evaluation.update({'questions': 10, 'report_trajectories': 8})
    return config
