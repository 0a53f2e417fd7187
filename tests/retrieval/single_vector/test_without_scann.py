"""Where ScaNN is not installed vectors are searched exactly; only what needs it refuses.

A process of its own has none, see `without_scann` of the tests' conftest.
"""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.corpus.page_stores import needs_scann
from tests.retrieval.late_interaction.test_retriever import PLAIN, build
from tests.retrieval.single_vector.stored import load, save
from tests.retrieval.single_vector.test_index import QUANTISED, TREE, clustered, names
from vrag_jax.retrieval.single_vector.exact_search import ExactSearcher
from vrag_jax.retrieval.single_vector.index import ScannIndex

ROOT = Path(__file__).resolve().parents[3]
REASON = "No module named 'scann'"

SEARCH = """
import json, logging, sys
from pathlib import Path
import numpy as np
from tests.retrieval.single_vector.test_index import EXACT, QUANTISED, TREE, clustered, names
from tests.retrieval.single_vector.stored import load, save
from vrag_jax.retrieval.single_vector.index import ScannIndex

logging.basicConfig(level=logging.INFO, format='%(message)s')
config = {'exact': EXACT, 'quantised': QUANTISED, 'tree': TREE}[sys.argv[1]]
folder = Path(sys.argv[2])
vectors, queries = clustered(700, 24), clustered(90, 24, seed=1)
vectors[300:350] = vectors[:50]  # Equal hits.
index = ScannIndex.build(vectors, names(700), config=config, keep_vectors=False)
save(index, folder)
deleted = ['page 699', 'page 3']
changed = index.updated(clustered(40, 24, seed=2), [f'new {i}' for i in range(40)], deleted)
hits = [i.search_batched(queries, k, allowed) for i, k, allowed in (
    (index, 10, None), (index, 700, None), (index, 10, np.arange(700) % 3 == 0),
    (changed, 10, None), (load(folder), 10, None))]
print(json.dumps([[ids, [row.tolist() for row in scores]] for ids, scores in hits]))
"""

LOAD = """
import json, sys
from pathlib import Path
from tests.retrieval.single_vector.test_index import clustered
from tests.retrieval.single_vector.stored import load
from vrag_jax.corpus.artifact import ArtifactError
try:
    index = load(Path(sys.argv[1]))
    hits, _ = index.search_batched(clustered(30, 24, seed=1), 10)
    print(json.dumps([index.exact, index.ids, hits]))
except ArtifactError as error:
    print(json.dumps(str(error)))
"""

LATE = """
import json
from tests.retrieval.late_interaction.test_retriever import PLAIN, build
retriever = build(PLAIN)
print(json.dumps([retriever.exact, retriever.search(['w31 w32 w40', 'w100 w101'], 5)[0]]))
"""


def printed(code, *arguments, env=None):
    """What a Python process prints as JSON, and its log."""
    done = subprocess.run([sys.executable, '-c', code, *map(str, arguments)], cwd=ROOT, env=env,
                          capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout), done.stderr


@pytest.mark.parametrize('config', ['exact', 'quantised', 'tree'])
def test_hits_are_those_of_scann_by_brute_force(config, without_scann, tmp_path):
    here, _ = printed(SEARCH, 'exact', tmp_path / 'here')
    there, log = printed(SEARCH, config, tmp_path / 'there', env=without_scann)
    for (ids, scores), (other_ids, other_scores) in zip(here, there, strict=True):
        assert other_ids == ids
        for a, b in zip(scores, other_scores, strict=True):
            np.testing.assert_array_equal(b, a)
    assert [line for line in log.splitlines() if 'ScaNN' in line] == [
        f'ScaNN is missing ({REASON}): vectors are searched exactly']


@needs_scann
def test_a_stored_quantised_index_is_searched_exactly_if_it_kept_its_vectors(
        without_scann, tmp_path):
    vectors, queries = clustered(600, 24), clustered(30, 24, seed=1)
    index = ScannIndex.build(vectors, names(600), config=TREE)
    index = index.updated(clustered(20, 24, seed=5), [f'new {i}' for i in range(20)],
                          ['page 7', 'page 599'])
    save(index, tmp_path)
    assert not index.exact
    kept = np.delete(vectors, [7, 599], axis=0)
    whole = ScannIndex.build(np.concatenate([kept, clustered(20, 24, seed=5)]), index.ids)
    (exact, ids, hits), _ = printed(LOAD, tmp_path, env=without_scann)
    assert exact and tuple(ids) == index.ids
    assert hits == whole.search_batched(queries, 10)[0]


@needs_scann
def test_one_that_did_not_is_refused_by_name(without_scann, tmp_path):
    save(ScannIndex.build(clustered(600, 24), names(600), config=QUANTISED,
                          keep_vectors=False), tmp_path)
    message, _ = printed(LOAD, tmp_path, env=without_scann)
    for part in ('scann: made without keeping the vectors', REASON, 'build the index anew'):
        assert part in message


def test_an_index_made_without_scann_stays_exact_where_there_is_one(without_scann, tmp_path):
    there, _ = printed(SEARCH, 'quantised', tmp_path, env=without_scann)
    read = load(tmp_path)
    assert read.exact and read.config == QUANTISED
    assert read.search_batched(clustered(90, 24, seed=1), 10)[0] == there[0][0]


def test_late_interaction_takes_its_candidates_exactly(without_scann):
    (exact, hits), _ = printed(LATE, env=without_scann)
    assert not exact
    assert hits == build(PLAIN).search(['w31 w32 w40', 'w100 w101'], 5)[0]


@pytest.mark.parametrize('count', [1, 5, 40_000])
def test_the_exact_searcher_finds_the_best_in_their_order(count):
    vectors, queries = clustered(count, 8), clustered(7, 8, seed=1)
    searcher, k = ExactSearcher(vectors), min(30, count)
    rows, scores = searcher.search_batched(queries, k)
    every = queries @ vectors.T
    np.testing.assert_allclose(scores, -np.sort(-every, axis=1)[:, :k], atol=1e-6)
    np.testing.assert_allclose(np.take_along_axis(every, rows, axis=1), scores, atol=1e-6)
    assert searcher.size() == count
    np.testing.assert_array_equal(searcher.search(queries[0], k)[1].argsort()[::-1], range(k))
