"""The random tiny models of the parity goldens: sizes, weights, inputs, by seed."""

import dataclasses
import zlib
from collections.abc import Mapping
from pathlib import Path

import numpy as np

GOLDENS = Path(__file__).parent / 'goldens'
IMAGE_TOKEN, VIDEO_TOKEN, VISION_START, VISION_END = 90, 91, 92, 93
VOCABULARY = 97
GRADIENT_SAMPLES = 64
Grid = tuple[int, int, int]


@dataclasses.dataclass(frozen=True)
class Case:
    """One random model and a batch whose rows have 0, 1 and 3 images.

    Grids are in patches. With windows of `window_units` merged tokens a side,
    most do not divide into whole windows; for Qwen2-VL these lie in memory only.
    """

    name: str
    heads: int
    kv_heads: int
    tied: bool
    patch: int
    window_units: int
    vision_depth: int
    full_layers: tuple[int, ...]
    rows: tuple[tuple[Grid, ...], ...]
    yarn: dict | None = None
    family: str = 'qwen2_5_vl'

    def hf_config(self) -> dict:
        """The model's `config.json`, in the published layout."""
        return {
            'model_type': self.family, 'vocab_size': VOCABULARY, 'hidden_size': 16 * self.heads,
            'intermediate_size': 72, 'num_hidden_layers': 3,
            'num_attention_heads': self.heads, 'num_key_value_heads': self.kv_heads,
            'hidden_act': 'silu', 'rms_norm_eps': 1e-6, 'rope_theta': 10000.0,
            'max_position_embeddings': 512, 'tie_word_embeddings': self.tied,
            'use_sliding_window': False,
            'rope_scaling': {'type': 'mrope', 'mrope_section': [2, 3, 3], **(self.yarn or {})},
            'image_token_id': IMAGE_TOKEN, 'video_token_id': VIDEO_TOKEN,
            'vision_start_token_id': VISION_START, 'vision_end_token_id': VISION_END,
            'bos_token_id': 0, 'eos_token_id': 1,
            'vision_config': {
                'model_type': self.family, 'depth': self.vision_depth, 'num_heads': 2,
                'in_channels': 3, 'patch_size': self.patch, 'temporal_patch_size': 2,
                'spatial_merge_size': 2, **self._own_vision_fields(),
            },
        }

    def _own_vision_fields(self) -> dict:
        width = 16 * self.heads
        if self.family == 'qwen2_vl':
            return {'embed_dim': 32, 'hidden_size': width, 'mlp_ratio': 3,
                    'hidden_act': 'quick_gelu'}
        return {'hidden_size': 32, 'intermediate_size': 40, 'out_hidden_size': width,
                'window_size': self.window_units * self.patch * 2,
                'fullatt_block_indexes': list(self.full_layers), 'hidden_act': 'silu'}

    @property
    def grids(self) -> list[Grid]:
        """All images of the batch in order."""
        return [grid for row in self.rows for grid in row]

    def pixels(self) -> list[np.ndarray]:
        """Patches of each image, `[h * w, patch_dim]`."""
        generator = np.random.default_rng(zlib.crc32(self.name.encode()))
        size = 3 * 2 * self.patch**2
        return [generator.standard_normal((h * w, size), np.float32) for _, h, w in self.grids]

    def row_tokens(self) -> list[np.ndarray]:
        """Token ids of each row: text, and placeholders between vision markers."""
        generator = np.random.default_rng(zlib.crc32(self.name.encode()) + 1)
        rows = []
        for grids in self.rows:
            row = list(generator.integers(2, IMAGE_TOKEN, generator.integers(3, 9)))
            for _, h, w in grids:
                row += [VISION_START] + [IMAGE_TOKEN] * (h * w // 4) + [VISION_END]
                row += list(generator.integers(2, IMAGE_TOKEN, generator.integers(2, 6)))
            rows.append(np.asarray(row, np.int32))
        return rows

    def batch(self) -> tuple[np.ndarray, np.ndarray]:
        """Tokens `[B, T]` padded on the right, and which of them are real."""
        rows = self.row_tokens()
        width = max(len(row) for row in rows)
        tokens = np.zeros((len(rows), width), np.int32)
        real = np.zeros((len(rows), width), bool)
        for number, row in enumerate(rows):
            tokens[number, : len(row)] = row
            real[number, : len(row)] = True
        return tokens, real

    def loss_mask(self) -> np.ndarray:
        """`[B, T]` float32, 1 where the next token counts in the masked loss."""
        tokens, real = self.batch()
        generator = np.random.default_rng(zlib.crc32(self.name.encode()) + 2)
        mask = generator.random(tokens.shape) < 0.6
        mask[:, :-1] &= real[:, 1:] & (tokens[:, 1:] < IMAGE_TOKEN)
        mask[:, -1] = False
        return mask.astype(np.float32)


CASES = (
    Case('mha_tied', heads=2, kv_heads=2, tied=True, patch=2, window_units=4, vision_depth=2,
         full_layers=(1,), rows=((), ((1, 6, 10),), ((1, 8, 8), (1, 2, 14), (1, 10, 4)))),
    Case('gqa2_untied', heads=4, kv_heads=2, tied=False, patch=2, window_units=2, vision_depth=3,
         full_layers=(0, 2), rows=(((1, 6, 6),), (), ((1, 4, 4), (1, 10, 6), (1, 2, 2)))),
    Case('gqa4_untied', heads=4, kv_heads=1, tied=False, patch=4, window_units=4, vision_depth=4,
         full_layers=(1, 3), rows=(((1, 12, 6), (1, 6, 12), (1, 4, 18)), (), ((1, 18, 4),))),
    Case('gqa4_tied', heads=8, kv_heads=2, tied=True, patch=14, window_units=4, vision_depth=2,
         full_layers=(1,), rows=((), ((1, 8, 8), (1, 4, 6), (1, 8, 4)), ((1, 2, 8),))),
    # Positions go beyond those that it says it was trained on.
    Case('yarn', heads=4, kv_heads=2, tied=True, patch=2, window_units=4, vision_depth=2,
         full_layers=(1,), rows=((), ((1, 8, 8), (1, 4, 6), (1, 8, 4)), ((1, 2, 8),)),
         yarn={'type': 'yarn', 'factor': 4.0, 'original_max_position_embeddings': 16}),
    # Every layer of this tower sees whole images.
    Case('qwen2_vl_tied', heads=4, kv_heads=1, tied=True, patch=2, window_units=4,
         vision_depth=2, full_layers=(0, 1), family='qwen2_vl',
         rows=((), ((1, 6, 10),), ((1, 8, 8), (1, 2, 14), (1, 10, 20)))),
    Case('qwen2_vl_untied', heads=4, kv_heads=2, tied=False, patch=14, window_units=4,
         vision_depth=3, full_layers=(0, 1, 2), family='qwen2_vl',
         rows=(((1, 12, 6), (1, 6, 12)), (), ((1, 18, 4),))),
)
# What Qwen recommends for long contexts; goldens hold the frequencies.
PUBLISHED_YARN = {'type': 'yarn', 'mrope_section': [16, 24, 24], 'factor': 4.0,
                  'original_max_position_embeddings': 32768}

# Adapters that PEFT has saved, by folder, and the cases that they are of.
ADAPTED = {'adapter': CASES[1], 'adapter_qwen2_vl': CASES[-1]}
ADAPTER = {'rank': 4, 'alpha': 6.0, 'targets': ('q_proj', 'v_proj', 'o_proj', 'down_proj')}


def weight(case: Case, name: str, shape: tuple[int, ...]) -> np.ndarray:
    """A random tensor that depends on the case, the name and the shape alone.

    Scales are large enough for attention to be far from uniform.
    """
    seed = zlib.crc32(f'{case.name} {name} {shape}'.encode())
    noise = np.random.default_rng(seed).standard_normal(shape, np.float32)
    if name.endswith('bias'):
        return 0.3 * noise
    if len(shape) == 1:
        return 1 + 0.2 * noise
    if 'embed_tokens' in name:
        return 0.3 * noise
    return noise / np.float32(np.sqrt(np.prod(shape[1:])))


def weights(case: Case, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, np.ndarray]:
    """All tensors of a case under their published names."""
    return {name: weight(case, name, tuple(shape)) for name, shape in shapes.items()}


def gradient_sample(gradient: np.ndarray) -> np.ndarray:
    """What a golden keeps of a gradient: evenly spaced entries and the norm."""
    flat = np.asarray(gradient, np.float32).reshape(-1)
    places = np.linspace(0, len(flat) - 1, min(GRADIENT_SAMPLES, len(flat))).astype(int)
    return np.append(flat[places], np.linalg.norm(flat)).astype(np.float32)
