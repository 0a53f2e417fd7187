"""Policies exported as a run exports them, and their greedy continuation by this package."""

import json
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from safetensors.numpy import save_file
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from configs import tiny
from tests.tasks import export_cases as cases
from vrag_jax.config import parse
from vrag_jax.data.chat import ChatFormat
from vrag_jax.data.prompt import Prompt
from vrag_jax.data.tiny_tokenizer import train_tiny_tokenizer
from vrag_jax.models.common import hf_checkpoint
from vrag_jax.models.common.config import ModelConfig
from vrag_jax.models.common.images import ImagePreprocessor
from vrag_jax.models.common.mrope import rope_index
from vrag_jax.models.common.parameters import flat_params, merge
from vrag_jax.models.common.patch_packing import pack_images
from vrag_jax.models.common.tokenizer import load_tokenizer
from vrag_jax.models.families import family_of, image_spec, read_config
from vrag_jax.models.qwen2_5_vl.model import Qwen2_5_VL
from vrag_jax.run.context import RunContext
from vrag_jax.run.outputs import export_policy
from vrag_jax.run.run_config import RunConfig


def write_source(directory: Path) -> Path:
    """Writes the small checkpoint that transformers 4.49 saved, with its weights by seed."""
    shutil.copytree(cases.SOURCE, directory)
    config = read_config(directory)
    shapes = flat_params(nnx.eval_shape(lambda: Qwen2_5_VL(config, rngs=nnx.Rngs(0))))[1]
    save_file({name: cases.weight(name, shape) for name, shape in
               family_of(config).weights(config).expected_shapes(shapes).items()},
              directory / 'model.safetensors', metadata={'format': 'pt'})
    return directory


def workspace(workdir: Path, **policy) -> RunContext:
    """Of a run that does not need its corpus: its tokenizer is there already.

    Args:
      workdir: of the run.
      **policy: changes of `configs/tiny.py`'s policy.
    """
    values = tiny.get_config()
    values.policy.update(policy)
    if not values.policy.checkpoint:
        train_tiny_tokenizer(cases.TEXTS, cases.VOCABULARY, workdir / 'tokenizer')
    return RunContext(parse(RunConfig, values), workdir)


def export(space: RunContext) -> Path:
    """Exports the policy that a run starts with."""
    export_policy(space, space.initial_params(), Prompt('{question}'))
    return space.workdir / 'policy'


def sizes(directory: Path) -> ModelConfig:
    """Sizes of an exported policy, with the scale of its processor's pixels."""
    config = read_config(directory)
    family = family_of(config)
    return family.with_processor(config, family.load_processor(directory))


def conversation(directory: Path) -> tuple[list[int], np.ndarray, tuple[int, int, int]]:
    """Token ids of the conversation as episodes append them, and its image's patches."""
    chat = ChatFormat(load_tokenizer(directory))
    preprocess = ImagePreprocessor(Qwen2VLImageProcessorPil.from_pretrained(directory),
                                   image_spec(sizes(directory)))
    shown, = preprocess([cases.image()])
    ids = [*chat.prompt_ids(cases.QUESTION), *chat.encode(cases.TURN),
           *chat.observation_ids(cases.BEFORE, shown.tokens, cases.AFTER)]
    return ids, shown.patches, shown.grid_thw


def continuation(directory: Path) -> tuple[np.ndarray, list[int]]:
    """Logits after the conversation and its greedy continuation, in float32.

    Args:
      directory: of an exported policy.

    Returns:
      `[vocabulary]` logits, and at most `NEW_TOKENS` ids, up to one that ends a turn.
    """
    model = hf_checkpoint.load(directory, sizes(directory))
    graphdef, params = flat_params(model)
    ids, pixels, grid = conversation(directory)
    ends = json.loads((directory / 'generation_config.json').read_text())['eos_token_id']
    length = len(ids) + cases.NEW_TOKENS
    patches = pack_images([(pixels, grid)], model.config)

    @jax.jit
    def logits(params, tokens, positions, index, real, last):
        model = merge(graphdef, params)
        hidden = model.hidden_states(
            tokens, positions, segment_ids=real, image_index=index,
            image_features=model.encode_images(patches))
        return model.logits(hidden[:, last])[0]

    first, new = None, []
    while len(new) < cases.NEW_TOKENS and not (new and new[-1] in ends):
        row = np.array(ids + new)
        padded = np.zeros((1, length), np.int32)
        padded[0, : len(row)] = row
        positions = np.zeros((3, 1, length), np.int32)
        positions[:, 0, : len(row)], _ = rope_index(row, [grid], model.config)
        is_image = padded == model.config.image_token_id
        index = np.where(is_image, np.cumsum(is_image, axis=1) - 1, -1)
        out = logits(params, padded, positions, index.astype(np.int32),
                     (np.arange(length)[None] < len(row)).astype(np.int32), len(row) - 1)
        first = out if first is None else first
        new.append(int(jnp.argmax(out)))
    return np.asarray(first), new
