"""Own fields: read from CSV and JSON lines with their types, for documents and pages."""

import pytest

from vrag_jax.corpus.ingestion import metadata as metadata_module


class OfOneSource:
    """Metadata of a single source."""

    def __init__(self, metadata):
        self._metadata = metadata

    def fields(self, *args):
        return self._metadata.fields(0, *args)

    def unknown(self, labels):
        return self._metadata.unknown([labels])


def read_metadata(file, sources, labels=()):
    return OfOneSource(metadata_module.read_metadata(file, sources, [labels]))


def test_a_spreadsheet_beside_the_documents(tmp_path):
    (tmp_path / 'metadata.csv').write_text(
        '\ufefffile_name,page,company,year,share,audited,code\n'
        'a.pdf,,"Acme, Inc",2023,0.5,true,007\n'
        'a.pdf,2,,,,,x\n'
        'scan,,Scans,,,False,\n', 'utf-8')
    metadata = read_metadata('', [tmp_path])
    assert metadata.fields('a.pdf', 'a.pdf', 1) == {
        'audited': True, 'code': '007', 'company': 'Acme, Inc', 'share': 0.5, 'year': 2023}
    assert metadata.fields('a.pdf', 'a.pdf', 2)['code'] == 'x'
    assert metadata.fields('scan', 'scan/1.png', 1) == {'audited': False, 'company': 'Scans'}
    assert metadata.fields('b.pdf', 'b.pdf', 1) == {}
    assert metadata.unknown(['a.pdf', 'scan/1.png']) == ['scan']
    types = [type(v) for v in metadata.fields('a.pdf', 'a.pdf', 1).values()]
    assert types == [bool, str, str, float, int]


def test_json_lines_of_images_and_the_given_file(tmp_path):
    file = tmp_path / 'own.jsonl'
    file.write_text('{"file_name": "scan", "n": 1, "m": 1}\n\n'
                    '{"file_name": "scan/2.png", "n": 2}\n', 'utf-8')
    (tmp_path / 'metadata.csv').write_text('file_name,n\nscan,5\n')
    metadata = read_metadata(str(file), [tmp_path], ['scan', 'scan/2.png'])
    assert metadata.fields('scan', 'scan/1.png', 1) == {'m': 1, 'n': 1}
    assert metadata.fields('scan', 'scan/2.png', 2) == {'m': 1, 'n': 2}
    assert read_metadata('', [tmp_path]).fields('scan', 'scan/2.png', 2) == {'n': 5}
    assert read_metadata('', [tmp_path / 'none']).fields('a', 'a', 1) == {}
    with pytest.raises(FileNotFoundError, match='gone.csv'):
        read_metadata('gone.csv', [tmp_path])


def test_rows_of_the_source_folder_itself(tmp_path):
    (tmp_path / 'metadata.csv').write_text('file_name,n\n.,5\n')
    metadata = read_metadata('', [tmp_path])
    assert metadata.fields('', '1.png', 1) == {'n': 5} and metadata.unknown(['', '1.png']) == []


def test_rows_of_pages_that_are_not_there_are_unknown(tmp_path):
    (tmp_path / 'metadata.csv').write_text('file_name,page,n\na.pdf,1,1\na.pdf,2,1\nb.pdf,7,1\n')
    metadata = read_metadata('', [tmp_path])
    assert metadata.fields('a.pdf', 'a.pdf', 1) == {'n': 1}
    assert metadata.unknown(['a.pdf']) == ['a.pdf, page 2', 'b.pdf']


def test_a_row_of_the_only_page_of_an_image(tmp_path):
    (tmp_path / 'metadata.csv').write_text('file_name,page,n\nscan/2.png,1,5\na.pdf,1,6\n')
    metadata = read_metadata('', [tmp_path])
    assert metadata.fields('scan', 'scan/2.png', 2) == {'n': 5}
    assert metadata.fields('scan', 'scan/1.png', 1) == {}
    assert metadata.fields('a.pdf', 'a.pdf', 2) == {}


def test_a_spreadsheet_that_is_not_utf_8_is_named(tmp_path):
    (tmp_path / 'metadata.csv').write_bytes('file_name,x\na.pdf,é\n'.encode('latin-1'))
    with pytest.raises(ValueError, match='metadata.csv: expected CSV or JSON lines in UTF-8'):
        read_metadata('', [tmp_path])


@pytest.mark.parametrize('name, content, message', [
    ('metadata.csv', 'file,year\na.pdf,1\n', "line 2: field 'file_name'"),
    ('metadata.csv', 'file_name,page\na.pdf,x\n', "line 2: field 'page'"),
    ('metadata.csv', 'file_name,page\na.pdf,0\n', "line 2: field 'page'"),
    ('metadata.csv', 'file_name,year\na.pdf,1,2\n', 'line 2: has more cells'),
    ('metadata.csv', 'file_name,document\na.pdf,1\n', "line 2: field 'metadata'"),
    ('metadata.jsonl', '{"file_name": "a.pdf", "x": [1]}', "line 1: field 'metadata.x'"),
    ('metadata.jsonl', '\n{', 'line 2: not JSON'), ('metadata.jsonl', '3', 'line 1: expected an')])
def test_a_wrong_row_is_named(tmp_path, name, content, message):
    (tmp_path / name).write_text(content)
    with pytest.raises(ValueError) as error:
        read_metadata('', [tmp_path])
    assert str(tmp_path / name) in str(error.value) and message in str(error.value)


def two_sources(tmp_path, own='', **rows):
    """Metadata of `acme` and `beta`; rows of a file in each of them, or of one's own."""
    for name in ('acme', 'beta'):
        (tmp_path / name).mkdir(exist_ok=True)
        if name in rows:
            (tmp_path / name / 'metadata.csv').write_text('file_name,n\n' + rows[name])
    if own:
        (tmp_path / 'own.csv').write_text('file_name,n\n' + own, 'utf-8')
    labels = [{'a.pdf', 'scan', 'scan/1.png', ''}, {'a.pdf', 'b.pdf', 'scan', 'scan/1.png'}]
    return labels, metadata_module.read_metadata(
        str(tmp_path / 'own.csv') if own else '', [tmp_path / 'acme', tmp_path / 'beta'], labels)


def test_rows_belong_to_the_source_in_which_they_lie(tmp_path):
    labels, metadata = two_sources(
        tmp_path, acme='a.pdf,1\nb.pdf,1\n.,1\nscan,1\n', beta='a.pdf,2\n')
    assert metadata.fields(0, 'a.pdf', 'a.pdf', 1) == {'n': 1}
    assert metadata.fields(1, 'a.pdf', 'a.pdf', 1) == {'n': 2}
    assert metadata.fields(1, 'b.pdf', 'b.pdf', 1) == {}
    assert metadata.fields(1, 'scan', 'scan/1.png', 1) == {}
    assert metadata.unknown(labels) == ['acme/b.pdf']


def test_a_file_of_ones_own_names_the_source_where_it_has_to(tmp_path):
    labels, metadata = two_sources(
        tmp_path, own='b.pdf,1\nbeta/a.pdf,2\nscan,3\n.,4\nacme/scan/1.png,5\nbeta/c.pdf,6\n'
                      f'{tmp_path}/acme/a.pdf,7\n')
    assert metadata.fields(1, 'b.pdf', 'b.pdf', 1) == {'n': 1}
    assert metadata.fields(1, 'a.pdf', 'a.pdf', 1) == {'n': 2}
    assert metadata.fields(0, 'a.pdf', 'a.pdf', 1) == {'n': 7}
    assert metadata.fields(0, 'scan', 'scan/1.png', 1) == {'n': 5}
    assert metadata.fields(1, 'scan', 'scan/1.png', 1) == {}
    assert metadata.fields(0, '', '1.png', 1) == {'n': 4}
    assert metadata.unknown(labels) == ['beta/c.pdf']
    assert metadata.ambiguous == ('scan, which must be acme/scan or beta/scan',)


def test_names_compare_in_one_form_of_unicode(tmp_path):
    (tmp_path / 'metadata.csv').write_text('file_name,n\ncafe\u0301.pdf,1\n', 'utf-8')
    assert read_metadata('', [tmp_path]).fields('caf\u00e9.pdf', 'caf\u00e9.pdf', 1) == {'n': 1}
