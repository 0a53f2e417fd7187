"""A kind of retriever from outside the package: pages by the words of their headings."""

import dataclasses
import hashlib
import json

import numpy as np

from vrag_jax.retrieval.kinds import register
from vrag_jax.retrieval.retriever import RetrieverKind


@dataclasses.dataclass(frozen=True)
class HeadingConfig:
    """Settings, `config.retrieval.kinds.headings`: a heading is so many words."""

    words: int = 4

    def __post_init__(self):
        if self.words < 1:
            raise ValueError(f'words must be positive, got {self.words}')


@register
class HeadingRetriever(RetrieverKind):
    """Scores a page by the share of a query's words that stand in its heading."""

    name = kind = 'headings'
    settings = HeadingConfig
    reads = frozenset({'text'})

    def __init__(self, headings, config):
        self.headings, self.config = headings, config
        self.ids = tuple(headings)
        self.fingerprint = hashlib.sha256(repr((config, headings)).encode()).hexdigest()

    @classmethod
    def build(cls, pages, config, embedder=None):
        settings = config.kinds['headings']
        return cls({page.page_id: page.text.lower().split()[:settings.words]
                    for page in pages.added}, settings)

    def search(self, queries, k, allowed=None):
        hits = []
        for query in queries:
            words = query.lower().split()
            shares = np.array([sum(w in self.headings[i] for w in words) / max(len(words), 1)
                               for i in self.ids], np.float32)
            shares *= 1 if allowed is None else allowed
            rows = [row for row in np.argsort(-shares, kind='stable')[:k] if shares[row]]
            hits.append(([self.ids[row] for row in rows], shares[rows]))
        return [ids for ids, _ in hits], [scores for _, scores in hits]

    def updated(self, changes):
        kept = [self.ids[row] for row in changes.kept_rows(self.ids)]
        headings = {page_id: self.headings[page_id] for page_id in kept} | {
            page.page_id: page.text.lower().split()[:self.config.words] for page in changes.added}
        return HeadingRetriever({i: headings[i] for i in changes.order or headings}, self.config)

    def matches(self, config, embedder=None):
        return self.config == config.kinds['headings']

    def write_files(self, folder):
        (folder / 'headings.json').write_text(json.dumps(self.headings))
        return {'words': self.config.words}

    @classmethod
    def load(cls, folder, fields, embedders=()):
        return cls(json.loads((folder / 'headings.json').read_text()),
                   HeadingConfig(fields['words']))
