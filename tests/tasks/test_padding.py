"""Rolling rows so that padding comes last."""

import pytest
import torch

from dmabench.tasks.padding import Padding


def test_rows_are_rolled_and_rolled_back():
    mask = torch.tensor([[1, 1, 1, 1], [0, 0, 1, 1], [1, 1, 0, 0], [0, 1, 1, 0], [0, 0, 0, 0]])
    padding = Padding.of(mask)
    x = torch.arange(20).view(5, 4)
    compact = padding.compact(x)
    assert compact.tolist() == [[0, 1, 2, 3], [6, 7, 4, 5], [8, 9, 10, 11], [13, 14, 15, 12], [16, 17, 18, 19]]
    assert torch.equal(padding.slots(compact), x)
    heads = compact[:, None, :, None].expand(5, 2, 4, 3)
    assert torch.equal(padding.slots(heads, 2), x[:, None, :, None].expand(5, 2, 4, 3))


def test_nothing_to_do_without_padding():
    assert Padding.of(torch.ones(3, 5)) is None


@pytest.mark.parametrize("row", [[1, 0, 1, 1], [0, 1, 0, 1], [1, 0, 0, 1]])
def test_holes_are_refused(row):
    with pytest.raises(ValueError, match="padding between real tokens"):
        Padding.of(torch.tensor([[1, 1, 1, 1], row]))
