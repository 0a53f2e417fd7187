"""The whole loop on one machine, from random weights: PageWorld, 1.5M parameters.

Pretraining (searching, reading crops, finding headings, whole episodes), SFT on
trajectories of three scripted experts, GRPO, the same training without the crop
action, evaluation on held-out documents, report. Needs nothing but this repository
and half an hour on two CPU cores; the README has its results.

    python -m vrag_jax.main --config=configs/tiny.py --workdir=runs/tiny
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    config = ConfigDict()
    config.task = 'loop'
    config.seed = 0
    config.actions = ('search', 'bbox', 'answer')
    config.prompt = ConfigDict({
        'text': '', 'file': '', 'system': '', 'fallback': '{question}', 'may_differ': False,
    })
    config.vision_features = ConfigDict({
        'rows': 65536, 'windows': (4, 8, 16, 32), 'span': 4,
    })

    config.distributed = ConfigDict({
        'cluster': 'auto', 'coordinator': '', 'processes': 0, 'process': -1,
        'heartbeat_s': 30, 'start_timeout_s': 300,
    })
    config.compile = ConfigDict({'topology': '', 'memory_gib': 0.0, 'programs': ()})
    config.mesh = ConfigDict({'data': -1, 'fsdp': 1, 'tensor': 1})
    config.policy = ConfigDict({
        'preset': 'tiny', 'checkpoint': '', 'tokenizer_vocab': 640,
        'dtype': 'float32', 'param_dtype': 'float32', 'remat': 'none',
    })

    config.data = ConfigDict({'source': 'pageworld'})
    config.data.pageworld = ConfigDict({
        'seed': 23,
        'train_documents': 500, 'validation_documents': 20, 'test_documents': 60,
        'train_questions': 4000, 'validation_questions': 80, 'test_questions': 240,
        'heading_height': 80, 'body_size': (32, 32), 'cell_pitch': 9, 'digit_height': 10,
        'body_jitter': 0.03, 'panel_jitter': 2, 'grain': 30,
    })

    # Of a search service (`configs/serve_index.py`); '' searches in this process.
    config.retrieval = ConfigDict({'url': ''})

    config.environment = ConfigDict({
        'max_turns': 6, 'search_results': 10, 'search_chars': 2048,
        'min_pixels': 16 * 28 * 28, 'max_pixels': 16 * 28 * 28,
        'padding': 0, 'allow_image_index': False, 'page_cache': 4096,
    })
    config.messages = ConfigDict({
        'page': '<image>', 'crop': '<image>',
        'invalid': 'invalid', 'nothing_new': 'nothing new', 'answer_now': 'answer now',
    })
    config.sampler = ConfigDict({
        'slots': 64, 'fewer_slots': (16,), 'max_length': 384, 'max_new_tokens': 48,
        'decode_tokens': 32, 'refill': 0.5, 'prefill_shapes': ((64, 32), (16, 32)),
        'attend_lengths': (128, 192, 256), 'block_size': 16, 'cache_tokens': 160 * 256,
    })

    learner = {
        'algorithm': 'adamw', 'schedule': 'cosine', 'end_fraction': 0.1, 'warmup_steps': 50,
        'b2': 0.98, 'weight_decay': 0.01, 'clip_norm': 1.0,
    }
    config.pretrain = ConfigDict({
        'stages': ((200, 16, 48, 0, 0, 0), (250, 8, 0, 34, 18, 0), (800, 2, 0, 24, 6, 16)),
        'save_every': 200,
        'learner': {
            **learner, 'algorithm': 'muon', 'lr': 4e-3, 'warmup_steps': 30,
            # At a tenth of the peak, where SFT ends, some seeds have not learnt to read.
            'schedule': 'linear', 'end_fraction': 0.0,
            'length': 576, 'span': 1, 'rows': 6, 'windows': 80,
            'row_buckets': (2, 1), 'window_buckets': (40, 20)},
    })
    config.sft = ConfigDict({
        'steps': 250, 'sequences': 48, 'trajectories': 3000, 'save_every': 100,
        'careful': 0.7, 'loose': 0.15, 'hasty': 0.15,
        'learner': {**learner, 'lr': 3e-4, 'frozen': '^visual/', 'rows': 8,
                    'row_buckets': (2, 1), 'length': 384},
    })
    config.grpo = ConfigDict({
        'steps': 60, 'prompts': 32, 'group_size': 5, 'mini_batches': 2, 'save_every': 10,
        # In float32 the sampler's log-probs are the learner's to 1e-5 (`drift_max`).
        'old_logprobs': 'sampler',
        'sampling': {'temperature': 1.0},
        'loss': {'clip_low': 0.2, 'clip_high': 0.28, 'kl_coef': 0.01},
    })
    config.grpo.learner = ConfigDict({
        **learner, 'lr': 3e-4, 'warmup_steps': 5, 'schedule': 'linear',
        'frozen': '^visual/', 'length': 384, 'rows': 8, 'row_buckets': (2, 1),
    })
    config.reward = ConfigDict({
        'weights': {'answer': 0.7, 'retrieval': 0.2, 'pattern': 0.1}, 'gate': 'pattern',
    })
    config.evaluation = ConfigDict({
        'questions': 240, 'sampling': {'temperature': 1.0}, 'vanilla_pages': 1,
        'report_trajectories': 12,
    })
    return config
