"""Text of page images by OCR (extra `ocr`), kept on disk by content."""

import hashlib
import json
import os
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from vrag_jax.perception.image_files import load_image

# A word and its box (x1, y1, x2, y2) in pixels, right and lower edge excluded.
OcrWord = tuple[str, tuple[int, int, int, int]]


class OcrError(ValueError):
    """An image that the OCR cannot read, such as a narrow strip; it can read others."""


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
          ImportError: if the extra `ocr` is not installed, or reads no image at all, and the
            text is not cached.
          FileNotFoundError, ValueError: if the image cannot be read.
          OcrError: if the OCR fails over this image.
        """
        if self._cache_dir is None:
            return self._lines(file, words=False)[0]
        digest = hashlib.sha256(Path(file).read_bytes()).hexdigest()
        cached = self._cache_dir / f'{digest}.json'
        if cached.is_file():
            return _read_cached(cached)
        text = self._lines(file, words=False)[0]
        self._cache_dir.mkdir(parents=True, exist_ok=True)
        partial = cached.with_suffix(f'.{os.getpid()}.partial')
        record = {'engine': f'rapidocr {metadata.version("rapidocr")}', 'text': text}
        partial.write_text(json.dumps(record, ensure_ascii=False), 'utf-8')
        os.replace(partial, cached)
        return text

    def read_words(self, file: Path) -> tuple[str, list[OcrWord]]:
        """Returns the text as `read` does, and its words with their boxes; nothing is kept.

        Raises:
          ImportError: if the extra `ocr` is not installed, or reads no image at all.
          FileNotFoundError, ValueError: if the image cannot be read.
          OcrError: if the OCR fails over this image.
        """
        return self._lines(file, words=True)

    def _lines(self, file: Path, words: bool) -> tuple[str, list[OcrWord]]:
        if self._engine is None:
            self._engine = _create_engine(self._threads)
        # RapidOCR takes arrays as BGR, the channel order of OpenCV.
        pixels = np.ascontiguousarray(np.asarray(load_image(file))[:, :, ::-1])
        try:
            return _recognize(self._engine, pixels, words)
        except (ImportError, MemoryError):
            raise
        except Exception as error:  # RapidOCR has errors of many kinds, with no base of their own.
            reason = f'{type(error).__name__}: {error}'.removesuffix(': ')
            _check_engine(self._engine)
            raise OcrError(f'OCR fails: {reason}') from error


def _recognize(engine: Any, pixels: np.ndarray, words: bool) -> tuple[str, list[OcrWord]]:
    found = engine(pixels, return_word_box=words)
    lines = found.txts or ()
    boxes: list[OcrWord] = []
    if words and lines:
        size = pixels.shape[1], pixels.shape[0]
        for line, corners, pieces in zip(lines, found.boxes, found.word_results, strict=True):
            boxes += _line_words(line, corners, pieces, size)
    return '\n'.join(lines), boxes


def _check_engine(engine: Any) -> None:
    """Raises an ImportError if the OCR cannot read any image, as without its models."""
    image = Image.new('RGB', (200, 60), 'white')
    ImageDraw.Draw(image).text((20, 10), 'TEXT', 'black', ImageFont.load_default(32))
    try:
        _recognize(engine, np.asarray(image), words=True)
    except Exception as error:
        raise ImportError(f"the OCR reads no image at all ({type(error).__name__}: {error}): "
                          "install 'vrag-jax[ocr]' anew") from error


def _line_words(line: str, corners: Any, pieces: Sequence[tuple[str, float, Any]],
                size: tuple[int, int]) -> list[OcrWord]:
    """Puts together the words of a line, as divided by white space, from recognised pieces.

    Args:
      line: its text.
      corners: of the line, [4, 2], pixels.
      pieces: text, score and corners of parts of it, in order: of words, halves of words or
        characters.
      size: width and height of the image.
    """
    words: list[OcrWord] = []
    pieces = list(pieces)
    for word in line.split():
        text, points = '', []
        while pieces and len(text) < len(word):
            piece, _, box = pieces.pop(0)
            text += piece
            points.append(np.asarray(box))
        if text != word:  # The pieces are cut otherwise: the line is one word.
            return [(line, _bounds(np.asarray(corners), size))]
        words.append((word, _bounds(np.concatenate(points), size)))
    return words


def _bounds(points: np.ndarray, size: tuple[int, int]) -> tuple[int, int, int, int]:
    (x1, y1), (x2, y2) = np.floor(points.min(0)), np.ceil(points.max(0))
    return (int(np.clip(x1, 0, size[0] - 1)), int(np.clip(y1, 0, size[1] - 1)),
            int(np.clip(x2, 1, size[0])), int(np.clip(y2, 1, size[1])))


def _create_engine(threads: int) -> Any:
    try:
        from rapidocr import RapidOCR
    except ImportError as error:
        raise ImportError("reading pages without known text needs OCR: pip install "
                          "'vrag-jax[ocr]' (rapidocr and onnxruntime)") from error
    prefix = 'EngineConfig.onnxruntime'
    return RapidOCR(params={
        'Global.log_level': 'error',  # It warns of every page without text.
        f'{prefix}.intra_op_num_threads': threads,
        f'{prefix}.inter_op_num_threads': threads,
    })


def _read_cached(file: Path) -> str:
    try:
        return json.loads(file.read_text('utf-8'))['text']
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f'{file}: not a text kept by the OCR; delete it') from error
