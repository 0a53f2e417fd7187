"""OCR reads Chinese and English pages; what was read once is kept by content."""

import hashlib
import json
import sys

import pytest
from PIL import Image

from vrag_jax.retrieval.ocr import OcrReader


def test_a_real_page_is_read_and_kept(shared_dir, tmp_path):
    pytest.importorskip('rapidocr', reason="needs the extra 'ocr'")
    page = tmp_path / 'page.png'
    with Image.open(shared_dir / 'real_pages' / 'pages' / 'aliyun4_4.jpg') as image:
        image.resize((1067, 600)).save(page)  # a fifth of its size is read much faster
    text = OcrReader(tmp_path / 'texts').read(page)
    # Chinese and English as a reader sees them on the page.
    for seen in ('云上数据中心网络演进', 'VPC诞生', 'IPAM', '2014'):
        assert seen in text
    [kept] = (tmp_path / 'texts').iterdir()
    assert kept.stem == hashlib.sha256(page.read_bytes()).hexdigest()
    assert OcrReader(tmp_path / 'texts').read(page) == text


def test_kept_text_needs_no_ocr_package(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, 'rapidocr', None)
    (tmp_path / 'a.png').write_bytes(b'the same content')
    digest = hashlib.sha256(b'the same content').hexdigest()
    (tmp_path / f'{digest}.json').write_text(json.dumps({'engine': 'x', 'text': '年报'}), 'utf-8')
    assert OcrReader(tmp_path).read(tmp_path / 'a.png') == '年报'
    (tmp_path / f'{digest}.json').write_text('{', 'utf-8')
    with pytest.raises(ValueError, match='not a text kept by the OCR'):
        OcrReader(tmp_path).read(tmp_path / 'a.png')


def test_without_the_package_the_extra_is_named(make_store, monkeypatch):
    monkeypatch.setitem(sys.modules, 'rapidocr', None)
    with pytest.raises(ImportError, match=r'\[ocr\]'):
        OcrReader(None).read(make_store([None]).path('p1'))
