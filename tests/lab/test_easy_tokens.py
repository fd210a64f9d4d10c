"""Python source as a corpus, and how many tokens of a text a model finds easy."""

import easy_tokens
import pytest
import torch
from conftest import SMALL, launch

import train
from model import BertForMaskedLM


@pytest.fixture
def source(tmp_path):
    folder = tmp_path / "source"
    (folder / "site-packages").mkdir(parents=True)
    (folder / "a.py").write_text("import os\n\n\ndef f(x):\n    return x\n\ng = f\0\n")
    (folder / "b.py").write_text("")
    (folder / "c.py").write_bytes(b"# caf\xe9\n")
    (folder / "site-packages" / "other.py").write_text("not_ours = 1\n")
    return folder


def test_a_file_is_a_document_and_a_block_a_line(source, tmp_path):
    path = tmp_path / "out" / "python.txt"
    path.parent.mkdir()
    path.write_text(easy_tokens.python_source([source]))
    documents = [document for document, _ in train.read_documents([path])]
    assert sorted(documents) == [["# caf"], ["import os", "def f(x): return x", "g = f"]]


def test_the_text_is_written_where_it_is_asked_for(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(easy_tokens, "python_source", lambda roots: "x = 1\n")
    easy_tokens.main(["text", "--out", str(tmp_path / "data" / "python.txt")])
    assert (tmp_path / "data" / "python.txt").read_text() == "x = 1\n"
    assert "6 characters" in capsys.readouterr().out


def test_the_share_of_easy_tokens_is_counted_at_the_places_of_the_exam(
    corpus, cache, tmp_path, capsys, monkeypatch
):
    run = launch("--corpus", corpus, "--cache", cache, "--out", tmp_path / "run", *SMALL)
    ids, places, labels = run.exam
    logits = BertForMaskedLM.from_pretrained(tmp_path / "run")(ids).double()
    p = logits.softmax(-1)
    entropy = -(p * p.log()).sum(-1).gather(1, places)[labels != -100]  # all logits, in float64
    found, loss = easy_tokens.exam_entropies(tmp_path / "run")
    assert torch.allclose(found.double(), entropy, atol=1e-4)
    at_places = logits.take_along_dim(places[..., None], 1).flatten(0, 1)
    assert loss == pytest.approx(
        torch.nn.functional.cross_entropy(at_places, labels.flatten()).item(), abs=1e-4
    )

    monkeypatch.setattr(easy_tokens, "EASY", entropy.median().item() + 1e-3)
    expected = (entropy < easy_tokens.EASY).double().mean().item()
    easy_tokens.main(["share", "--runs", str(tmp_path / "run")])
    line = capsys.readouterr().out.splitlines()[-1]
    assert f"| {expected:.1%} " in line and 0.5 <= expected < 1
    assert float(line.split("|")[-2]) == pytest.approx(entropy.mean().item() - loss, abs=0.0051)


def test_a_folder_without_a_run_is_named(tmp_path):
    with pytest.raises(SystemExit, match="easy_tokens.py: .*args.json"):
        easy_tokens.main(["share", "--runs", str(tmp_path)])
