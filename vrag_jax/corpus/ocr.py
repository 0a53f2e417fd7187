"""Text of page images by OCR (extra `ocr`), kept on disk by content."""

import hashlib
import importlib.util
import json
import os
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from vrag_jax.corpus.ink import unread_rows
from vrag_jax.corpus.ocr_lines import (
    OcrLine,
    OcrWord,
    in_reading_order,
    is_known,
    make_line,
    moved,
    turned_back,
)
from vrag_jax.perception.image_files import load_image

_SIDE = 2000  # Pixels of an image's longer side, to which RapidOCR scales it down.
_LEAST_HEIGHT, _SURE_HEIGHT = 14, 24  # Pixels of a line there that may be read right, or is.
_SURE_SCORE = 0.9  # Of a line between them.
_GOOD_HEIGHT = 28  # Larger lines are read no better.
_TILE = 1200, 300  # Rows of pixels that are read at once in full size, and their overlap.
_TILE_SIDE = 736  # The least of a tile's sides.
_LEAST_FINE = 10  # Pixels of a row's letters in full size; nobody reads smaller ones.
_FINE_PIXELS = 4_000_000  # In which lines are looked for that were lost.
_READING = 2  # Texts that were kept by other versions are read again, where that is possible.


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
            return _text(self.read_lines(file))
        digest = hashlib.sha256(Path(file).read_bytes()).hexdigest()
        cached = self._cache_dir / f'{digest}.json'
        if cached.is_file():
            text, reading = _read_cached(cached)
            if reading == _READING or missing_extra():
                return text
        text = _text(self.read_lines(file))
        self._cache_dir.mkdir(parents=True, exist_ok=True)
        partial = cached.with_suffix(f'.{os.getpid()}.partial')
        record = {'engine': f'rapidocr {metadata.version("rapidocr")}', 'reading': _READING,
                  'text': text}
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
        lines = self.read_lines(file)
        return _text(lines), [word for line in lines for word in line.words]

    def read_lines(self, file: Path) -> list[OcrLine]:
        """Returns the lines in reading order; nothing is kept. Raises what `read_words` does.

        A page that is turned by 90, 180 or 270 degrees is read upright; boxes are of the image
        as it is. What is too small in an image of `_SIDE` pixels is read in full size.
        """
        if self._engine is None:
            self._engine = _create_engine(self._threads)
        image = load_image(file)
        # RapidOCR takes arrays as BGR, the channel order of OpenCV.
        pixels = np.ascontiguousarray(np.asarray(image)[:, :, ::-1])
        try:
            return _read_page(self._engine, pixels)
        except (ImportError, MemoryError):
            raise
        except Exception as error:  # RapidOCR has errors of many kinds, with no base of their own.
            reason = f'{type(error).__name__}: {error}'.removesuffix(': ')
            _check_engine(self._engine)
            raise OcrError(f'OCR fails: {reason}') from error


def missing_extra() -> str:
    """Returns what to install for the OCR, '' if it is there."""
    if all(importlib.util.find_spec(name) for name in ('rapidocr', 'onnxruntime')):
        return ''
    return ("reading pages without known text needs OCR: pip install 'vrag-jax[ocr]' (rapidocr "
            'and onnxruntime)')


def _text(lines: list[OcrLine]) -> str:
    return '\n'.join(line.text for line in lines)


def _read_page(engine: Any, pixels: np.ndarray) -> list[OcrLine]:
    """Returns the lines of a page, BGR uint8 [height, width, 3], in reading order."""
    size = pixels.shape[1], pixels.shape[0]
    lines, turns = _recognize(engine, pixels, _SIDE), 0
    turned = _turns(engine, pixels, lines)
    if turned:
        upright = np.ascontiguousarray(np.rot90(pixels, turned))
        better = _recognize(engine, upright, _SIDE)
        # Lines written downwards, as in Japanese, look turned, too.
        if _worth(better) >= 0.9 * _worth(lines):
            lines, turns, pixels = better, turned, upright
    lines = in_reading_order(_with_small_lines(engine, pixels, lines))
    return [turned_back(line, turns, size) for line in lines] if turns else lines


def _worth(lines: list[OcrLine]) -> float:
    return sum(line.score * len(line.text) for line in lines)


def _turns(engine: Any, pixels: np.ndarray, lines: list[OcrLine]) -> int:
    """Returns by how many quarters the page is to be turned, counterclockwise, to be upright."""
    def is_upright_box(line: OcrLine) -> bool:
        x1, y1, x2, y2 = line.box
        return y2 - y1 >= 1.5 * (x2 - x1)

    long = [line for line in lines if len(line.text) > 3]
    upwards = sum(len(line.text) for line in long if is_upright_box(line))
    quarter = 2 * upwards > sum(len(line.text) for line in long)
    chosen = sorted((line for line in long if is_upright_box(line) == quarter),
                    key=lambda line: -len(line.text))[:9]
    if not chosen:
        return 0
    crops = []
    for line in chosen:
        x1, y1, x2, y2 = (max(int(side), 0) for side in line.box)
        crop = pixels[y1:y2 + 1, x1:x2 + 1]
        crops.append(np.ascontiguousarray(np.rot90(crop) if quarter else crop))
    upside_down = 0
    for crop in crops:
        [(label, score)] = engine(crop, use_det=False, use_cls=True, use_rec=False).cls_res
        upside_down += '180' in label and score > 0.9
    over = 2 * upside_down > len(crops)
    return (3 if over else 1) if quarter else 2 * over


def _with_small_lines(engine: Any, pixels: np.ndarray, lines: list[OcrLine]) -> list[OcrLine]:
    """Adds lines of a large image that are lost when it is scaled down.

    They are read in tiles of full size, as wide as need be, so that no line is cut in two.
    """
    height, width = pixels.shape[:2]
    scale = _SIDE / max(height, width)
    if scale >= 1:
        return lines
    sure = [line for line in lines if scale * line.height >= (
        _LEAST_HEIGHT if line.score >= _SURE_SCORE else _SURE_HEIGHT)]
    image = Image.fromarray(pixels)
    rows = unread_rows(image, [_whole(line) for line in sure], _FINE_PIXELS)
    rows += [(_whole(line), float(len(line.text))) for line in lines
             if line not in sure]
    rows = [(box, letters) for box, letters in rows
            if min(box[3] - box[1], box[2] - box[0]) >= _LEAST_FINE]
    candidates = [line for line in lines if line not in sure]
    for top, bottom, left, right, least in _tiles([box for box, _ in rows], width, height):
        tile = np.ascontiguousarray(pixels[top:bottom, left:right])
        side = max(tile.shape[:2]) * min(_GOOD_HEIGHT / least, 1.0)
        for line in _recognize(engine, tile, max(round(side), 320)):
            line = moved(line, left, top)
            _, y1, _, y2 = line.box
            if not (y1 <= top + 1 and top > 0 or y2 >= bottom - 1 and bottom < height):
                candidates.append(line)
    found = list(sure)
    # Of what was read in several sizes the best: long and with certainty.
    for line in sorted(candidates, key=lambda line: -line.score**4 * len(line.text)):
        if not is_known(line, found):
            found.append(line)
    return found


def _whole(line: OcrLine) -> tuple[int, int, int, int]:
    x1, y1, x2, y2 = map(int, line.box)
    return x1, y1, x2, y2


def _tiles(boxes: list[tuple[int, int, int, int]], width: int, height: int
           ) -> list[tuple[int, int, int, int, int]]:
    """Returns tiles that hold all boxes, with a margin: top, bottom, left, right, least height."""
    spans: list[list[int]] = []
    for x1, y1, x2, y2 in sorted(boxes, key=lambda box: box[1]):
        least = max(min(y2 - y1, x2 - x1), 1)
        margin = 2 * least + 8
        # RapidOCR enlarges what is smaller than this, at the cost of a larger tile.
        down, across = max(y1 + y2 - _TILE_SIDE, 0) // 2, max(x1 + x2 - _TILE_SIDE, 0) // 2
        top, bottom = (max(min(y1 - margin, down), 0),
                       min(max(y2 + margin, down + _TILE_SIDE), height))
        left, right = (max(min(x1 - 2 * margin, across), 0),
                       min(max(x2 + 2 * margin, across + _TILE_SIDE), width))
        if spans and top <= spans[-1][1]:
            last = spans[-1]
            last[1], last[2] = max(last[1], bottom), min(last[2], left)
            last[3], last[4] = max(last[3], right), min(last[4], least)
        else:
            spans.append([top, bottom, left, right, least])
    tiles = []
    rows, overlap = _TILE
    for top, bottom, left, right, least in spans:
        start = top
        while True:
            end = min(start + rows, bottom)
            tiles.append((start, end, left, right, least))
            if end == bottom:
                break
            start = end - overlap
    return tiles


def _recognize(engine: Any, pixels: np.ndarray, side: int) -> list[OcrLine]:
    """Returns the lines of an image that is scaled down to a longer side of so many pixels."""
    engine.max_side_len = side
    found = engine(pixels, use_det=True, use_cls=True, use_rec=True, return_word_box=True)
    if not found.txts:
        return []
    size = pixels.shape[1], pixels.shape[0]
    return [make_line(text, float(score), corners, pieces, size) for text, score, corners, pieces
            in zip(found.txts, found.scores, found.boxes, found.word_results, strict=True)]


def _check_engine(engine: Any) -> None:
    """Raises an ImportError if the OCR cannot read any image, as without its models."""
    image = Image.new('RGB', (200, 60), 'white')
    ImageDraw.Draw(image).text((20, 10), 'TEXT', 'black', ImageFont.load_default(32))
    try:
        _recognize(engine, np.asarray(image), _SIDE)
    except Exception as error:
        raise ImportError(f"the OCR reads no image at all ({type(error).__name__}: {error}): "
                          "install 'vrag-jax[ocr]' anew") from error


def _create_engine(threads: int) -> Any:
    try:
        from rapidocr import RapidOCR
    except ImportError as error:
        raise ImportError(
            missing_extra() or f"the OCR cannot be loaded ({error}): install 'vrag-jax[ocr]' anew"
        ) from error
    prefix = 'EngineConfig.onnxruntime'
    return RapidOCR(params={
        'Global.log_level': 'error',  # It warns of every page without text.
        f'{prefix}.intra_op_num_threads': threads,
        f'{prefix}.inter_op_num_threads': threads,
    })


def _read_cached(file: Path) -> tuple[str, int]:
    """Returns the text, and the version that has read it."""
    try:
        record = json.loads(file.read_text('utf-8'))
        return record['text'], record.get('reading', 1)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f'{file}: not a text kept by the OCR; delete it') from error
