"""Which terms texts of any script have, and queries."""

import pytest

from vrag_jax.retrieval.lexical.bm25 import Bm25Retriever
from vrag_jax.retrieval.lexical.ngram import NgramListsRetriever, NgramVectorsRetriever
from vrag_jax.retrieval.lexical.ngram_encoder import NgramEncoder
from vrag_jax.retrieval.lexical.terms import query_terms, split_terms


def test_english_words_pairs_and_pieces():
    terms = split_terms('The Total REVENUE of 2020')
    assert terms.words == ['total', 'revenue', '2020']
    # A stop word between two words keeps them apart.
    assert terms.phrases == ['total revenue']
    assert terms.pieces[:5] == ['<to', 'tot', 'ota', 'tal', 'al>']
    assert '<reve' in terms.pieces and 'enue>' in terms.pieces


def test_chinese_runs_give_pairs_and_triples_of_characters():
    terms = split_terms('云网络VPC是')
    assert terms.words == ['云网', '网络', 'vpc', '是']
    assert terms.phrases == ['云网络']
    assert '<vpc>' in terms.pieces and not any('云' in piece for piece in terms.pieces)


def test_width_and_case_do_not_matter():
    assert split_terms('ＮＡＴ网关') == split_terms('nat网关')


def test_punctuation_gives_nothing():
    assert split_terms(' … “--” %\n').words == []
    assert split_terms('').pieces == []


@pytest.mark.parametrize('text, words', [
    ('हिन्दी में लिखा', ['हिन्दी', 'में', 'लिखा']),
    ('தமிழ் மொழி', ['தமிழ்', 'மொழி']),
    ('cafe\u0301 CAFÉ', ['café', 'café']),
    ('Straße STRASSE ΟΔΟΣ οδός', ['strasse', 'strasse', 'οδοσ', 'οδοσ']),
    ('in\u00adfor\u00adma\u00adtion', ['information']),
    ('\u200fשָׁלוֹם\u200e שלום', ['שלום', 'שלום']),
    ('snake_case ❤️ x²', ['snake', 'case', 'x2']),
], ids=['hindi', 'tamil', 'accents', 'folding', 'soft hyphens', 'hebrew', 'marks alone'])
def test_words_are_whole_in_any_script(text, words):
    assert split_terms(text).words == words


def test_a_hyphenated_word_is_its_parts_and_one():
    terms = split_terms('Long-term Covid-19, 2019-2020')
    assert terms.words == ['long', 'term', 'covid', '19', '2019', '2020']
    assert terms.phrases == ['long term', 'term covid', 'covid 19', '19 2019', '2019 2020']
    assert terms.singles == ['longterm', 'covid19']
    assert query_terms('longterm').singles == ['longterm']
    assert query_terms('long-term').words == ['long', 'term', 'longterm']
    # At the end of a line it may have been one.
    assert 'information' in split_terms('infor-\n  mation').words
    assert '<information>'[-5:] in split_terms('infor\ufffemation').pieces


def test_letters_with_dots_are_an_abbreviation():
    assert split_terms('the U.S.A. and U.K, e.g. Ph.D. 2.5').words == [
        'usa', 'uk', 'e', 'g', 'ph', 'd', '2', '5']
    assert split_terms('at the U.S. border.') == split_terms('at the US border')
    assert split_terms('C++ c# A+ x#1').words == ['c++', 'c#', 'x#', '1']


def test_capitals_tell_abbreviations_from_stop_words():
    assert query_terms('US').singles == ['US', 'us']
    assert query_terms('us').singles == ['us']
    assert query_terms('US GDP').singles == ['gdp', 'US']
    assert query_terms('Who is at the WHO?').singles == ['WHO']
    assert query_terms('WHO IS THE CEO').singles == ['ceo']
    assert query_terms('of the').singles == []


PAGES = {
    'han': '中国の経済', 'repeat': '佐々木さんの報告', 'zero': '二〇二四年度',
    'hindi': 'हिन्दी में लिखा हुआ',
    'hindi other': 'हद और दिन में', 'thai': 'รายงานประจำปีของบริษัท', 'thai other': 'สวัสดีครับ',
    'arabic': 'السَّلَامُ عَلَيْكُمْ', 'arabic other': 'مرحبا بكم', 'turkish': 'Offices in İstanbul',
    'us': 'GDP of the US grew', 'who': 'Guidelines of the WHO for nurses',
    'us pronoun': 'Contact us or those who know', 'compound': 'A long-term plan',
    'joined': 'The longterm outlook', 'full width': 'ＲＥＶＥＮＵＥ ２０２４',
    'ligature': 'ﬁnancial oﬃce', 'dotted': 'Exports of the U.S.', 'greek': 'Ρολόι της Αθήνας',
    'c': 'Programs in C', 'c++': 'Programs in C++17, and no others', 'c#': 'Programs in C#.',
}
CASES = [
    ('中', {'han'}), ('々', {'repeat'}), ('〇', {'zero'}), ('佐々木', {'repeat'}),
    ('二〇二四', {'zero'}),
    ('हिन्दी', {'hindi'}), ('ประจำปี', {'thai'}), ('السلام', {'arabic'}), ('السَّلام', {'arabic'}),
    ('istanbul', {'turkish'}), ('İstanbul', {'turkish'}), ('ISTANBUL', {'turkish'}),
    ('I\u0307stanbul', {'turkish'}), ('ıstanbul', {'turkish'}),
    ('US', {'us', 'dotted'}), ('U.S.', {'us', 'dotted'}), ('U.S. exports', {'us', 'dotted'}),
    ('C', {'c'}), ('C++', {'c++'}), ('c++', {'c++'}), ('C#', {'c#'}), ('Ｃ＋＋', {'c++'}),
    ('ΑΘΗΝΑΣ', {'greek'}), ('ΡΟΛΟΪ', {'greek'}), ('Αθήνας', {'greek'}),
    ('WHO', {'who'}), ('US GDP', {'us', 'dotted'}), ('longterm', {'compound', 'joined'}),
    ('long-term', {'compound', 'joined'}), ('long term', {'compound'}),
    ('long\u2010term', {'compound'}),
    ('long\u00adterm', {'compound', 'joined'}), ('revenue 2024', {'full width'}),
    ('ｒｅｖｅｎｕｅ', {'full width'}), ('financial', {'ligature'}), ('office', {'ligature'}),
]


@pytest.fixture(scope='module', params=['vectors', 'lists', 'bm25'])
def retriever(request):
    ids, texts = list(PAGES), list(PAGES.values())
    if request.param == 'vectors':
        return NgramVectorsRetriever.fit(NgramEncoder(), ids, texts)
    return {'lists': NgramListsRetriever, 'bm25': Bm25Retriever}[request.param].of_texts(ids, texts)


@pytest.mark.parametrize('query, pages', CASES, ids=[ascii(query) for query, _ in CASES])
def test_a_query_finds_the_pages_that_have_it_first(retriever, query, pages):
    (ids,), _ = retriever.search([query], len(pages))
    assert set(ids) == pages
