"""RULER's wording, word for word, and keys that all differ."""

from dmabench.tasks import needle_wording as wording


def test_keys_all_differ():
    keys = {wording.key_of(number) for number in range(wording.KEYS)}
    assert len(keys) == wording.KEYS >= 2000 and all(key.count("-") == 1 for key in keys)


def test_one_number_is_asked_for_as_ruler_asks():
    assert wording.introduction(False) == (
        "A special magic number is hidden within the following text. Make sure to memorize it. "
        "I will quiz you about the number afterwards.\n"
    )
    assert wording.needle("calm-river", "4821907") == "One of the special magic numbers for calm-river is: 4821907."
    assert wording.question(["calm-river"], False) == (
        "\nWhat is the special magic number for calm-river mentioned in the provided text? "
        "The special magic number for calm-river mentioned in the provided text is"
    )


def test_several_are_asked_for_as_ruler_asks():
    assert wording.introduction(True) == (
        "Some special magic numbers are hidden within the following text. Make sure to memorize it. "
        "I will quiz you about the numbers afterwards.\n"
    )
    assert wording.question(["a", "b", "c"], True) == (
        "\nWhat are all the special magic numbers for a, b, and c mentioned in the provided text? "
        "The special magic numbers for a, b, and c mentioned in the provided text are"
    )
    assert [wording.listed(words) for words in (["a"], ["a", "b"])] == ["a", "a, and b"]
