"""Writes a PageWorld to disk once, and reads it back."""

import dataclasses
import hashlib
import json
import os
import random
import shutil
from collections.abc import Mapping
from pathlib import Path

from vrag_jax.corpus.pages import Page, PageStore
from vrag_jax.data.pageworld.config import SPLITS, PageWorldConfig
from vrag_jax.data.pageworld.layout import PageSpec, document_names, sample_document
from vrag_jax.data.pageworld.questions import sample_questions
from vrag_jax.data.pageworld.render import render_page
from vrag_jax.data.records import Question, load_questions, save_questions

# To be raised when the generator draws other pages or questions from a config.
_VERSION = 3
_FINGERPRINT = 'pageworld.json'


@dataclasses.dataclass(frozen=True)
class PageWorld:
    """A PageWorld on disk.

    Attributes:
      manifest: manifest of all pages of all splits, for `PageStore.open`.
      layouts: what stands on each page, by page id.
      questions: questions of each split; splits share no document.
    """

    manifest: Path
    layouts: Mapping[str, PageSpec]
    questions: Mapping[str, list[Question]]


def build(config: PageWorldConfig, out_dir: str | os.PathLike) -> PageWorld:
    """Makes a PageWorld in a folder, unless the same one stands there already.

    The folder appears only when it is complete: what is under way lies beside
    it, and is thrown away by the next call if this one is killed.

    Args:
      config: sizes, splits, difficulty.
      out_dir: folder; an older PageWorld there is replaced.

    Returns:
      The PageWorld, as `load` reads it.

    Raises:
      FileExistsError: if the folder holds something that is no PageWorld.
      ValueError: if the config asks for more than there can be.
    """
    out = Path(out_dir)
    fingerprint = _fingerprint(config)
    if out.exists() and any(out.iterdir()):
        if not (out / _FINGERPRINT).is_file():
            raise FileExistsError(f'{out} is neither empty nor a PageWorld')
        if _is_complete(out, fingerprint):
            return load(out)
    partial = out.with_name(f'.{out.name}.partial')
    shutil.rmtree(partial, ignore_errors=True)
    (partial / 'pages').mkdir(parents=True)
    pages = _write(config, partial)
    (partial / _FINGERPRINT).write_text(
        json.dumps({'fingerprint': fingerprint, 'pages': pages,
                    'config': dataclasses.asdict(config)}, indent=1) + '\n')
    if out.exists():
        shutil.rmtree(out)
    os.replace(partial, out)
    return load(out)


def load(out_dir: str | os.PathLike) -> PageWorld:
    """Reads what `build` wrote.

    Raises:
      FileNotFoundError: if there is no complete PageWorld; says what is missing.
    """
    out = Path(out_dir)
    for name in (_FINGERPRINT, 'pages.jsonl', 'layout.jsonl'):
        if not (out / name).is_file():
            raise FileNotFoundError(f'{out} holds no PageWorld: {name} is missing')
    specs = map(PageSpec.from_json, (out / 'layout.jsonl').read_text().splitlines())
    layouts = {spec.page_id: spec for spec in specs}
    questions = {split: load_questions(out / f'questions_{split}.json') for split in SPLITS}
    return PageWorld(out / 'pages.jsonl', layouts, questions)


def _fingerprint(config: PageWorldConfig) -> str:
    text = json.dumps([_VERSION, dataclasses.asdict(config)], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def _is_complete(out: Path, fingerprint: str) -> bool:
    try:
        record = json.loads((out / _FINGERPRINT).read_text())
        return (record['fingerprint'] == fingerprint
                and len(os.listdir(out / 'pages')) == record['pages']
                and all((out / name).is_file() for name in (
                    'pages.jsonl', 'layout.jsonl', *(f'questions_{s}.json' for s in SPLITS))))
    except (ValueError, KeyError, OSError):
        return False


def _write(config: PageWorldConfig, out: Path) -> int:
    """Writes pages, manifest, layouts and questions; returns how many pages there are."""
    names = iter(document_names(config.seed, sum(config.documents(s) for s in SPLITS)))
    specs: list[PageSpec] = []
    for split in SPLITS:
        documents = [sample_document(config, next(names)) for _ in range(config.documents(split))]
        questions = sample_questions(documents, config.questions(split), config.shares,
                                     random.Random(f'{config.seed}/questions/{split}'))
        save_questions(out / f'questions_{split}.json', questions)
        specs += [page for pages in documents for page in pages]
    (out / 'layout.jsonl').write_text(''.join(spec.to_json() + '\n' for spec in specs))
    pages = []
    for spec in specs:
        file = f'pages/{spec.page_id}.jpg'
        render_page(spec, config).save(out / file, quality=config.jpeg_quality)
        pages.append(Page(spec.page_id, spec.document, spec.page, file, *config.page_size,
                          text=spec.text))
    PageStore.write(out / 'pages.jsonl', pages)
    return len(pages)
