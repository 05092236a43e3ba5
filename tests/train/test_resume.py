"""A resumed run ends with the weights, to the last bit, of one that was never interrupted."""

import json
import math
import os
import shutil
import signal
from contextlib import nullcontext
from functools import partial
from itertools import islice

import pytest
import torch

from doubles.toy_training import (
    Attempt,
    SmallMemory,
    ToyTask,
    assert_same,
    copy_of,
    differ,
    flat,
    stop_after,
    toy_model,
)
from hftoolkit.contracts import Evaluated, Message, StepDone
from hftoolkit.errors import DataError, Interrupted, TrainingError
from hftoolkit.runs.checkpoint import TENSORS, newest_state, save_state
from hftoolkit.train import loop as trainer
from hftoolkit.train import state
from hftoolkit.train.inference import Inference

STEPS = 9  # 40 examples in batches of 16: 3 steps an epoch, 3 epochs


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def fit(attempt, **knobs):
    return attempt.fit(epochs=3, **knobs)


def interrupt(attempt, step, **knobs):
    tell, stop = attempt.listen, stop_after(step)
    attempt.listen = lambda event: (tell(event), stop(event))
    with pytest.raises(Interrupted):
        fit(attempt, **knobs)
    assert attempt.told(StepDone)[-1].step == step


def events_of(run):
    """What the run's metrics say, without times."""
    lines = [json.loads(line) for line in run.metrics.read_text().splitlines()]
    return [{key: value for key, value in line.items() if key != "examples_per_second"} for line in lines]


CASES = {
    "plain": ({}, {}),
    "dropout and accumulation": ({"dropout": 0.5}, {"micro_batch_size": 5}),
    "average": ({"dropout": 0.2}, {"ema_decay": 0.6}),
    "batch norm": ({"batch_norm": True, "dropout": 0.3}, {"batch_size": 13}),
    "batch norm and average": ({"batch_norm": True}, {"ema_decay": 0.6}),
    "two workers": ({"dropout": 0.5}, {"num_workers": 2}),
    "unfreezing": ({"dropout": 0.5}, {"unfreeze_at": {"body.weight": 1.0, "body.bias": 5 / 3}}),
    "cosine, evaluated often": ({}, {"schedule": "cosine", "times_per_epoch": 3, "warmup_ratio": 0.4}),
    "bf16": ({"dropout": 0.5}, {"precision": "bf16"}),
}


@pytest.mark.parametrize("case", CASES)
def test_interrupted_after_any_step_the_run_ends_as_if_nothing_had_happened(tmp_path, case):
    layers, knobs = CASES[case]
    whole = Attempt(tmp_path / "whole", model=toy_model(**layers))
    fitted = fit(whole, **knobs)
    last = fitted.progress.step
    for step in range(1, last + 1) if case in ("plain", "average") else (1, 4, last):
        folder = tmp_path / f"cut{step}"
        interrupt(Attempt(folder, model=toy_model(**layers)), step, **knobs)
        again = Attempt(folder, model=toy_model(**layers))
        resumed = fit(again, **knobs)
        assert_same(again.weights, whole.weights)
        assert [event.step for event in again.told(StepDone)] == list(range(step + 1, last + 1))
        assert events_of(again.run) == events_of(whole.run)
        assert resumed.best.metrics == fitted.best.metrics and resumed.best.step == fitted.best.step
        assert resumed.progress.examples == fitted.progress.examples
        if step < last:
            assert_same(again.after[last], whole.after[last])


def test_interrupted_after_every_single_step(tmp_path):
    knobs = {"ema_decay": 0.6, "micro_batch_size": 4}
    whole = Attempt(tmp_path / "whole", model=toy_model(0.5, batch_norm=True))
    fit(whole, **knobs)
    for step in range(1, STEPS + 1):
        interrupt(Attempt(tmp_path / "cut", model=toy_model(0.5, batch_norm=True)), step, **knobs)
    again = Attempt(tmp_path / "cut", model=toy_model(0.5, batch_norm=True))
    fit(again, **knobs)
    assert_same(again.weights, whole.weights)
    assert events_of(again.run) == events_of(whole.run)


@pytest.mark.parametrize("every", [1, 2, 4])
def test_what_was_not_saved_is_done_again(tmp_path, every):
    """As after a kill: the process ends without a word between two saves."""
    knobs = {"checkpoint_every": every, "ema_decay": 0.6}
    whole = Attempt(tmp_path / "whole", model=toy_model(0.5))
    fit(whole, **knobs)

    def die(number, loss_sum):
        if number == 8:  # in step 8, when 7 are done and 3 and 6 were evaluated
            raise ZeroDivisionError
        return loss_sum

    with pytest.raises(ZeroDivisionError):
        fit(Attempt(tmp_path / "cut", ToyTask(disturb=die), toy_model(0.5)), **knobs)
    again = Attempt(tmp_path / "cut", model=toy_model(0.5))
    fit(again, **knobs)
    assert again.told(StepDone)[0].step == {1: 8, 2: 7, 4: 7}[every]
    assert_same(again.weights, whole.weights)
    assert events_of(again.run) == events_of(whole.run)


def test_a_state_that_is_on_disk_is_not_saved_again(tmp_path, monkeypatch):
    interrupt(Attempt(tmp_path / "cut"), 4)
    saved = []
    monkeypatch.setattr("hftoolkit.train.state.save_state", lambda *_, step, **__: saved.append(step))
    fit(Attempt(tmp_path / "cut"), checkpoint_every=2)
    assert saved == [6, 8, 9]


def test_without_a_number_of_steps_the_clock_says_when_to_save(tmp_path, monkeypatch):
    clock = [0.0]
    monkeypatch.setattr("hftoolkit.train.state.time.monotonic", lambda: clock[0])
    attempt = Attempt(tmp_path / "run")
    tell, seen = attempt.listen, []

    def listen(event):
        tell(event)
        if isinstance(event, StepDone):
            seen.append(sorted(path.name for path in attempt.run.checkpoints.glob("step-*")))
            clock[0] += 25

    attempt.listen = listen
    attempt.fit(epochs=1, batch_size=4)  # 10 steps, saved when a minute is over and at the evaluation
    assert seen[2:4] == [[], ["step-000003"]] and seen[6] == ["step-000003", "step-000006"]


def test_early_stopping_goes_on_counting(tmp_path):
    scores = (0.9, 0.1, 0.1, 0.1, 0.1)
    whole = Attempt(tmp_path / "whole", ToyTask(scores=scores))
    whole.fit(epochs=6, early_stopping_patience=2)
    with pytest.raises(Interrupted):
        cut = Attempt(tmp_path / "cut", ToyTask(scores=scores))
        tell, stop = cut.listen, stop_after(8)
        cut.listen = lambda event: (tell(event), stop(event))
        cut.fit(epochs=6, early_stopping_patience=2)
    again = Attempt(tmp_path / "cut", ToyTask(scores=islice(scores, 2, None)))
    assert again.fit(epochs=6, early_stopping_patience=2).progress.step == 9
    assert_same(again.weights, whole.weights)
    once_more = Attempt(tmp_path / "cut")
    assert once_more.fit(epochs=6, early_stopping_patience=2).progress.step == 9
    assert not once_more.task.drawn
    assert_same(once_more.weights, whole.weights)


def test_a_signal_before_an_evaluation_does_not_skip_it(tmp_path):
    interrupt(Attempt(tmp_path / "cut"), 3)
    again = Attempt(tmp_path / "cut")
    fit(again)
    assert [event.step for event in again.told(Evaluated)] == [3, 6, 9]


class StopsInEvaluation(ToyTask):
    """Gets a signal while it predicts the third of its batches."""

    predicted = 0

    def predict(self, model, batch):
        self.predicted += not model.training
        if self.predicted == 3:
            os.kill(os.getpid(), signal.SIGTERM)
        return super().predict(model, batch)


def test_a_signal_ends_an_evaluation_which_is_then_done_again(tmp_path, monkeypatch):
    monkeypatch.setattr("hftoolkit.train.loop.Inference", partial(Inference, batch_size=4))
    monkeypatch.setattr("hftoolkit.train.speedups.cls_position_only", lambda *_: nullcontext())
    whole, cut = Attempt(tmp_path / "whole"), Attempt(tmp_path / "cut", StopsInEvaluation())
    fit(whole)
    with pytest.raises(Interrupted, match="SIGTERM at step 3"):
        fit(cut)
    assert cut.task.predicted == 3 and not cut.told(Evaluated)
    again = Attempt(tmp_path / "cut")
    fit(again)
    assert_same(again.weights, whole.weights)
    assert events_of(again.run) == events_of(whole.run)


def test_what_is_found_out_about_the_model_is_found_before_the_state_comes_back(tmp_path, monkeypatch):
    seen = []
    note = lambda model, _: seen.append(copy_of(model)) or nullcontext()  # noqa: E731
    monkeypatch.setattr("hftoolkit.train.speedups.cls_position_only", note)
    interrupt(Attempt(tmp_path / "cut"), 4)
    fit(Attempt(tmp_path / "cut"))
    assert len(seen) == 2
    assert_same(*seen)


def test_another_number_of_processes_is_told(tmp_path, monkeypatch):
    interrupt(Attempt(tmp_path / "cut"), 4, micro_batch_size=4)
    path = tmp_path / "cut" / "checkpoints"
    state = newest_state(path, print)
    values = state.values | {"progress": state.values["progress"] | {"processes": 2, "micro_batch_size": 2}}
    save_state(path, step=4, tensors=state.tensors, values=values, best=state.best)
    again = Attempt(tmp_path / "cut")
    fit(again, micro_batch_size=4)
    (warning,) = [message.text for message in again.told(Message) if message.level == "warning"]
    assert "1 instead of 2 ranks" in warning and len(again.task.drawn[0]) == 4


def test_a_finished_run_goes_straight_to_its_best_weights(tmp_path):
    whole = Attempt(tmp_path / "whole")
    fit(whole)
    again = Attempt(tmp_path / "whole")
    fit(again)
    assert not again.task.drawn and not again.told(Evaluated)
    assert_same(again.weights, whole.weights)
    assert [message.text for message in again.told(Message)] == ["resumed after step 9 of 9"]


def test_a_damaged_state_costs_the_way_from_the_one_before(tmp_path):
    whole = Attempt(tmp_path / "whole", model=toy_model(0.5))
    fit(whole)
    interrupt(Attempt(tmp_path / "cut", model=toy_model(0.5)), 8)
    damaged = tmp_path / "cut" / "checkpoints" / "step-000008"
    (damaged / TENSORS).write_bytes((damaged / TENSORS).read_bytes()[:-1])
    again = Attempt(tmp_path / "cut", model=toy_model(0.5))
    fit(again)
    assert [event.step for event in again.told(StepDone)] == [7, 8, 9]
    assert_same(again.weights, whole.weights)
    (warning,) = [message.text for message in again.told(Message) if message.level == "warning"]
    assert "step-000008 is damaged" in warning and "resuming from step-000006" in warning
    assert events_of(again.run) == events_of(whole.run)


def test_without_a_whole_state_the_run_does_not_begin_anew_in_silence(tmp_path):
    interrupt(Attempt(tmp_path / "cut"), 2)
    shutil.rmtree(tmp_path / "cut" / "checkpoints" / "step-000002")
    (tmp_path / "cut" / "checkpoints" / "step-000002").mkdir()
    with pytest.raises(DataError, match="Start a new run"):
        fit(Attempt(tmp_path / "cut"))


def test_a_run_that_was_killed_before_its_first_save_begins_anew(tmp_path):
    attempt = Attempt(tmp_path / "cut", ToyTask(disturb=lambda number, loss: 1 / 0 if number == 3 else loss))
    with pytest.raises(ZeroDivisionError):
        fit(attempt)
    whole, again = Attempt(tmp_path / "whole"), Attempt(tmp_path / "cut")
    fit(whole)
    fit(again)
    assert_same(again.weights, whole.weights)
    assert events_of(again.run) == events_of(whole.run)


def test_a_step_that_is_not_finite_leaves_the_last_state_to_go_on_from(tmp_path):
    spoilt = ToyTask(disturb=lambda number, loss: loss * (math.nan if number == 8 else 1))
    with pytest.raises(TrainingError, match="step 8: "):
        fit(Attempt(tmp_path / "cut", spoilt), checkpoint_every=1)
    whole, again = Attempt(tmp_path / "whole"), Attempt(tmp_path / "cut")
    fit(whole)
    fit(again)
    assert [event.step for event in again.told(StepDone)] == [8, 9]
    assert_same(again.weights, whole.weights)


def test_a_state_that_a_run_with_deepspeed_wrote_goes_on_and_says_so(tmp_path, monkeypatch):
    """Such states name what divided the moments; their tensors were always whole."""
    keys = ["epochs", "micro_batch_size", "processes", "step", "examples", "seconds", "evaluated_at"]
    keys += ["evaluations_since_best", "extensions"]
    old = lambda progress: {key: getattr(progress, key) for key in keys} | {"divided_by": "DeepSpeed ZeRO 2"}  # noqa: E731
    fit(whole := Attempt(tmp_path / "whole"))
    with monkeypatch.context() as patch:
        patch.setattr(state, "asdict", old)
        interrupt(Attempt(tmp_path / "cut"), 4)
    fit(again := Attempt(tmp_path / "cut"))
    (warning,) = [event.text for event in again.told(Message) if event.level == "warning"]
    assert "DeepSpeed ZeRO 2" in warning and "resumes" in warning
    assert_same(again.weights, whole.weights)


def test_a_state_of_another_model_is_refused(tmp_path):
    interrupt(Attempt(tmp_path / "cut"), 2)
    with pytest.raises(DataError, match=r"of another model; they differ in norm\."):
        fit(Attempt(tmp_path / "cut", model=toy_model(batch_norm=True)))


def test_the_micro_batch_size_in_force_is_part_of_the_state(tmp_path):
    whole = Attempt(tmp_path / "whole", SmallMemory(5), toy_model(0.5))
    fit(whole)
    interrupt(Attempt(tmp_path / "cut", SmallMemory(5), toy_model(0.5)), 4)
    again = Attempt(tmp_path / "cut", ToyTask(), toy_model(0.5))
    fit(again)
    assert_same(again.weights, whole.weights)
    assert max(map(len, again.task.drawn)) == 4


# More epochs


@pytest.mark.parametrize("patience", [None, 1])
def test_a_finished_run_can_be_extended_and_follows_the_schedule_of_all_epochs(tmp_path, patience):
    attempt = Attempt(tmp_path / "run", ToyTask(scores=[0.9, 0.5]), toy_model(0.5))
    attempt.fit(epochs=2, early_stopping_patience=patience)
    longer = Attempt(tmp_path / "run", ToyTask(scores=[0.95, 0.7]), toy_model(0.5))
    fitted = longer.fit(epochs=4, early_stopping_patience=patience)
    told = longer.told(StepDone)
    assert [event.step for event in told] == [7, 8, 9, 10, 11, 12]
    # A warmup of round(0.1 * 12) = 1 step, then linearly to zero at step 12.
    assert [event.learning_rate for event in told] == pytest.approx([0.01 * (1 - (s - 1) / 11) for s in range(6, 12)])
    assert fitted.progress.extensions == [(6, 2, 4)] and fitted.best.step == 9
    assert any("extended from 2 to 4 epochs" in message.text for message in longer.told(Message))
    assert sorted(flat(longer.task.drawn[:3])) == list(range(40))


def test_an_extension_that_was_interrupted_is_one_extension(tmp_path):
    def model():
        return toy_model(0.5)

    for name in ("whole", "cut"):
        Attempt(tmp_path / name, model=model()).fit(epochs=1)
    whole = Attempt(tmp_path / "whole", model=model())
    fit(whole)
    interrupt(Attempt(tmp_path / "cut", model=model()), 5)
    again = Attempt(tmp_path / "cut", model=model())
    assert fit(again).progress.extensions == [[3, 1, 3]]
    assert_same(again.weights, whole.weights)


# Negative controls: with its guard removed, each of these tests' detectors fails.


@pytest.mark.parametrize("forgotten", ["optimizer", "average", "averaged_steps", "model"])
def test_a_state_that_lacks_a_part_would_be_noticed(tmp_path, monkeypatch, forgotten):
    knobs = {"ema_decay": 0.6}
    whole = Attempt(tmp_path / "whole", model=toy_model(0.5))
    fit(whole, **knobs)
    interrupt(Attempt(tmp_path / "cut", model=toy_model(0.5)), 4, **knobs)
    again = Attempt(tmp_path / "cut", model=toy_model(0.5))
    honest = trainer.Checkpointer._load

    def forgetful(self, tensors):
        before = dict(self._tensors())
        kept = {name: tensor.clone() for name, tensor in before.items() if name.startswith(f"{forgotten}/")}
        honest(self, {name: tensor for name, tensor in tensors.items() if not name.startswith(f"{forgotten}/")} | kept)

    monkeypatch.setattr(trainer.Checkpointer, "_load", forgetful)
    fit(again, **knobs)
    assert differ(again.after[STEPS], whole.after[STEPS]) or differ(again.weights, whole.weights)


def test_a_state_of_another_version_is_refused(tmp_path):
    interrupt(Attempt(tmp_path / "cut"), 2)
    path = tmp_path / "cut" / "checkpoints"
    state = newest_state(path, print)
    values = state.values | {"progress": state.values["progress"] | {"is_divided": False}}
    save_state(path, step=2, tensors=state.tensors, values=values, best=state.best)
    with pytest.raises(DataError, match=r"another version of hftoolkit .*is_divided"):
        fit(Attempt(tmp_path / "cut"))
