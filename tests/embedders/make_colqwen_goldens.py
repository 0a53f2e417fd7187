"""Makes the ColQwen goldens with colpali-engine, the library that has trained the weights.

Needs an environment of its own with torch, colpali-engine and the transformers of its time,
neither jax nor this package. The goldens in the repository are of colpali-engine 0.3.5 with
transformers 4.46.3 and peft 0.11.1 (ColQwen2; vidore/colqwen2-v1.0 asks for more than 0.3.4), and
of 0.3.10 with transformers 4.51.3 and peft 0.15.2 (ColQwen2.5; the reference's search engine pins
the state seven commits later). From the repository:

    python -m tests.embedders.make_colqwen_goldens colqwen2
    python -m tests.embedders.make_colqwen_goldens colqwen2_5

In the environment of another version this prints how far its vectors are from the stored ones:

    python -m tests.embedders.make_colqwen_goldens colqwen2 --compare

With `--transformers` the same weights, merged and converted as vidore/colqwen2-v1.0-hf is, run in
transformers' own ColQwen2ForRetrieval (4.53 and later).
"""

import argparse
import importlib.metadata
import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tests.embedders import colqwen_cases as cases

CLASSES = {'colqwen2': ('ColQwen2', 'ColQwen2Processor'),
           'colqwen2_5': ('ColQwen2_5', 'ColQwen2_5_Processor')}


def engine(kind: str, folder: Path) -> tuple[Callable[..., torch.Tensor], Any]:
    """colpali-engine's model, an adapter of its base, and processor."""
    from colpali_engine import models

    model_class, processor_class = (getattr(models, name) for name in CLASSES[kind])
    cases.write_checkpoint(folder / 'base', folder / 'adapter', kind)
    model = model_class.from_pretrained(folder / 'adapter', torch_dtype=torch.float32)
    return model.eval(), processor_class.from_pretrained(folder / 'adapter')


def transformers(folder: Path) -> tuple[Callable[..., torch.Tensor], Any]:
    """transformers' model, with the same weights, and processor."""
    from transformers import ColQwen2ForRetrieval, ColQwen2Processor

    cases.write_converted(folder / 'hf')
    model = ColQwen2ForRetrieval.from_pretrained(folder / 'hf', torch_dtype=torch.float32).eval()
    keys = 'input_ids', 'attention_mask', 'pixel_values', 'image_grid_thw'
    return (lambda **batch: model(**{k: batch[k] for k in keys if k in batch}).embeddings,
            ColQwen2Processor.from_pretrained(folder / 'hf'))


@torch.no_grad()
def golden(model: Callable[..., torch.Tensor], processor: Any) -> dict[str, np.ndarray]:
    """Vectors, token ids and image grids of what `colqwen_cases` holds."""
    names = ('colpali-engine', 'transformers', 'peft', 'torch')
    out = {'versions': np.array(json.dumps({n: importlib.metadata.version(n) for n in names}))}
    pages = processor.process_images(cases.images())
    queries = processor.process_queries(list(cases.QUERIES))
    for name, batch in (('page', pages), ('query', queries)):
        vectors, mask = model(**batch), batch['attention_mask'].bool()
        assert not vectors[~mask].any(), 'vectors of padding must be zero'
        for number, real in enumerate(mask):
            out[f'{name}:{number}'] = vectors[number][real].numpy()
            out[f'{name}_ids:{number}'] = batch['input_ids'][number][real].numpy()
    # A page is the same in a batch as alone, whatever the padding on its left.
    for number, image in enumerate(cases.images()):
        alone = model(**processor.process_images([image]))[0].numpy()
        np.testing.assert_allclose(alone, out[f'page:{number}'], atol=1e-5)
    out['grids'] = np.array([processor.process_images([image])['image_grid_thw'][0].tolist()
                             for image in cases.blank_images()])
    return out


def compare(made: dict[str, np.ndarray], stored: dict[str, np.ndarray]) -> None:
    """Prints how far two goldens are apart."""
    for name in sorted(stored):
        a, b = made[name], stored[name]
        if name == 'versions':
            print(a, 'against', b)
        elif a.shape != b.shape:
            print(f'{name}: shape {a.shape} against {b.shape}')
        elif a.dtype.kind == 'f':
            print(f'{name}: largest difference {np.abs(a - b).max():.1e}, '
                  f'least cosine {(a * b).sum(1).min():.4f}')
        elif (a != b).any():
            print(f'{name}: {a.tolist()} against {b.tolist()}')


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument('kind', choices=CLASSES)
    parser.add_argument('--compare', action='store_true')
    parser.add_argument('--transformers', action='store_true')
    args = parser.parse_args()
    file = cases.GOLDENS / f'{args.kind}_engine.npz'
    with tempfile.TemporaryDirectory() as folder:
        made = golden(*(transformers(Path(folder)) if args.transformers
                        else engine(args.kind, Path(folder))))
    if args.compare or args.transformers:
        with np.load(file) as stored:
            compare(made, dict(stored))
    else:
        np.savez_compressed(file, **made)
        print(file, {k: v.shape for k, v in made.items()})


if __name__ == '__main__':
    main()
