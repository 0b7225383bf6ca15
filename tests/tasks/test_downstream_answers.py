"""Answers on disk: read back exactly, apart for each model, and whole although a crash cut a line."""

from dmabench.tasks.downstream.answers import Answers, key


def test_answers_come_back_exactly(tmp_path):
    first = Answers(tmp_path / "cell", rank=0)
    first.add("x", [(-1.1234567890123457, True), (-3e-300, False)])
    first.close()
    second = Answers(tmp_path / "cell", rank=1)
    assert second["x"] == [(-1.1234567890123457, True), (-3e-300, False)] and "y" not in second
    second.add("y", ["some text\nof two lines"])
    second.close()
    assert Answers(tmp_path / "cell")["y"] == ["some text\nof two lines"] and len(Answers(tmp_path / "cell")) == 2
    assert len(Answers(tmp_path / "cel")) == 0 and len(Answers(tmp_path / "other")) == 0
    second.delete()
    assert len(Answers(tmp_path / "cell")) == 0


def test_a_line_cut_off_costs_its_batch_alone(tmp_path):
    answers = Answers(tmp_path / "cell")
    answers.add("x", [(-1.0, True)])
    answers.add("y", [(-2.0, True)])
    answers.close()
    path = tmp_path / "cell.0.jsonl"
    path.write_bytes(path.read_bytes()[:-5])
    again = Answers(tmp_path / "cell")
    assert "x" in again and "y" not in again
    again.add("z", [(-3.0, False)])
    again.close()
    assert "z" in Answers(tmp_path / "cell")


def test_keys_tell_batches_apart():
    assert key([([1, 2], [3])]) == key([([1, 2], [3])])
    assert len({key([([1, 2], [3])]), key([([1], [2, 3])]), key([([1, 2], [3]), ([1], [2])])}) == 3
