"""Makes the embedders' parity goldens with transformers in torch.

Needs torch and transformers, neither jax nor this package; from the repository:

    python -m tests.embedders.make_goldens [directory of all-MiniLM-L6-v2]

The directory is that of `vrag_jax.embedders.text_embedder.wheel_directory`.
"""

import json
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
from safetensors import safe_open
from transformers import (
    AutoTokenizer,
    BertModel,
    ColQwen2Config,
    ColQwen2ForRetrieval,
    ColQwen2Processor,
    PreTrainedTokenizerFast,
    Qwen2_5_VLConfig,
    Qwen2_5_VLModel,
    XLMRobertaModel,
)
from transformers.models.bert.configuration_bert import BertConfig
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil
from transformers.models.xlm_roberta.configuration_xlm_roberta import XLMRobertaConfig

from tests.embedders import golden_cases as cases

PAGE = ('<|im_start|>user\n<|vision_start|><|image_pad|><|vision_end|>Describe the image.'
        '<|im_end|><|endoftext|>')
CHAT = ('<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\n{}'
        '<|im_end|>\n<|im_start|>assistant\n')


def with_seeded_weights(model, folder: Path):
    """The model, read back from a file with the seeded weights, and the shapes in the file."""
    model.save_pretrained(folder)
    with safe_open(folder / 'model.safetensors', 'numpy') as file:
        shapes = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}
    cases.write_checkpoint(folder, json.loads((folder / 'config.json').read_text()), shapes)
    return type(model).from_pretrained(folder, dtype=torch.float32).eval(), shapes


def processor_parts():
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=cases.byte_tokenizer(), pad_token='<|endoftext|>')
    tokenizer.image_token, tokenizer.video_token = '<|image_pad|>', '<|video_pad|>'
    tokenizer.image_token_id, tokenizer.video_token_id = (
        cases.ID[t] for t in ('<|image_pad|>', '<|video_pad|>'))
    image_processor = Qwen2VLImageProcessorPil(
        patch_size=4, merge_size=2, temporal_patch_size=2, **cases.LIMITS)
    return image_processor, tokenizer


def rows(name, values, mask):
    """A golden's arrays: real rows of each item."""
    return {f'{name}:{i}': value[real.bool()].numpy()
            for i, (value, real) in enumerate(zip(values, mask, strict=True))}


def colqwen2(folder: Path):
    """`ColQwen2ForRetrieval` on what `ColQwen2Processor` makes of pages and queries."""
    config = ColQwen2Config(vlm_config=cases.qwen_config('qwen2_vl'), embedding_dim=cases.DIMS)
    model, shapes = with_seeded_weights(ColQwen2ForRetrieval(config), folder)
    processor = ColQwen2Processor(*processor_parts())
    out = {'config': np.array((folder / 'config.json').read_text()),
           'shapes': np.array(json.dumps(shapes))}
    for name, batch in (('page', processor.process_images(cases.images())),
                        ('query', processor.process_queries(list(cases.QUERIES)))):
        mask = batch['attention_mask']
        keys = ('input_ids', 'attention_mask', 'pixel_values', 'image_grid_thw')
        vectors = model(**{k: v for k, v in batch.items() if k in keys}).embeddings
        out |= rows(name, vectors, mask) | rows(f'{name}_ids', batch['input_ids'], mask)
    return out


def qwen2_5(folder: Path, projected: bool):
    """`Qwen2_5_VLModel` with left padding: ColQwen2.5 with its adapter apart, or last token."""
    model, shapes = with_seeded_weights(
        Qwen2_5_VLModel(Qwen2_5_VLConfig(**cases.qwen_config('qwen2_5_vl'))), folder)
    project = None
    if projected:
        for name in ('weight', 'bias'):
            shapes[f'custom_text_proj.{name}'] = (
                (cases.DIMS, 32) if name == 'weight' else (cases.DIMS,))
        project = torch.nn.Linear(32, cases.DIMS)
        with torch.no_grad():
            for name, parameter in project.named_parameters():
                full = f'custom_text_proj.{name}'
                parameter.copy_(torch.from_numpy(cases.weight(full, tuple(parameter.shape))))
        adapter = {k: torch.from_numpy(v) for k, v in cases.adapter_weights().items()}
        add_adapter(project, adapter, 'custom_text_proj')
        for name, module in model.language_model.named_modules():
            if name.rpartition('.')[2] in cases.TARGETS:
                add_adapter(module, adapter, f'model.{name}')
    prompt = PAGE if projected else CHAT.format('<|vision_start|><|image_pad|><|vision_end|>')
    image_processor, tokenizer = processor_parts()
    tokenizer.padding_side = 'left'
    processor = ColQwen2Processor(image_processor, tokenizer, visual_prompt_prefix=prompt)
    pages = processor.process_images(cases.images())
    grids = pages['image_grid_thw']
    pages['pixel_values'] = torch.cat(
        [p[: int(n)] for p, n in zip(pages['pixel_values'], grids.prod(-1), strict=True)])
    suffix = '<|endoftext|>' * 10
    queries = tokenizer(
        [f'Query: {q}{suffix}' if projected else CHAT.format(q) for q in cases.QUERIES],
        padding='longest', return_tensors='pt')
    out = {'shapes': np.array(json.dumps(shapes))}
    for name, batch in (('page', pages), ('query', queries)):
        ids, mask = batch['input_ids'], batch['attention_mask']
        images = {}
        if name == 'page':
            images = {'pixel_values': batch['pixel_values'], 'image_grid_thw': grids,
                      'mm_token_type_ids': (ids == cases.ID['<|image_pad|>']).int()}
        hidden = model(input_ids=ids, attention_mask=mask, **images).last_hidden_state
        if project is None:
            vectors = torch.nn.functional.normalize(hidden[:, -1:], dim=-1)
            out |= rows(name, vectors, torch.ones(len(ids), 1))
        else:
            out |= rows(name, torch.nn.functional.normalize(project(hidden), dim=-1), mask)
        out |= rows(f'{name}_ids', ids, mask)
    return out


def add_adapter(layer: torch.nn.Linear, adapter, name: str) -> None:
    """Adds `scale B A x` to what a layer returns, as PEFT does where it does not merge."""
    a, b = (adapter[f'base_model.model.{name}.lora_{kind}.weight'] for kind in 'AB')
    scale = cases.ALPHA / cases.RANK
    layer.register_forward_hook(lambda module, args, result: result + args[0] @ a.T @ b.T * scale)


def text(folder: Path, kind: str):
    """Hidden states of each text of a batch padded on the right."""
    config, cls = ((XLMRobertaConfig, XLMRobertaModel) if kind == 'xlm-roberta'
                   else (BertConfig, BertModel))
    model, shapes = with_seeded_weights(cls(config(**cases.bert_config(kind))), folder)
    encoded = [cases.word_tokenizer().encode(t).ids for t in cases.TEXTS]
    width = max(map(len, encoded))
    ids = torch.tensor([row + [1] * (width - len(row)) for row in encoded])
    mask = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in encoded])
    hidden = model(input_ids=ids, attention_mask=mask).last_hidden_state
    return {'shapes': np.array(json.dumps(shapes)), **rows('text', hidden, mask)}


def minilm(directory: str):
    """Unit vectors of the real MiniLM: mean over tokens, at most 256 of them."""
    tokenizer = AutoTokenizer.from_pretrained(directory)
    model = BertModel.from_pretrained(directory).eval()
    batch = tokenizer(list(cases.SENTENCES), padding='longest', truncation=True, max_length=256,
                      return_tensors='pt')
    hidden, mask = model(**batch).last_hidden_state, batch['attention_mask'][..., None]
    mean = (hidden * mask).sum(1) / mask.sum(1)
    return {'vectors': torch.nn.functional.normalize(mean, dim=-1).numpy()}


@torch.no_grad()
def main():
    cases.GOLDENS.mkdir(exist_ok=True)
    made = {'colqwen2': colqwen2, 'colqwen2_5': lambda f: qwen2_5(f, True),
            'last_token': lambda f: qwen2_5(f, False), 'bert': lambda f: text(f, 'bert'),
            'xlm-roberta': lambda f: text(f, 'xlm-roberta')}
    if len(sys.argv) > 1:
        made['minilm'] = lambda folder: minilm(sys.argv[1])
    for name, make in made.items():
        with tempfile.TemporaryDirectory() as folder:
            golden = make(Path(folder))
        np.savez_compressed(cases.GOLDENS / f'{name}.npz', **golden)
        print(name, {k: v.shape for k, v in golden.items() if v.shape}, flush=True)


if __name__ == '__main__':
    main()
