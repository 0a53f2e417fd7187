"""A sentence that says what the reference says counts; one that says more or denies it does not."""

import pytest

from vrag_jax.rewards.containment import contains


@pytest.mark.parametrize('answer, reference, question', [
    ('The colour is red.', 'red', 'What colour is it?'),
    ('12', '12', ''),
    ('The total is -5', '-5', 'what is the total?'),
    ('It is 5, not 6.', '5', ''),
    ('No, there is none.', 'no', ''),
    ('Yes.', 'yes', ''),
    ('Yes, it is not 5', 'yes', ''),
    ('Sales in 2014 were $412 million.', '412', 'What were sales in 2014?'),
    ('该VPC诞生于2014年。', '2014', '云上数据中心网络演进中，VPC诞生于哪一年？'),
    ('答案是北京', '北京', '首都在哪里？'),
    ('1,234', '1234', ''),
    ('1,234 units', '1234', 'how many units'),
    ('It is 2019-2020', '2019–2020', ''),
    ('They are Apple and Google.', 'Apple and Google', ''),
    ('12.5bn', '12.5 bn', ''),
    ('12 bn', '12', ''),
    ('It is in Paris, France', 'Paris, France', ''),
    ('It is not answerable', 'not answerable', ''),
    ('5% of people', '5 %', ''),
    ('According to the table on the slide, the value is 412.', '412', 'What is the value?'),
    ('IPAM helps users plan and manage their networks', 'IPAM',
     'Which product helps users plan and manage their networks?'),
    ('是的', '是', ''),
    ('It is red, not blue', 'red', ''),
    ('12 (twelve)', '12', ''),
    ('There are twelve of them.', '12', 'How many?'),
    ('It is 3.', 'three', ''),
    ('USD 412 million', '$412 million', ''),
    ('It was 412 million dollars.', '$412 million', 'How much was it?'),
    ('412 million', '$412 million', ''),
    ('They pay in euros.', 'euros', ''),
])
def test_it_says_so(answer, reference, question):
    assert contains(answer, ['something else', reference], question) == 1.0


@pytest.mark.parametrize('answer, reference, question', [
    ('It was 2012.', '12', 'When?'),
    ('12.5 percent', '12', ''),
    ('-5 degrees', '5', ''),
    ('not 2014', '2014', ''),
    ("It isn't 2014", '2014', ''),
    ('It is 5, not 6.', '6', ''),
    ('there is no red', 'no', ''),
    ('yes and no', 'yes', ''),
    ('red, blue, green', 'red', 'what colour?'),
    ('red blue green yellow', 'red', ''),
    ('red or blue', 'red', ''),
    ('5 6', '5', ''),
    ('不是北京', '北京', ''),
    ('北京、上海、广州', '北京', ''),
    ('12:30', '12', ''),
    ('10-12', '10', ''),
    ('the 12th', '12', ''),
    ('', 'red', ''),
    ('.', 'red', ''),
    ('red', '', ''),
    ('The colour is red and the colour is blue', 'red', 'what colour'),
    ('It is red. It is blue.', 'red', ''),
    ('3/4 of it', '3', ''),
    ('version 1.2.3', '1.2', ''),
    ('The value is 1,5', '1', ''),
    ('2014 is wrong', '2014', ''),
    ('yes', 'no', ''),
    ('.', 'yes', ''),
    ('It may be no', 'no', ''),
    ('Paris, London', 'Paris', ''),
    ('12 (thirteen)', '12', ''),
    ('EUR 412 million', '$412 million', ''),
    ('$412 million or €412 million', '$412 million', ''),
    ('$41 million', '$412 million', ''),
    ('USD 412 thousand', '$412 million', ''),
    ('They pay in dollars.', 'euros', ''),
])
def test_it_does_not(answer, reference, question):
    assert contains(answer, [reference], question) == 0.0


def test_a_whole_sentence_of_the_questions_words():
    question = ('What is the name of the person who is congratulated because his GROSS INCOME has '
                'just become A TOTALLY GROSS INCOME?')
    answer = ('The name of the person who is congratulated because his GROSS INCOME has just '
              'become A TOTALLY GROSS INCOME is Mr. Henderson.')
    assert contains(answer, ['Mr. Henderson'], question) == 1.0
    # Without the question each of its words could be another candidate.
    assert contains(answer, ['Mr. Henderson']) == 0.0


@pytest.mark.parametrize(
    'separator', [' ', ', ', '; ', ' and ', ' or ', '/', '. ', '\n', ' - ', ' | '])
def test_listing_candidates_earns_nothing(separator):
    colours = ['blue', 'green', 'red', 'yellow', 'black']
    years = ['2011', '2012', '2013', '2014']
    assert contains(separator.join(colours), ['red'], 'Which colour?') == 0.0
    assert contains(separator.join(years), ['2013'], 'Which year?') == 0.0
    sentences = separator.join(f'the colour is {colour}' for colour in colours)
    assert contains(sentences, ['red'], 'Which colour?') == 0.0
    assert contains(separator.join('北京 上海 广州 深圳'.split()), ['上海'], '哪个城市？') == 0.0


@pytest.mark.parametrize('question, answer, reference', [
    ('Which of red, blue and green is largest?', 'red, blue, green', 'blue'),
    ('Which of red, blue and green is largest?', 'red blue green', 'green'),
    ('Is it 5 or 6?', '5 or 6', '6'),
    ('In which year, 2013 or 2014, did it?', '2013 and 2014', '2014'),
    ('When?', 'It is not: 2014', '2014'), ('When?', 'not (2014)', '2014'),
    ('When?', 'Never; 2014', '2014'), ('How many?', 'hardly 5', '5'),
    ('How many?', 'less than 5', '5'), ('When?', 'after 2014', '2014'),
    ('Which?', 'red is impossible', 'red'),
    ('How many?', 'Minus 5', '5'), ('Does it?', 'Yes but actually the answer is no', 'yes')])
def test_what_says_more_or_something_else_earns_nothing(question, answer, reference):
    assert contains(answer, [reference], question) == 0.0


@pytest.mark.parametrize('question, answer, reference', [
    ('Which of red, blue and green is largest?', 'Blue is the largest.', 'blue'),
    ('Is it 5 or 6?', 'It is 6, not 5.', '6'),
    ('In which year, 2013 or 2014, did it?', 'In the year 2014.', '2014'),
    ('Does it?', 'The answer is yes.', 'yes'), ('Is it?', 'It is true.', 'true'),
    ('Is it?', 'The statement is false', 'false'), ('How many?', r'\\boxed{7}', '7'),
    ('How many more than 5?', 'It is 3 more than 5.', '3'), ('Which?', 'not blue, red', 'red'),
    ('How much?', '12 million', '12 million')])
def test_a_sentence_that_says_it_earns_all(question, answer, reference):
    assert contains(answer, [reference], question) == 1.0
