"""What exported policies are tested with: a small checkpoint by seed, a conversation, an image.

Needs neither torch, jax nor this package: both sides of the comparison read it.
"""

import zlib
from pathlib import Path

import numpy as np
from PIL import Image

GOLDENS = Path(__file__).parent / 'goldens'
# A checkpoint as transformers 4.49 saves it, without the weights, which are by seed.
SOURCE = GOLDENS / 'source_checkpoint'
# What versions of transformers have read and made of exported policies.
RECORD = GOLDENS / 'exported_policies.json'
# Files of JSON that stand in each exported policy, as those versions have read them.
EXPORTED = GOLDENS / 'exported'

TEXTS = ['What is in the top left panel of the page?', 'The panel holds 472.', 'search',
         'a region of 12 by 34']
VOCABULARY = 400
QUESTION = 'What is in the top left panel?'
TURN = '<think>A region of the page.</think><bbox>[12, 34, 56, 78]</bbox>'
BEFORE, AFTER = 'The region:', 'Answer or search.'
NEW_TOKENS = 12
MESSAGES = [
    {'role': 'user', 'content': [{'type': 'text', 'text': QUESTION}]},
    {'role': 'assistant', 'content': [{'type': 'text', 'text': TURN}]},
    {'role': 'user', 'content': [
        {'type': 'text', 'text': BEFORE}, {'type': 'image'}, {'type': 'text', 'text': AFTER}]},
]


def image() -> Image.Image:
    """A region at the size at which a policy with patches of 14 pixels sees it."""
    pixels = np.random.default_rng(5).integers(0, 256, (84, 140, 3), np.uint8)
    return Image.fromarray(pixels)


def weight(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """A random tensor that depends on its published name and shape alone."""
    seed = zlib.crc32(f'{name} {shape}'.encode())
    noise = np.random.default_rng(seed).standard_normal(shape, np.float32)
    if name.endswith('bias'):
        return 0.1 * noise
    if len(shape) == 1:
        return 1 + 0.1 * noise
    if 'embed_tokens' in name:
        return 0.5 * noise
    return noise / np.float32(np.sqrt(np.prod(shape[1:])))
