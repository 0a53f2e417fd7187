"""A random checkpoint of the published layout, small enough to train, for runs that need one."""

import json
from pathlib import Path

from flax import nnx
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from vrag_jax.data.tiny_tokenizer import train_tiny_tokenizer
from vrag_jax.models.common import hf_checkpoint
from vrag_jax.models.families import preset
from vrag_jax.models.qwen2_5_vl.model import Qwen2_5_VL

# As in Qwen2.5-VL's: a default system turn, images between vision tokens.
TEMPLATE = (
    "{% for message in messages %}{% if loop.first and message['role'] != 'system' %}"
    '<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n{% endif %}'
    "<|im_start|>{{ message['role'] }}\n{% if message['content'] is string %}"
    "{{ message['content'] }}<|im_end|>\n{% else %}{% for content in message['content'] %}"
    "{% if content['type'] == 'image' %}<|vision_start|><|image_pad|><|vision_end|>"
    "{% elif 'text' in content %}{{ content['text'] }}{% endif %}{% endfor %}<|im_end|>\n"
    '{% endif %}{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}')
# What a configuration class of transformers fills in by itself where a file leaves it out.
DEFAULTS = ('in_channels', 'in_chans', 'patch_size', 'spatial_patch_size', 'temporal_patch_size',
            'spatial_merge_size', 'window_size', 'hidden_act', 'tokens_per_second')


def write_checkpoint(directory: Path, texts: list[str]) -> None:
    """Writes weights, config, tokenizer and processor.

    Args:
      directory: to make.
      texts: the tokenizer is trained on.
    """
    tokenizer = train_tiny_tokenizer(texts * 20, 640, directory.with_name('tokenizer'))
    tokenizer.chat_template = TEMPLATE
    ids = {f'{name}_token_id': tokenizer.convert_tokens_to_ids(token) for name, token in (
        ('image', '<|image_pad|>'), ('video', '<|video_pad|>'), ('bos', '<|endoftext|>'),
        ('eos', '<|im_end|>'), ('vision_start', '<|vision_start|>'),
        ('vision_end', '<|vision_end|>'))}
    config = preset('tiny', vocab_size=-(-len(tokenizer) // 64) * 64, **ids)
    hf_checkpoint.save(Qwen2_5_VL(config, rngs=nnx.Rngs(0)), directory)
    tokenizer.save_pretrained(directory)
    Qwen2VLImageProcessorPil(min_pixels=4 * 28 * 28, max_pixels=16384 * 28 * 28).save_pretrained(
        directory)
    file = directory / 'config.json'
    stripped = json.loads(file.read_text())
    for name in DEFAULTS:
        stripped['vision_config'].pop(name, None)
    file.write_text(json.dumps(stripped))
