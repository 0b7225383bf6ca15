"""Labels that tell models apart, and cells that are the same in every run."""

from dmabench.evals.cells import EvalCell, labels, make_cells


def test_labels_are_as_short_as_tells_models_apart(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for folder in ("a/model", "b/model", "c/other"):
        (tmp_path / folder).mkdir(parents=True)
    named = ["a/model", str(tmp_path / "b" / "model"), "c/other", "Qwen/Qwen3-0.6B", "untrained:tiny:mha"]
    assert labels(named) == ["a/model", "b/model", "other", "Qwen/Qwen3-0.6B", "untrained:tiny:mha"]
    assert labels(["./c/other"]) == ["other"]


def test_a_model_of_ours_is_called_by_its_attention_too(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name, text in (
        ("cells/1f/model", '{"model_type": "dmabench", "attention": "dma"}'),
        ("cells/2f/model", '{"model_type": "dmabench", "attention": "swa:5,mha:1"}'),
        ("cells/dma-7/model", '{"model_type": "dmabench", "attention": "dma"}'),
        ("cells/3f/model", '{"model_type": "qwen3", "attention": "x"}'),
        ("cells/4f/model", "{broken"),
    ):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "config.json").write_text(text)
    found = labels([f"cells/{name}/model" for name in ("1f", "2f", "dma-7", "3f", "4f")])
    assert found == ["dma 1f/model", "swa:5,mha:1 2f/model", "dma-7/model", "3f/model", "4f/model"]


def test_every_setting_makes_another_cell():
    one = EvalCell("m", "w", None, "t", 0, "hub", None)
    others = [
        EvalCell("n", "w", None, "t", 0, "hub", None),
        EvalCell("m", "x", None, "t", 0, "hub", None),
        EvalCell("m", "w", 8, "t", 0, "hub", None),
        EvalCell("m", "w", None, "u", 0, "hub", None),
        EvalCell("m", "w", None, "t", 5, "hub", None),
        EvalCell("m", "w", None, "t", 0, "folder", None),
        EvalCell("m", "w", None, "t", 0, "hub", 10),
        EvalCell("m", "w", None, "t", 0, "hub", None, (4096,)),
    ]
    assert len({cell.id for cell in (one, *others)}) == 9
    assert one.id == EvalCell("m", "w", None, "t", 0, "hub", None).id
    assert (one.name, others[2].name) == ("m", "m w=8")


def test_cells_go_model_by_model():
    cells = make_cells(
        [("a", "1"), ("b", "2")],
        [None, 8],
        [("wikitext", "hub"), ("niah_single_1", "made"), ("piqa", "hub")],
        lambda task: [None] if task == "wikitext" else [0, 5],
        None,
        (4096, 8192),
    )
    assert len(cells) == 2 * 2 * 5 == len({cell.id for cell in cells})
    assert [cell.model for cell in cells] == ["a"] * 10 + ["b"] * 10
    assert {cell.lengths for cell in cells if cell.task == "niah_single_1"} == {(4096, 8192)}
    assert {cell.lengths for cell in cells if cell.task != "niah_single_1"} == {()}
    assert {cell.shots for cell in cells if cell.task == "wikitext"} == {None}
