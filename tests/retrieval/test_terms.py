"""Which terms English and Chinese texts have."""

from vrag_jax.retrieval.terms import split_terms


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
