"""Random tiny embedders of the parity goldens: configs, tokenizer, weights, inputs, by seed.

Needs neither torch nor jax: what makes the goldens and what is tested both read it.
"""

import json
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from safetensors.numpy import save_file
from tokenizers import AddedToken, Tokenizer, decoders, pre_tokenizers
from tokenizers.models import BPE, WordLevel
from tokenizers.processors import TemplateProcessing

GOLDENS = Path(__file__).parent / 'goldens'
SPECIAL = ('<|endoftext|>', '<|im_start|>', '<|im_end|>', '<|vision_start|>', '<|vision_end|>',
           '<|vision_pad|>', '<|image_pad|>', '<|video_pad|>')
ID = {token: 256 + n for n, token in enumerate(SPECIAL)}
VOCABULARY = 256 + len(SPECIAL) + 8
DIMS = 12
RANK, ALPHA = 4, 6
TARGETS = ('q_proj', 'k_proj', 'v_proj', 'o_proj', 'gate_proj', 'up_proj', 'down_proj')
QUERIES = ('Revenue of 2019?', 'who', 'a somewhat longer question about the chart on the left')
SIZES = ((50, 30), (64, 64), (33, 71), (24, 18))  # Of pages, in pixels.
LIMITS = {'min_pixels': 8 * 64, 'max_pixels': 40 * 64}
WORDS = ('revenue', 'of', 'the', 'chart', 'left', 'page', 'grows', 'query', ':', 'passage')
TEXTS = ('revenue of the page', 'chart', 'the chart left of the page grows the revenue',
         'query : revenue', 'unknown words grow')
# Real sentences for the real MiniLM, one longer than the others by far.
SENTENCES = ('What is the revenue in 2019?', 'hello', 'Net sales grew by 12 % to $4.3 billion.',
             'Naïve café résumés — 中文 too', 'the same word again ' * 40)


def qwen_config(kind: str) -> dict[str, Any]:
    """The `config.json` of a backbone, as published."""
    vision = {'depth': 3, 'num_heads': 2, 'patch_size': 4, 'temporal_patch_size': 2,
              'spatial_merge_size': 2, 'in_channels': 3, 'model_type': kind}
    if kind == 'qwen2_vl':
        vision |= {'embed_dim': 16, 'hidden_size': 32, 'mlp_ratio': 2,
                   'hidden_act': 'quick_gelu'}
    else:
        vision |= {'hidden_size': 16, 'out_hidden_size': 32, 'intermediate_size': 40,
                   'window_size': 16, 'fullatt_block_indexes': [1], 'hidden_act': 'silu'}
    return {
        'model_type': kind, 'vocab_size': VOCABULARY, 'hidden_size': 32, 'intermediate_size': 48,
        'num_hidden_layers': 3, 'num_attention_heads': 2, 'num_key_value_heads': 1,
        'hidden_act': 'silu', 'rms_norm_eps': 1e-6, 'rope_theta': 10000.0,
        'max_position_embeddings': 512, 'tie_word_embeddings': True, 'use_sliding_window': False,
        'rope_scaling': {'type': 'mrope', 'mrope_section': [2, 3, 3]},
        'image_token_id': ID['<|image_pad|>'], 'video_token_id': ID['<|video_pad|>'],
        'vision_start_token_id': ID['<|vision_start|>'],
        'vision_end_token_id': ID['<|vision_end|>'], 'bos_token_id': 0, 'eos_token_id': 1,
        'vision_config': vision,
    }


def bert_config(kind: str) -> dict[str, Any]:
    """The `config.json` of a text encoder."""
    return {
        'model_type': kind, 'vocab_size': len(WORDS) + 4, 'hidden_size': 24,
        'num_hidden_layers': 5, 'num_attention_heads': 3, 'intermediate_size': 40,
        'max_position_embeddings': 24, 'type_vocab_size': 1 if kind == 'xlm-roberta' else 2,
        'layer_norm_eps': 1e-5, 'pad_token_id': 1, 'hidden_act': 'gelu',
    }


def byte_tokenizer() -> Tokenizer:
    """A byte-level tokenizer without merges, with the special tokens that are needed."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(BPE(vocab={c: n for n, c in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(t, special=True, normalized=False) for t in SPECIAL])
    return tokenizer


def word_tokenizer() -> Tokenizer:
    """Words of `WORDS` as tokens, between a first and a last one."""
    vocab = {t: n for n, t in enumerate(('<s>', '<pad>', '</s>', '<unk>', *WORDS))}
    tokenizer = Tokenizer(WordLevel(vocab, unk_token='<unk>'))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = TemplateProcessing(
        single='<s> $A </s>', special_tokens=[('<s>', 0), ('</s>', 2)])
    return tokenizer


def images() -> list[Image.Image]:
    """Pages: smooth random pictures."""
    generator = np.random.default_rng(5)
    return [Image.fromarray(generator.integers(0, 256, (6, 6, 3), np.uint8)).resize(size)
            for size in SIZES]


def weight(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """A random tensor that depends on its name and shape alone."""
    seed = zlib.crc32(f'{name} {tuple(shape)}'.encode())
    noise = np.random.default_rng(seed).standard_normal(shape, np.float32)
    if name.endswith('bias'):
        return 0.3 * noise
    if len(shape) == 1:
        return 1 + 0.2 * noise
    if 'embed' in name and 'proj' not in name:
        return 0.5 * noise
    return noise / np.float32(np.sqrt(np.prod(shape[1:])))


def adapter_weights() -> dict[str, np.ndarray]:
    """A LoRA adapter of the decoder of `qwen_config` and the projection, in PEFT's names."""
    shapes = {'q_proj': (32, 32), 'k_proj': (32, 16), 'v_proj': (32, 16), 'o_proj': (32, 32),
              'gate_proj': (32, 48), 'up_proj': (32, 48), 'down_proj': (48, 32)}
    layers = {'custom_text_proj': (32, DIMS)}
    for layer in range(3):
        for target, shape in shapes.items():
            part = 'self_attn' if target in TARGETS[:4] else 'mlp'
            layers[f'model.layers.{layer}.{part}.{target}'] = shape
    out = {}
    for name, (inputs, outputs) in layers.items():
        for kind, shape in (('A', (RANK, inputs)), ('B', (outputs, RANK))):
            full = f'base_model.model.{name}.lora_{kind}.weight'
            out[full] = weight(full, shape)
    return out


def write_adapter(directory: Path, base: str) -> None:
    """Writes the adapter as colpali-engine does."""
    directory.mkdir(parents=True)
    save_file(adapter_weights(), directory / 'adapter_model.safetensors')
    (directory / 'adapter_config.json').write_text(json.dumps({
        'peft_type': 'LORA', 'task_type': 'FEATURE_EXTRACTION', 'base_model_name_or_path': base,
        'r': RANK, 'lora_alpha': ALPHA, 'lora_dropout': 0.1, 'bias': 'none',
        'fan_in_fan_out': False, 'modules_to_save': None, 'use_dora': False,
        'use_rslora': False,
        'target_modules': f'(.*(model).*({"|".join(TARGETS)}).*$|.*(custom_text_proj).*$)'}))


def write_checkpoint(directory: Path, config: Mapping[str, Any],
                     shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Writes a config and the weights of these tensors."""
    directory.mkdir(parents=True, exist_ok=True)
    (directory / 'config.json').write_text(json.dumps(config))
    save_file({name: weight(name, tuple(shape)) for name, shape in shapes.items()},
              directory / 'model.safetensors', metadata={'format': 'pt'})


def write_processor(directory: Path) -> None:
    """Writes the tokenizer and the image processor of a visual embedder."""
    byte_tokenizer().save(str(directory / 'tokenizer.json'))
    (directory / 'tokenizer_config.json').write_text(json.dumps({
        'tokenizer_class': 'PreTrainedTokenizerFast', 'pad_token': '<|endoftext|>',
        'clean_up_tokenization_spaces': False}))
    (directory / 'preprocessor_config.json').write_text(json.dumps({
        'image_processor_type': 'Qwen2VLImageProcessor', 'patch_size': 4, 'merge_size': 2,
        'temporal_patch_size': 2, **LIMITS}))
