"""The side of `check_transformers.py` that runs where torch and transformers are.

Needs neither jax nor this package; from the repository:

    python -m tests.tasks.transformers_side load DIRECTORY RESULT
    python -m tests.tasks.transformers_side resave DIRECTORY TARGET
    python -m tests.tasks.transformers_side make_source TOKENIZER

`load` loads an exported policy and writes what it has read and computed. `resave` saves a
model as this version of transformers does. `make_source` makes `export_cases.SOURCE` anew, with
transformers 4.49, the version that strips configs.
"""

import json
import shutil
import sys
from pathlib import Path

import torch

# A torchvision built for another torch lacks its operators on boxes and refuses to be
# imported; image processors, for which it is needed here, use none of them.
try:
    import torchvision  # noqa: F401
except RuntimeError:
    for name in ('nms', 'qnms'):
        torch.library.define(f'torchvision::{name}', '(Tensor a, Tensor b, float c) -> Tensor')

import transformers
from transformers import (
    AutoProcessor,
    AutoTokenizer,
    GenerationConfig,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
)

from tests.tasks import export_cases as cases


def load(directory: Path) -> dict:
    """Loads a policy, and continues the conversation greedily in float32."""
    opened: set[str] = set()

    def watch(event: str, args: tuple) -> None:
        if event == 'open' and isinstance(args[0], str):
            path = Path(args[0])
            if path.parent == directory:
                opened.add(path.name)

    sys.addaudithook(watch)
    tokenizer = AutoTokenizer.from_pretrained(directory)
    processor = AutoProcessor.from_pretrained(directory)
    model, info = Qwen2_5_VLForConditionalGeneration.from_pretrained(
        directory, torch_dtype='auto', attn_implementation='eager', output_loading_info=True)
    faults = {name: sorted(names) for name, names in info.items() if names}
    if faults:
        raise SystemExit(f'{directory}: {faults}')
    dtype = str(model.dtype).removeprefix('torch.')
    model = model.float().eval()
    text = processor.apply_chat_template(cases.MESSAGES, add_generation_prompt=True)
    if text != tokenizer.apply_chat_template(
            cases.MESSAGES, add_generation_prompt=True, tokenize=False):
        raise SystemExit(f'{directory}: processor and tokenizer have different chat templates')
    inputs = processor(text=[text], images=[cases.image()], return_tensors='pt')
    with torch.no_grad():
        # The policy's own ids that end a turn; what else a published file asks of sampling
        # is not greedy.
        out = model.generate(
            **inputs, max_new_tokens=cases.NEW_TOKENS, do_sample=False, temperature=None,
            top_p=None, top_k=None, repetition_penalty=1.0, output_logits=True,
            return_dict_in_generate=True)
    prompt = inputs['input_ids'][0].tolist()
    return {
        'files': sorted(opened),
        'dtype': dtype,
        'tokenizer': type(tokenizer).__name__.removesuffix('Fast'),
        'image_processor': type(processor.image_processor).__name__,
        'end_ids': model.generation_config.eos_token_id,
        'prompt': prompt,
        'pixels': [float(inputs['pixel_values'].mean()), float(inputs['pixel_values'].std())],
        'logits': [round(float(x), 5) for x in out.logits[0][0]],
        'continuation': out.sequences[0, len(prompt):].tolist(),
    }


def resave(directory: Path, target: Path) -> None:
    """Saves a checkpoint's model, but not its tokenizer and processor."""
    Qwen2_5_VLForConditionalGeneration.from_pretrained(
        directory, torch_dtype='auto').save_pretrained(target)


def make_source(tokenizer: Path) -> None:
    """Saves a random model with transformers 4.49, and forgets its weights."""
    if not transformers.__version__.startswith('4.49.'):
        raise SystemExit(f'needs transformers 4.49, found {transformers.__version__}')
    shutil.rmtree(cases.SOURCE, ignore_errors=True)
    processor = AutoProcessor.from_pretrained(tokenizer)
    ids = processor.tokenizer.convert_tokens_to_ids
    config = Qwen2_5_VLConfig(
        vocab_size=cases.VOCABULARY, hidden_size=64, intermediate_size=96, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, rms_norm_eps=1e-6, rope_theta=10000.0,
        max_position_embeddings=4096, tie_word_embeddings=False, torch_dtype='bfloat16',
        rope_scaling={'type': 'mrope', 'mrope_section': [2, 3, 3]}, max_window_layers=2,
        image_token_id=ids('<|image_pad|>'), video_token_id=ids('<|video_pad|>'),
        vision_start_token_id=ids('<|vision_start|>'),
        vision_end_token_id=ids('<|vision_end|>'), vision_token_id=ids('<|vision_pad|>'),
        bos_token_id=ids('<|endoftext|>'), eos_token_id=ids('<|im_end|>'),
        # The rest is the class's own, and left out of the file.
        vision_config={'hidden_size': 64, 'intermediate_size': 96, 'out_hidden_size': 64,
                       'tokens_per_second': 2})
    model = Qwen2_5_VLForConditionalGeneration(config).bfloat16()
    model.generation_config = GenerationConfig(
        bos_token_id=config.bos_token_id, pad_token_id=config.bos_token_id, do_sample=True,
        eos_token_id=[config.eos_token_id, config.bos_token_id], repetition_penalty=1.05,
        temperature=1e-6)
    model.save_pretrained(cases.SOURCE)
    processor.save_pretrained(cases.SOURCE)
    for file in cases.SOURCE.glob('*.safetensors'):
        file.unlink()


def main():
    print(transformers.__version__, flush=True)
    command, *paths = sys.argv[1], *map(Path, sys.argv[2:])
    if command == 'make_source':
        make_source(*paths)
    elif command == 'resave':
        resave(*paths)
    else:
        directory, result = paths
        result.write_text(json.dumps(
            {'version': transformers.__version__, **load(directory.resolve())}))


if __name__ == '__main__':
    main()
