"""What the runs with the paper's settings share (VRAG-RL, arXiv 2505.22019).

Not a run: `sft_3b.py`, `sft_7b.py`, `grpo_3b.py` and `grpo_7b.py` are. What the
paper leaves to the machine is laid out for eight accelerators with 80 GB each;
`--config.task=plan` prints what each of them will hold.
"""

from ml_collections import ConfigDict

INSTRUCTION = """\
Answer a question about a collection of document pages. You see a page only after searching for it.

In every turn, first think inside <think> and </think>: what is known, what is missing, and where \
it may stand. Then do exactly one of these:
{actions}
Look closer before you read off small print, and answer once you are sure.

Question: {question}"""

LARGEST_IMAGE = 512 * 28 * 28  # Pixels; 512 tokens.
# 512 tokens take at most 64 attention windows, as a strip of 2 x 256 tokens: 8 a window.
LARGEST_SPAN, TOKENS_A_WINDOW = 64, 8


def paper_config(task: str, preset: str, mesh: dict[str, int]) -> ConfigDict:
    """Returns what SFT and GRPO share.

    Args:
      task: 'sft' or 'grpo'.
      preset: sizes of the policy, for a plan without its checkpoint.
      mesh: devices along `fsdp` and `tensor`; the rest are `data`. `tensor` is the
        number of key heads (2 in 3B, 4 in 7B): it splits what a long row takes.
    """
    config = ConfigDict()
    config.task = task
    config.seed = 0
    config.actions = ('search', 'bbox', 'answer')
    # Of a policy that brings none: one after SFT brings the prompt of its conversations.
    config.prompt = ConfigDict({
        'text': '', 'file': '', 'system': '', 'fallback': INSTRUCTION, 'may_differ': False,
    })
    config.distributed = ConfigDict({
        'cluster': 'auto', 'coordinator': '', 'processes': 0, 'process': -1,
        'heartbeat_s': 30, 'start_timeout_s': 300,
    })
    config.mesh = ConfigDict({
        'data': -1, 'fsdp': 1, 'sequence': 1, 'tensor': 1,
        'learner_rules': (), 'sampler_rules': (), **mesh,
    })
    config.policy = ConfigDict({
        'preset': preset, 'checkpoint': '',
        'dtype': 'bfloat16', 'param_dtype': 'float32', 'remat': 'attention',
        'attention': 'auto', 'quantization': '', 'adapter': '',
        'lora': {'rank': 0, 'alpha': 32.0, 'dropout': 0.0, 'targets': (
            'q_proj', 'k_proj', 'v_proj', 'o_proj', 'gate_proj', 'up_proj', 'down_proj')},
    })
    config.compile = ConfigDict({'topology': '', 'memory_gib': 0.0, 'programs': ()})
    config.data = ConfigDict({
        'source': 'files', 'manifest': '', 'train_questions': '', 'eval_questions': '',
        'trajectories': '', 'image_root': '',
    })
    config.retrieval = ConfigDict({'ocr': True, 'url': ''})
    config.environment = ConfigDict({
        # Four turns and the closing one, which is asked for the answer.
        'max_turns': 5, 'search_results': 10, 'search_chars': 2048,
        'min_pixels': 256 * 28 * 28, 'max_pixels': LARGEST_IMAGE, 'two_step_sizes': False,
        'padding': 0, 'allow_image_index': False,
    })
    config.vision_features = ConfigDict({'windows': (LARGEST_SPAN, 256), 'span': LARGEST_SPAN})
    config.judge = ConfigDict({
        'base_url': '', 'model': '', 'rule': 'exact', 'prompt': '', 'prompt_file': '',
        'correct': '', 'incorrect': '', 'api_key_env': '', 'timeout_s': 60.0, 'attempts': 4,
        'concurrency': 16,
    })
    return config


def sft_config(preset: str, mesh: dict[str, int], rows: int) -> ConfigDict:
    """Returns supervised fine-tuning of the language model, the vision tower frozen.

    Args:
      preset, mesh: see `paper_config`.
      rows: packed rows a micro-batch, a multiple of `data * fsdp`.
    """
    config = paper_config('sft', preset, mesh)
    config.vision_features.rows = 131072
    config.sft = ConfigDict({
        # 32 conversations a step: 16 and two accumulation steps, in the paper's terms.
        'epochs': 3, 'steps': 0, 'sequences': 32, 'save_every': 50,
        'learner': {
            'lr': 1e-5, 'schedule': 'cosine', 'warmup_fraction': 0.1, 'weight_decay': 0.0,
            'clip_norm': 1.0, 'frozen': '^visual/', 'rows': rows, 'length': 16384,
            # Of images, where the vision tower is trained as well (`frozen=''`): the fullest
            # row that there can be, of strips that fill an eighth of their windows.
            'windows': 16384 // TOKENS_A_WINDOW, 'span': LARGEST_SPAN,
        },
    })
    return config


def grpo_config(preset: str, mesh: dict[str, int], rows: int) -> ConfigDict:
    """Returns GRPO: 32 questions, five trajectories each.

    Args:
      preset, mesh, rows: see `sft_config`.
    """
    config = paper_config('grpo', preset, mesh)
    # A token is decoded with all weights: where the learner gathers a layer's over `fsdp`
    # once for thousands of tokens, the sampler splits or keeps them.
    config.mesh.sampler_rules = (
        ('embed', ()), ('mlp', ('fsdp', 'tensor')), ('vocab', ('fsdp', 'tensor')))
    prompts, group_size, mini_batches = 32, 5, 5
    trajectories = prompts * group_size
    # Every trajectory of an iteration, each with an image in all turns but the last.
    config.vision_features.rows = trajectories * (config.environment.max_turns - 1) * 512
    config.sampler = ConfigDict({
        # 8192 tokens of prompt and observations, 2048 of replies. Half of the trajectories
        # decode at a time; the cache holds 160 of them with a third of the greatest length.
        'slots': 80, 'fewer_slots': (16,), 'max_length': 8192 + 2048, 'max_new_tokens': 2048,
        'decode_tokens': 128, 'refill': 0.25, 'prefill_shapes': ((8, 640), (32, 64)),
        'attend_lengths': (2048, 4096, 6144), 'block_size': 64,
        'cache_tokens': trajectories * 3456, 'cache_dtype': 'bfloat16',
    })
    config.grpo = ConfigDict({
        # Mini-batches of 32 trajectories: 4 a device. In bfloat16 the sampler's log-probs are
        # not quite the learner's, so the learner works them out anew ('auto').
        'epochs': 1, 'steps': 0, 'prompts': prompts, 'group_size': group_size,
        'mini_batches': mini_batches, 'save_every': 10, 'sampling': {'temperature': 1.0},
        # A mean over trajectories of means over tokens: the script's micro-batches hold one.
        'loss': {'clip_low': 0.2, 'clip_high': 0.2, 'kl_coef': 0.01, 'entropy_coef': 0.0,
                 'averaging': 'sequence'},
    })
    config.grpo.learner = ConfigDict({
        # Five iterations of warm-up, as the script's five steps are. The script also trains
        # the vision tower; here it is frozen, as in SFT, so that an image is encoded once for
        # all who look at it. `--config.grpo.learner.frozen=` trains it.
        'lr': 1e-6, 'schedule': 'constant', 'warmup_steps': 5 * mini_batches,
        'weight_decay': 0.01, 'clip_norm': 1.0, 'frozen': '^visual/', 'rows': rows,
        'length': 8192 + 2048,
        'windows': (8192 + 2048) // TOKENS_A_WINDOW, 'span': LARGEST_SPAN,
    })
    config.reward = ConfigDict({
        'weights': {'answer': 0.7, 'retrieval': 0.2, 'pattern': 0.1}, 'gate': 'pattern',
    })
    config.evaluation = ConfigDict({
        'questions': 0, 'sampling': {'temperature': 0.0}, 'vanilla_pages': 1,
        'report_trajectories': 12,
    })
    return config


def lora_config(preset: str, slots: int, quantization: str = '') -> ConfigDict:
    """Returns GRPO that trains adapters, on one accelerator.

    Args:
      preset: sizes of the policy.
      slots: sequences that decode at a time; the cache holds that many of full length.
      quantization: of the frozen base.
    """
    config = grpo_config(preset, mesh={}, rows=1)
    config.policy.param_dtype = 'bfloat16'
    config.policy.quantization = quantization
    config.policy.lora.rank, config.policy.lora.alpha = 32, 64.0
    config.grpo.learner.lr = 1e-5
    # The images of about 30 trajectories; those of others are encoded again.
    config.vision_features.update({'rows': 65536, 'windows': (64,)})
    config.sampler.update({
        'slots': slots, 'fewer_slots': (), 'prefill_shapes': ((1, 640), (slots, 64)),
        'cache_tokens': slots * (8192 + 2048)})
    return config
