"""Text of page images by OCR (extra `ocr`), kept on disk by content."""

import hashlib
import json
import os
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

from vrag_jax.retrieval.pages import load_image


class OcrReader:
    """Reads page images with RapidOCR; its wheel ships PP-OCR models (Chinese, English).

    Args:
      cache_dir: where texts are kept, named by the SHA-256 of the image file;
        what is there is used even where the OCR is not installed. None keeps
        nothing.
      threads: threads of one recognition.
    """

    def __init__(self, cache_dir: Path | None, threads: int = 1):
        self._cache_dir = None if cache_dir is None else Path(cache_dir)
        self._threads = threads
        self._engine: Any = None

    def read(self, file: Path) -> str:
        """Returns the text of an image: one line a text line, in reading order.

        Raises:
          ImportError: if the extra `ocr` is not installed and the text is not cached.
          FileNotFoundError, ValueError: if the image cannot be read.
        """
        if self._cache_dir is None:
            return self._recognise(file)
        digest = hashlib.sha256(Path(file).read_bytes()).hexdigest()
        cached = self._cache_dir / f'{digest}.json'
        if cached.is_file():
            return _read_cached(cached)
        text = self._recognise(file)
        self._cache_dir.mkdir(parents=True, exist_ok=True)
        partial = cached.with_suffix(f'.{os.getpid()}.partial')
        record = {'engine': f'rapidocr {metadata.version("rapidocr")}', 'text': text}
        partial.write_text(json.dumps(record, ensure_ascii=False), 'utf-8')
        os.replace(partial, cached)
        return text

    def _recognise(self, file: Path) -> str:
        if self._engine is None:
            self._engine = _create_engine(self._threads)
        # RapidOCR takes arrays as BGR, the channel order of OpenCV.
        pixels = np.asarray(load_image(file))[:, :, ::-1]
        lines = self._engine(np.ascontiguousarray(pixels)).txts
        return '\n'.join(lines or ())


def _create_engine(threads: int) -> Any:
    try:
        from rapidocr import RapidOCR
    except ImportError as error:
        raise ImportError("reading pages without known text needs OCR: pip install "
                          "'vrag-jax[ocr]' (rapidocr and onnxruntime)") from error
    prefix = 'EngineConfig.onnxruntime'
    return RapidOCR(params={
        'Global.log_level': 'warning',
        f'{prefix}.intra_op_num_threads': threads,
        f'{prefix}.inter_op_num_threads': threads,
    })


def _read_cached(file: Path) -> str:
    try:
        return json.loads(file.read_text('utf-8'))['text']
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f'{file}: not a text kept by the OCR; delete it') from error
