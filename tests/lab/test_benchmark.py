"""The benchmark's variants train what they say, and its tables by hand. (Speed itself is no test.)"""

from types import SimpleNamespace

import benchmark
import pytest
import torch

OURS = [name for name in benchmark.RUNS if "compile" not in name]


@pytest.fixture(scope="module")
def o():
    options = benchmark.make_parser().parse_args([])
    options.sizes = ["tiny"]
    options.size = "tiny"
    options.batch = 4
    options.seq_len = 32
    options.vocab_size = 200
    options.device = "cpu"
    options.dtype = "float32"
    return options


@pytest.fixture(scope="module")
def folder(o, tmp_path_factory):
    folder = tmp_path_factory.mktemp("benchmark")
    benchmark.make_text(o, folder)
    return folder


@pytest.mark.parametrize("name", OURS)
def test_our_variants_make_steps_of_the_program(o, folder, name, monkeypatch):
    steps_made = []
    update = benchmark.train.Pretraining.update

    def count(self):
        steps_made.append(self.o.masking)
        update(self)

    monkeypatch.setattr(benchmark.train.Pretraining, "update", count)
    steps, operations = benchmark.pretraining(name, o, folder)
    steps(2)
    assert steps_made == [benchmark.RUNS[name].get("masking", "self")] * 2
    config = benchmark.bert.BertConfig.preset("tiny", vocab_size=200)
    random = 3 * benchmark.flops.forward_flops(config, 32, 0.15)
    costs_more = name in ("self, visible", "self, blank")
    assert (operations > random) == costs_more and operations >= random


@pytest.mark.parametrize("name", benchmark.LADDER)
def test_every_rung_of_the_ladder_learns_the_same_objective(o, folder, name, monkeypatch):
    losses = []
    backward = torch.Tensor.backward

    def keep(self, *given, **settings):
        losses.append(self.item())
        return backward(self, *given, **settings)

    monkeypatch.setattr(torch.Tensor, "backward", keep)
    torch.manual_seed(0)
    steps, _ = benchmark.rung(name, o, folder)
    steps(30)
    assert losses[0] == pytest.approx(5.3, abs=0.3), "log 200 = 5.3: a fresh model guesses"
    assert min(losses[20:]) < losses[0], "made-up rows are learned by heart"


@pytest.mark.parametrize("name", benchmark.GLUE)
def test_fine_tuning_variants_see_rows_of_the_same_length(o, folder, name):
    if name != "glue_eval.py":
        pytest.importorskip("transformers")
    steps, length = benchmark.glue(name, o, folder)
    steps(1)
    assert 36 < length < 46, "the mean of a lognormal with median 36 and sigma .5 is 40.8"


@pytest.mark.parametrize("name", benchmark.THEIRS)
def test_transformers_trains_on_the_same_text(o, folder, name):
    pytest.importorskip("transformers")
    steps, _ = benchmark.their_pretraining(name, o, folder)
    steps(1)


def test_the_stages_of_a_larger_text_leave_what_the_next_one_needs(o, corpus, tmp_path):
    (tmp_path / "vocab").mkdir()
    paragraphs = benchmark.write_beginning([corpus], tmp_path / "text.txt", 40_000)
    written = (tmp_path / "text.txt").read_text().splitlines()
    assert paragraphs == sum(line != "" for line in written)
    assert 40_000 < (tmp_path / "text.txt").stat().st_size < 41_000
    changes = {"corpus": [f"{tmp_path}/text.txt"], "vocab": f"{tmp_path}/vocab", "cache": f"{tmp_path}/cache"}
    changes |= {"out": str(tmp_path), "vocab_size": 200, "seq_len": 32, "device": "cpu", "reading": "memory"}
    options = benchmark.run_options(benchmark.train.make_parser(""), **changes)
    for name in benchmark.STAGES:
        seconds, _, _ = benchmark.stage(name, 0, options)
        assert seconds >= 0
    assert (tmp_path / "checkpoint.pt").is_file()


def test_tables_by_hand(o):
    def measured(seconds, memory, fact):
        return SimpleNamespace(seconds=seconds, memory=memory, fact=fact)

    result = {"random masks": measured(0.5, 300, 4e6), "self, blank": measured(0.75, 320, 5e6)}
    rows = benchmark.speed_rows(o, result, "random masks", tokens=1000, peak=1e12)
    assert rows[1] == ["tiny", "self, blank", "1,333", "0.67", "320", "0.7%"], (
        "5e6 x 1,333 of 1e12 per second"
    )
    assert benchmark.speed_rows(o, result, "random masks", 1000, None)[0] == rows[0][:-1]
    # half as slow again, a quarter more operations
    assert benchmark.extra_rows(o, result) == [["tiny", "self, blank", "+50%", "+25%", "2.00", "+20 MiB"]]
