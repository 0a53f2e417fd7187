"""Configs that versions of transformers have saved, and the sizes that they stand for."""

from pathlib import Path
from typing import Any

SAVED = Path(__file__).parent / 'goldens' / 'saved_configs.json'

_IDS = {'image_token_id': 151655, 'video_token_id': 151656, 'vision_start_token_id': 151652,
        'vision_end_token_id': 151653, 'bos_token_id': 151643, 'eos_token_id': 151645}
_7B = {
    'model_type': 'qwen2_5_vl', **_IDS, 'vocab_size': 152064, 'hidden_size': 3584,
    'intermediate_size': 18944, 'num_hidden_layers': 28, 'num_attention_heads': 28,
    'num_key_value_heads': 4, 'rms_norm_eps': 1e-6, 'max_position_embeddings': 128000,
    'rope_theta': 1e6, 'rope_scaling': {'type': 'mrope', 'mrope_section': [16, 24, 24]},
    'tie_word_embeddings': False, 'use_sliding_window': False, 'sliding_window': 32768,
    'max_window_layers': 28,
    'vision_config': {
        'depth': 32, 'hidden_size': 1280, 'intermediate_size': 3420, 'num_heads': 16,
        'in_chans': 3, 'out_hidden_size': 3584, 'patch_size': 14, 'spatial_patch_size': 14,
        'window_size': 112, 'fullatt_block_indexes': [7, 15, 23, 31], 'tokens_per_second': 2,
        'temporal_patch_size': 2},
}
_2B = {
    'model_type': 'qwen2_vl', **_IDS, 'vocab_size': 151936, 'hidden_size': 1536,
    'intermediate_size': 8960, 'num_hidden_layers': 28, 'num_attention_heads': 12,
    'num_key_value_heads': 2, 'rms_norm_eps': 1e-6, 'max_position_embeddings': 32768,
    'rope_theta': 1e6, 'rope_scaling': {'type': 'mrope', 'mrope_section': [16, 24, 24]},
    'tie_word_embeddings': True, 'use_sliding_window': False,
    'vision_config': {
        'depth': 32, 'embed_dim': 1280, 'mlp_ratio': 4, 'num_heads': 16, 'in_chans': 3,
        'hidden_size': 1536, 'patch_size': 14, 'spatial_merge_size': 2,
        'spatial_patch_size': 14, 'temporal_patch_size': 2},
}
# As much as can be is as the classes have it when they are told nothing.
_DEFAULT_TEXT = {
    **_7B, 'num_hidden_layers': 80, 'num_attention_heads': 64, 'num_key_value_heads': 8,
    'intermediate_size': 29568, 'hidden_size': 8192, 'rms_norm_eps': 1e-5,
    'max_position_embeddings': 32768, 'vision_config': {
        'out_hidden_size': 8192, 'hidden_size': 3584, 'tokens_per_second': 4}}

# By name: what was given to the class, with every size.
CASES: dict[str, dict[str, Any]] = {
    'qwen2_5_vl_7b': _7B, 'qwen2_vl_2b': _2B, 'default_text': _DEFAULT_TEXT,
    'colqwen2': {'model_type': 'colqwen2', 'embedding_dim': 128, 'vlm_config': _2B},
}
