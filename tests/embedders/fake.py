"""An embedder without a model: a page's words decide its vectors."""

import hashlib
import time
import zlib

import numpy as np


class WordEmbedder:
    """A random unit vector a word, or their mean.

    Attributes:
      embedded: ids of the pages that it has embedded, in order.
    """

    kind = 'words'
    dims = 8
    reads = 'text'

    def __init__(self, multi_vector=True, fingerprint='words', seconds=0.0, wrong=None):
        self.multi_vector = multi_vector
        self.fingerprint = fingerprint
        self.tokens_read = 0
        self.embedded = []
        self._seconds, self._wrong = seconds, wrong or (lambda page, rows: rows)

    def embed_pages(self, pages):
        time.sleep(self._seconds)
        self.embedded += [page.page_id for page in pages]
        return [self._wrong(page, self._vectors(page.text)) for page in pages]

    def embed_queries(self, queries):
        return [self._vectors(query) for query in queries]

    def input_digest(self, page):
        return hashlib.sha256(page.text.encode()).hexdigest()

    def _vectors(self, text):
        words = text.split() or ['']
        self.tokens_read += len(words)
        rows = np.stack([np.random.default_rng(zlib.crc32(word.encode())).standard_normal(8)
                         for word in words]).astype(np.float32)
        rows = rows if self.multi_vector else rows.mean(0, keepdims=True)
        return rows / np.linalg.norm(rows, axis=1, keepdims=True)
