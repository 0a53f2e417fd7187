"""The reference's way to score pages: all of them, batch by batch, in torch; run by Python path.

As `score_multi_vector` of colpali-engine does: queries and pages in batches of 128, pages
padded to the longest of theirs, one einsum for all products, the maximum over a page's
tokens, the sum over a query's. Imports nothing of vrag_jax.
"""

import json
import sys
import time
from pathlib import Path

import numpy as np
import torch

BATCH = 128


def main(folder: Path, threads: int) -> None:
    torch.set_num_threads(threads)
    tokens = np.load(folder / 'tokens.npy', mmap_mode='r')
    offsets = np.load(folder / 'offsets.npy')
    queries = torch.from_numpy(np.load(folder / 'queries.npy')).float()
    pages = [torch.from_numpy(np.array(tokens[a:b])) for a, b in zip(
        offsets[:-1], offsets[1:], strict=True)]  # Held as float16, scored as float32.
    with torch.no_grad():
        score(queries, pages[:BATCH])
        start = time.process_time()
        scores = torch.cat([score(queries[i:i + BATCH], pages)
                            for i in range(0, len(queries), BATCH)])
        seconds = time.process_time() - start
    exact = np.load(folder / 'exact.npy')
    best = np.argsort(-exact, axis=1, kind='stable')[:, :10]
    theirs = np.argsort(-scores.numpy(), axis=1, kind='stable')[:, :10]
    same = np.mean([len(np.intersect1d(a, b)) / 10 for a, b in zip(best, theirs, strict=True)])
    print(json.dumps({'torch_cpu_ms': seconds / len(queries) * 1e3,
                      'torch_same_top10': float(same)}))


def score(queries: torch.Tensor, pages: list[torch.Tensor]) -> torch.Tensor:
    parts = []
    for start in range(0, len(pages), BATCH):
        batch = torch.nn.utils.rnn.pad_sequence(
            [page.float() for page in pages[start:start + BATCH]], batch_first=True)
        parts.append(torch.einsum('bnd,csd->bcns', queries, batch).max(dim=3)[0].sum(dim=2))
    return torch.cat(parts, dim=1)


if __name__ == '__main__':
    main(Path(sys.argv[1]), int(sys.argv[2]))
