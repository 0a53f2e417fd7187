"""Indexes PDFs, images and folders of them: pages in `WORKDIR/pages`, index in `WORKDIR/index`.

    python -m vrag_jax.main --config=configs/build_index.py --workdir=runs/reports \\
        --config.retrieval.sources=REPORTS,MORE.pdf

The same command again takes over what has changed in the sources: new, changed and removed
documents. Killed, it goes on where it was. Scans are read by OCR where the extra `ocr` is
installed.
1,371 PDF pages take about a minute on two cores, and eleven minutes more where 231 of them are
scans or show text that is not in their text layer. See `docs/RETRIEVAL.md`. The pages are then
given to other tasks with

    --config.data.source=files --config.data.manifest=runs/reports/pages/pages.jsonl
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    config = ConfigDict()
    config.task = 'build_index'
    # With questions the quality of the search is measured too.
    config.data = ConfigDict({'source': 'files', 'manifest': '', 'eval_questions': ''})
    config.mesh = ConfigDict({'data': -1, 'fsdp': 1, 'tensor': 1})  # Of embedders.
    config.retrieval = ConfigDict({
        'sources': '',  # Files and folders, separated by commas; or a tuple of them.
        # True: without the extra `ocr` the ingestion ends with an error; pages of `data.manifest`
        # that have no text are read by OCR.
        'ocr': False,
        # 'ngram', 'bm25' and names of embedders, fused by reciprocal rank; () takes 'ngram', and
        # where a text embedder is given that, too, with measured weights.
        'retrievers': (),
        'ingestion': {
            'dpi': 144, 'max_pixels': 16_000_000, 'image_format': 'jpeg', 'quality': 90,
            # A folder of images is a document; or 'file', or 'numbered' (report_3.png).
            'images': 'folder',
            # 'auto' reads pages by OCR whose text layer is missing, not believed or incomplete,
            # where the extra `ocr` is installed; 'always' all pages, 'never' none.
            'ocr': 'auto', 'metadata': '', 'delete_missing': True, 'most_deleted': 0.5,
            # True compares the stored images with their SHA-256, not with their size alone.
            'verify': False,
            'workers': 0, 'pages_per_task': 4, 'timeout_s': 600.0,
        },
    })
    return config
