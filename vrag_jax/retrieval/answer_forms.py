"""Strips answer-format instructions, such as 'Answer in millions.', from a question."""

import re

from vrag_jax.retrieval.lexical.terms import STOP_WORDS

# How such a sentence begins, behind the end of another one; the misspellings of people who ask.
_START = re.compile(
    r'(?:(?<=[.?!])|(?<=\n))\s*(?=(?:(?:please|directly|kindly)\s+)*'
    r'(?:an\w{1,3}er|writ\w*|return|give|format|round|represent|enumerate|list|express|save|'
    r'provide|(?:the|your)\s+answer)\b)', re.IGNORECASE)
_EXAMPLES = re.compile(r'''\[[^\]]*\]?|"[^"]*"|'[^']*'|\be\.?g\b\.?''', re.IGNORECASE)
_FORMS = frozenset("""
    answer answers format formats formatted form int integer integers float string decimal decimals
    alphabetical ascending descending order list lists million millions billion billions thousand
    thousands percent percents percentage yes rounded
    """.split())
_AROUND = frozenset("""
    please directly kindly write writing down return give round represent enumerate express save
    provide answering anwser anwer anser writhe number numbers numeric place places point digit
    digits two three four one example unit units usd dollar dollars appropriate style data like
    item items exact single value word words page pages letter letters years respective
    """.split())
_SHARE = 0.75  # Of the words, without those of grammar, that must be of these kinds.


def without_answer_form(query: str) -> str:
    """Returns a question without sentences at its end that only say how to write the answer.

    Such a sentence begins with what asks for an answer, and has next to no other words
    but those of forms: 'Please write down the answer in list format, e.g., ["a", "b"]'. What
    comes before it has to say something.
    """
    for match in _START.finditer(query):
        before, after = query[:match.start()].rstrip(), _EXAMPLES.sub(' ', query[match.end():])
        words = [word.lower() for word in re.findall(r'[^\W\d_]+', after)]
        words = [word for word in words if word not in STOP_WORDS]
        known = sum(word in _FORMS or word in _AROUND for word in words)
        if _says_something(before) and _FORMS.intersection(words) and known >= _SHARE * len(words):
            return before
    return query


def _says_something(text: str) -> bool:
    return any(word.lower() not in STOP_WORDS for word in re.findall(r'\w+', text))
