import pytest
from hypothesis import given
from hypothesis import strategies as st

from dmabench.errors import Refusal
from dmabench.workload.sweeps import LARGEST, LONGEST, parse_sweep


@pytest.mark.parametrize(
    ("text", "numbers"),
    [
        ("8192", [8192]),
        ("4k,8k", [4096, 8192]),
        ("1K", [1024]),
        ("1m", [1048576]),
        (" 1k , 2k ", [1024, 2048]),
        ("1k:128k:x2", [1024 * 2**i for i in range(8)]),
        ("1k:100k:x2", [1024 * 2**i for i in range(7)]),
        ("1k:4k:512", list(range(1024, 4097, 512))),
        ("100:350:100", [100, 200, 300]),
        ("8:8:x2", [8]),
        ("1,1:4:x2,3", [1, 2, 4, 3]),
        ("2k,1k,2k", [2048, 1024]),
    ],
)
def test_sweeps(text, numbers):
    assert parse_sweep(text, "--seqlen") == numbers


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "is not a number or a sweep"),
        ("abc", "is not a number or a sweep"),
        ("-5", "is not a number or a sweep"),
        ("1.5k", "is not a number or a sweep"),
        ("1k,", "is not a number or a sweep"),
        ("1k:2k", "is not a number or a sweep"),
        ("1k:2k:x2:3", "is not a number or a sweep"),
        ("1k:2k:y2", "is not a number or a sweep"),
        ("4k:1k:x2", "swap the two"),
        ("1k:4k:x1", "never gets there"),
        ("1k:4k:0", "never gets there"),
        ("0:4:x2", "never gets there"),
        ("0", "is too small; the least is 1"),
        ("5,0", "0 is too small"),
        (str(LARGEST + 1), "is too large"),
        ("1:100k:1", f"more than {LONGEST} values"),
    ],
)
def test_what_is_no_sweep_is_refused_by_name(text, told):
    with pytest.raises(Refusal, match="--window") as refusal:
        parse_sweep(text, "--window")
    assert told in str(refusal.value)


def test_a_flag_may_ask_for_more_than_one():
    with pytest.raises(Refusal, match="the least is 16"):
        parse_sweep("8", "--head-dim", least=16)


@given(st.integers(1, 10_000), st.integers(0, 10_000), st.integers(11, 5000))
def test_a_range_holds_what_python_says(start, length, step):
    assert parse_sweep(f"{start}:{start + length}:{step}", "--x") == list(range(start, start + length + 1, step))


@given(st.text(alphabet="0123456789kmx:,. -", max_size=12))
def test_any_text_is_numbers_or_a_refusal(text):
    try:
        numbers = parse_sweep(text, "--x")
    except Refusal as refusal:
        assert "--x" in str(refusal)
    else:
        assert numbers and len(set(numbers)) == len(numbers) and all(1 <= n <= LARGEST for n in numbers)
