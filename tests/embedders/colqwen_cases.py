"""A tiny ColQwen2 and ColQwen2.5 as colpali-engine publishes them, for its goldens.

The structure is that of vidore/colqwen2-base and vidore/colqwen2-v1.0, vidore/colqwen2.5-base
and vidore/colqwen2.5-v0.2: names of tensors, fields of configs, patches of 14 pixels; sizes are
tiny, weights random by name, the tokenizer one of bytes. Needs neither torch nor jax.
"""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from safetensors.numpy import save_file

from tests.embedders import golden_cases as tiny

GOLDENS = tiny.GOLDENS
QUERIES = ('Revenue of 2019?', 'who')
DIMS = 128  # Fixed in colpali-engine.
SIZES = ((140, 84), (61, 200), (40, 30))  # Of pages, in pixels; the last has too few.
# Of pages whose image tokens are counted; the first two are those of real_pages.
GRID_SIZES = ((1024, 768), (5334, 3000), (3000, 5334), (1240, 1754), (612, 792), (2000, 90),
              (900, 900), (40, 30))
MAX_PIXELS = 768 * 28 * 28
TEXT = {'hidden_size': 32, 'intermediate_size': 48, 'num_hidden_layers': 3,
        'num_attention_heads': 2, 'num_key_value_heads': 1}

_CONVERTED_NAMES = {'custom_text_proj': 'embedding_proj_layer', 'visual': 'vlm.model.visual',
                    'model': 'vlm.model.language_model'}
CONVERTED = re.compile(r'^(custom_text_proj|visual|model)')


def config(kind: str) -> dict[str, Any]:
    """The `config.json` of a base."""
    model_type = {'colqwen2': 'qwen2_vl', 'colqwen2_5': 'qwen2_5_vl'}[kind]
    stored = tiny.qwen_config(model_type)
    if kind == 'colqwen2':
        vision = {'depth': 2, 'embed_dim': 16, 'num_heads': 2, 'mlp_ratio': 2,
                  'hidden_size': 32, 'in_chans': 3, 'model_type': model_type,
                  'spatial_patch_size': 14}
    else:
        vision = {**stored['vision_config'], 'depth': 2, 'patch_size': 14, 'window_size': 56,
                  'spatial_patch_size': 14, 'in_chans': 3}
    return {**stored, 'architectures': ['ColQwen2' if kind == 'colqwen2' else 'ColQwen2_5'],
            'rope_theta': 1e6, 'vision_config': vision,
            'rope_scaling': {'mrope_section': [2, 3, 3], 'rope_type': 'default',
                             'type': 'default'}}


def base_shapes(kind: str) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the base's tensors; `[outputs, inputs]` of layers."""
    shapes: dict[str, tuple[int, ...]] = {
        'model.embed_tokens.weight': (tiny.VOCABULARY, 32), 'model.norm.weight': (32,),
        'lm_head.weight': (tiny.VOCABULARY, 32), 'custom_text_proj.weight': (DIMS, 32),
        'custom_text_proj.bias': (DIMS,), 'visual.patch_embed.proj.weight': (16, 3, 2, 14, 14),
        'visual.merger.mlp.0.weight': (64, 64), 'visual.merger.mlp.0.bias': (64,),
        'visual.merger.mlp.2.weight': (32, 64), 'visual.merger.mlp.2.bias': (32,),
        'visual.merger.ln_q.weight': (16,)}
    for layer in range(3):
        prefix = f'model.layers.{layer}'
        for name, (inputs, outputs) in adapted_layers().items():
            shapes[f'{prefix}.{name}.weight'] = (outputs, inputs)
            if name.endswith(('q_proj', 'k_proj', 'v_proj')):
                shapes[f'{prefix}.{name}.bias'] = (outputs,)
        for name in ('input_layernorm', 'post_attention_layernorm'):
            shapes[f'{prefix}.{name}.weight'] = (32,)
    second = kind == 'colqwen2'
    if second:
        shapes['visual.merger.ln_q.bias'] = (16,)
    for block in range(2):
        prefix = f'visual.blocks.{block}'
        mlp = ({'fc1': (32, 16), 'fc2': (16, 32)} if second
               else {'gate_proj': (40, 16), 'up_proj': (40, 16), 'down_proj': (16, 40)})
        layers = {'attn.qkv': (48, 16), 'attn.proj': (16, 16),
                  **{f'mlp.{name}': shape for name, shape in mlp.items()}}
        for name, shape in layers.items():
            shapes[f'{prefix}.{name}.weight'] = shape
            shapes[f'{prefix}.{name}.bias'] = shape[:1]
        for name in ('norm1', 'norm2'):
            shapes[f'{prefix}.{name}.weight'] = (16,)
            if second:
                shapes[f'{prefix}.{name}.bias'] = (16,)
    return shapes


def adapted_layers() -> dict[str, tuple[int, int]]:
    """Inputs and outputs of a decoder layer's projections."""
    return {'self_attn.q_proj': (32, 32), 'self_attn.k_proj': (32, 16),
            'self_attn.v_proj': (32, 16), 'self_attn.o_proj': (32, 32),
            'mlp.gate_proj': (32, 48), 'mlp.up_proj': (32, 48), 'mlp.down_proj': (48, 32)}


def adapter_weights() -> dict[str, np.ndarray]:
    """The adapter's tensors: of all projections of the decoder and of `custom_text_proj`."""
    layers = {'custom_text_proj': (32, DIMS)}
    for layer in range(3):
        layers |= {f'model.layers.{layer}.{name}': shape
                   for name, shape in adapted_layers().items()}
    out = {}
    for name, (inputs, outputs) in layers.items():
        for half, shape in (('A', (tiny.RANK, inputs)), ('B', (outputs, tiny.RANK))):
            full = f'base_model.model.{name}.lora_{half}.weight'
            out[full] = tiny.weight(full, shape)
    return out


def adapter_config(base: str) -> dict[str, Any]:
    """The `adapter_config.json` of vidore/colqwen2-v1.0, of this rank."""
    return {
        'alpha_pattern': {}, 'auto_mapping': None, 'base_model_name_or_path': base,
        'bias': 'none', 'fan_in_fan_out': False, 'inference_mode': True,
        'init_lora_weights': 'gaussian', 'layer_replication': None, 'layers_pattern': None,
        'layers_to_transform': None, 'loftq_config': {}, 'lora_alpha': tiny.ALPHA,
        'lora_dropout': 0.1, 'megatron_config': None, 'megatron_core': 'megatron.core',
        'modules_to_save': None, 'peft_type': 'LORA', 'r': tiny.RANK, 'rank_pattern': {},
        'revision': None, 'target_modules':
        '(.*(model).*(down_proj|gate_proj|up_proj|k_proj|q_proj|v_proj|o_proj).*$'
        '|.*(custom_text_proj).*$)',
        'task_type': 'FEATURE_EXTRACTION', 'use_dora': False, 'use_rslora': False}


def preprocessor_config(max_pixels: int = MAX_PIXELS) -> dict[str, Any]:
    """The `preprocessor_config.json` beside a checkpoint."""
    return {
        'do_convert_rgb': True, 'do_normalize': True, 'do_rescale': True, 'do_resize': True,
        'image_mean': [0.48145466, 0.4578275, 0.40821073],
        'image_processor_type': 'Qwen2VLImageProcessor',
        'image_std': [0.26862954, 0.26130258, 0.27577711], 'max_pixels': max_pixels,
        'merge_size': 2, 'min_pixels': 3136, 'patch_size': 14,
        'processor_class': 'ColQwen2Processor', 'resample': 3,
        'rescale_factor': 0.00392156862745098,
        'size': {'longest_edge': max_pixels, 'shortest_edge': 3136}, 'temporal_patch_size': 2}


def write_checkpoint(base: Path, adapter: Path | None, kind: str) -> None:
    """Writes a base, its adapter if asked for, and the processor's files to both."""
    tiny.write_checkpoint(base, config(kind), base_shapes(kind))
    if adapter is not None:
        adapter.mkdir(parents=True)
        save_file(adapter_weights(), adapter / 'adapter_model.safetensors',
                  metadata={'format': 'pt'})
        (adapter / 'adapter_config.json').write_text(json.dumps(adapter_config(str(base))))
    for folder in (base, adapter):
        if folder is not None:
            write_processor(folder)


def merged_weights(kind: str) -> dict[str, np.ndarray]:
    """The base's tensors with the adapter merged, in the base's names."""
    adapter = adapter_weights()
    out = {}
    for name, shape in base_shapes(kind).items():
        out[name] = tiny.weight(name, shape)
        a, b = (adapter.get(f'base_model.model.{name.removesuffix(".weight")}.lora_{half}.weight')
                for half in 'AB')
        if a is not None and b is not None:
            out[name] = out[name] + tiny.ALPHA / tiny.RANK * b @ a
    return out


def write_merged(folder: Path, kind: str) -> None:
    """Writes the whole model as vidore/colqwen2-v1.0-merged is."""
    folder.mkdir(parents=True)
    (folder / 'config.json').write_text(json.dumps(config(kind)))
    save_file(merged_weights(kind), folder / 'model.safetensors', metadata={'format': 'pt'})
    write_processor(folder)


def write_converted(folder: Path) -> None:
    """Writes the whole ColQwen2 in transformers' format, as vidore/colqwen2-v1.0-hf is."""
    folder.mkdir(parents=True)
    (folder / 'config.json').write_text(json.dumps({
        'architectures': ['ColQwen2ForRetrieval'], 'model_type': 'colqwen2',
        'embedding_dim': DIMS, 'vlm_config': config('colqwen2')}))
    weights = {}
    for name, value in merged_weights('colqwen2').items():
        if name != 'lm_head.weight':  # Tied to the embedding.
            weights[CONVERTED.sub(lambda m: _CONVERTED_NAMES[m[0]], name)] = value
    save_file(weights, folder / 'model.safetensors', metadata={'format': 'pt'})
    write_processor(folder)


def write_processor(folder: Path) -> None:
    """Writes the tokenizer and the image processor."""
    tiny.byte_tokenizer().save(str(folder / 'tokenizer.json'))
    (folder / 'tokenizer_config.json').write_text(json.dumps({
        'tokenizer_class': 'Qwen2Tokenizer', 'pad_token': '<|endoftext|>',
        'eos_token': '<|im_end|>', 'clean_up_tokenization_spaces': False,
        'model_max_length': 32768, 'processor_class': 'ColQwen2Processor'}))
    (folder / 'preprocessor_config.json').write_text(json.dumps(preprocessor_config()))


def images() -> list[Image.Image]:
    """Pages: smooth random pictures."""
    generator = np.random.default_rng(6)
    return [Image.fromarray(generator.integers(0, 256, (7, 7, 3), np.uint8)).resize(size)
            for size in SIZES]


def blank_images() -> list[Image.Image]:
    """Pages of `GRID_SIZES`."""
    return [Image.new('RGB', size, 'white') for size in GRID_SIZES]
