"""gpu_check.py on a CPU: its small form ends well, and each of its checks can fail."""

from types import SimpleNamespace

import gpu_check
import pytest
import torch

import glue_eval
import train


@pytest.fixture
def lab(tmp_path):
    return gpu_check.make_lab("cpu", tmp_path, batch_size=8)


def test_the_small_form_runs_from_start_to_end(capsys):
    status = gpu_check.main(["--device", "cpu"])
    printed = capsys.readouterr().out
    assert status == 0, f"a check failed on a machine that the tests pass on:\n{printed}"
    assert "NO GPU" in printed, "nobody should take a CPU's figures for a GPU's"
    for name in gpu_check.CHECKS:
        assert f"\n{name}: " in printed, f"the line of the check {name!r} is missing"
    table = [line for line in printed.splitlines() if line.startswith("| tiny")]
    assert len(table) == 3, "two kinds of pretraining and one of fine-tuning are timed"
    assert all(float(row.split("|")[3].replace(",", "")) > 0 for row in table), "tokens per second"


def test_a_failure_is_said_and_sets_the_exit_status(capsys, monkeypatch):
    def broken(lab):
        raise RuntimeError("no such kernel\nand a page of advice")

    monkeypatch.setattr(gpu_check, "CHECKS", {"first": broken, "second": lambda lab: "ok: all well"})
    assert gpu_check.main(["--device", "cpu"]) == 1
    printed = capsys.readouterr().out
    assert "first: FAILED: RuntimeError: no such kernel\n" in printed
    assert "second: ok: all well\n" in printed, "one failure should not end the others"


def test_a_pretraining_step_that_waits_fails(lab, monkeypatch):
    choose = train.Pretraining.choose

    def waiting(self, *given):
        selected = choose(self, *given)
        if self.o.select == "mid":
            selected.sum().item()
        return selected

    monkeypatch.setattr(train.Pretraining, "choose", waiting)
    with pytest.raises(AssertionError, match="--masking self .*--select mid: .*wait"):
        gpu_check.check_waits(lab)


def test_a_fine_tuning_step_that_waits_fails(lab, monkeypatch):
    update = glue_eval.update
    monkeypatch.setattr(gpu_check, "variants", lambda lab: [])
    monkeypatch.setattr(glue_eval, "update", lambda *given: update(*given).item())
    with pytest.raises(AssertionError, match="wait"):
        gpu_check.check_waits(lab)


def test_a_device_that_computes_something_else_fails(lab, monkeypatch):
    loss = train.Pretraining.loss

    def wrong_gradient(self, ids, places, labels):
        value, sums, entropy = loss(self, ids, places, labels)
        return value * (0 if self.dtype == torch.bfloat16 else 1), sums, entropy

    monkeypatch.setattr(train.Pretraining, "loss", wrong_gradient)
    with pytest.raises(AssertionError, match="too far from float32 on the CPU: bfloat16;"):
        gpu_check.check_losses(lab)


def test_a_resumed_run_that_forgets_something_fails(lab, monkeypatch):
    load = train.Pretraining.load

    def stopped(command, **settings):  # here a run need not die in a process of its own
        with pytest.raises(SystemExit):
            gpu_check.launch(gpu_check.Stopped, *command[3:])
        return SimpleNamespace(returncode=1)

    def forgetful(self, state):
        state["optimizer"]["state"] = {}
        load(self, state)

    monkeypatch.setattr(gpu_check, "subprocess", SimpleNamespace(run=stopped))
    monkeypatch.setattr(train.Pretraining, "load", forgetful)
    with pytest.raises(AssertionError, match="held-out losses differ by"):
        gpu_check.check_resume(lab)


def test_a_step_beyond_the_cards_memory_is_a_row_and_no_failure(lab, monkeypatch):
    def too_large(lab, size):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 4 GiB")

    def broken(lab, size):
        raise RuntimeError("no such kernel")

    monkeypatch.setattr(gpu_check, "programs", lambda lab: {"large": too_large})
    gpu_check.check_speed(lab)
    assert lab.table[1:] == [["tiny", "large", "out of memory", "", ""]]
    monkeypatch.setattr(gpu_check, "programs", lambda lab: {"broken": broken})
    with pytest.raises(AssertionError, match="tiny, broken: RuntimeError: no such kernel"):
        gpu_check.check_speed(lab)
