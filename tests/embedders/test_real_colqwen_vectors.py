"""Real ColQwen2 vectors of 39 pages: their tokens are ours, and late interaction searches them.

The vectors are what the reference's search engine has made with vidore/colqwen2-v1.0. The weights
are not here; what the vectors tell without them is how many tokens a page has and which of them
see its image.
"""

import json

import numpy as np
import pytest
from PIL import Image
from tokenizers import AddedToken, Tokenizer, decoders, pre_tokenizers
from tokenizers.models import BPE

from tests.embedders import colqwen_cases as cases
from tests.embedders import golden_cases as tiny
from vrag_jax.embedders.interface import PageContent
from vrag_jax.embedders.registry import EmbedderConfig, load_embedder
from vrag_jax.retrieval.late_interaction.late_settings import LateInteractionConfig
from vrag_jax.retrieval.late_interaction.retriever import LateInteractionRetriever

# Words of the prompt, each one token of Qwen's vocabulary.
WORDS = ('user', 'Describe', 'Ġthe', 'Ġimage')


def word_tokenizer():
    """Of bytes, but for the words of the prompt; as many tokens as `byte_tokenizer`."""
    pieces = [word[:end] for word in WORDS for end in range(2, len(word) + 1)]
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())[: 256 - len(pieces)]
    alphabet += ['Ġ', 'Ċ']  # Space and line break, which sort behind.
    alphabet = sorted(set(alphabet), key=alphabet.index)[-(256 - len(pieces)):]
    tokenizer = Tokenizer(BPE(
        vocab={token: number for number, token in enumerate(alphabet + pieces)},
        merges=[(piece[:-1], piece[-1]) for piece in pieces]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(
        [AddedToken(token, special=True, normalized=False) for token in tiny.SPECIAL])
    return tokenizer


@pytest.fixture(scope='module')
def real(shared_dir):
    """Vectors by page id, `[T, 128]` float32, and contents of the same pages."""
    folder = shared_dir / 'real_pages'
    with np.load(folder / 'colqwen2_embeddings.npz') as stored:
        vectors = {name: stored[name].astype(np.float32) for name in stored}
    contents = []
    for line in (folder / 'pages.jsonl').read_text().splitlines():
        page = json.loads(line)
        file, size = folder / page['file'], (page['width'], page['height'])
        contents.append(PageContent(
            page['page_id'], '', lambda file=file: Image.open(file), size))
    return vectors, contents


@pytest.fixture(scope='module', params=['adapter', 'converted'])
def embedder(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp('checkpoint')
    cases.write_checkpoint(folder / 'base', folder / 'adapter', 'colqwen2')
    cases.write_converted(folder / 'converted')
    word_tokenizer().save(str(folder / request.param / 'tokenizer.json'))
    # As the files of 2024 are: with Qwen's own limit.
    (folder / request.param / 'preprocessor_config.json').write_text(json.dumps(
        cases.preprocessor_config(16_384 * 28 * 28)))
    return load_embedder(EmbedderConfig('colqwen', str(folder / request.param)))


def test_pages_have_as_many_tokens_as_their_real_vectors(embedder, real):
    vectors, contents = real
    assert len(contents) == len(vectors) == 39
    grids = embedder.page_grids(contents)
    ends = len(embedder._prompts._page[0]), len(embedder._prompts._page[1])
    assert ends == (4, 7)
    for page, (rows, columns, before) in zip(contents, grids, strict=True):
        assert before + rows * columns + ends[1] == len(vectors[page.page_id])
    found = embedder.embed_pages([contents[0]])[0]
    assert found.shape == vectors[contents[0].page_id].shape


def test_real_vectors_see_the_image_from_the_token_where_ours_do(embedder, real):
    """Tokens before the image are the same on all pages; from the first of its own they differ."""
    rows = list(real[0].values())
    before = embedder._prompts.before_image
    for place in range(before):
        assert max(np.abs(row[place] - rows[0][place]).max() for row in rows) < 0.004  # bfloat16
    assert min(row[before] @ rows[0][before] for row in rows) < 0.6
    norms = np.concatenate([np.linalg.norm(row, axis=1) for row in rows])
    assert np.abs(norms - 1).max() < 0.006  # None of them is padding.


class StoredVectors:
    """The real vectors; a query is a page's id, and asks with some tokens of its image."""

    kind, dims, multi_vector, fingerprint, reads = 'stored', 128, True, 'real pages', 'image'

    def __init__(self, vectors):
        self.vectors = vectors

    def embed_pages(self, pages):
        return [self.vectors[page.page_id] for page in pages]

    def embed_queries(self, queries):
        return [self.vectors[query][10:-7:40] for query in queries]

    def page_grids(self, pages):
        return [(24, 32, 4) if len(self.vectors[p.page_id]) == 779 else (20, 36, 4) for p in pages]


@pytest.mark.parametrize('config', [
    LateInteractionConfig(recall_queries=0),
    LateInteractionConfig(exact_below=0, pool=30, candidates=20, recall_queries=0)],
    ids=['exact', 'encodings'])
def test_late_interaction_over_real_vectors_is_maxsim(real, config, tmp_path):
    vectors, ids = real[0], list(real[0])
    embedder = StoredVectors(vectors)
    retriever = LateInteractionRetriever.of_pages(
        embedder, ids, list(vectors.values()), config, scratch=tmp_path)
    found, scores = retriever.search(ids, 5)
    for page_id, query, hits, values in zip(
            ids, embedder.embed_queries(ids), found, scores, strict=True):
        expected = {name: (query @ rows.T).max(1).sum() for name, rows in vectors.items()}
        best = sorted(expected, key=expected.get, reverse=True)[:5]
        assert hits[0] == best[0] == page_id
        assert len(set(hits) & set(best)) >= 4
        np.testing.assert_allclose(values, [expected[name] for name in hits], rtol=5e-3)
