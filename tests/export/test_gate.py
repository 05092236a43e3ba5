"""The gate on plain models of several heads: it lets through what reloads to the same outputs, and nothing else."""

import json
import math
import runpy
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
import transformers
from peft import PeftModel
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import AutoTokenizer, BertTokenizer

from hftoolkit.contracts import GateInputs, HeadSpec, Tensors
from hftoolkit.errors import ArtifactError
from hftoolkit.export import gate
from hftoolkit.export.gate import GateReport, check_round_trip, export_model
from hftoolkit.models.image_backbones import load_image_classifier, save_image_classifier
from hftoolkit.models.lora import apply_lora, save_adapter
from hftoolkit.runs.directory import RunDir

pytestmark = pytest.mark.slow

TEXTS = ["word1 good word2", "word3 Good", "bad word4 word5 fine word6"]  # only the second has a capital
CONTEXTS = ["word7 word8", "fine word9 word1 word2", "good"]
FRESH_PROCESS = Path(gate.__file__).with_name("fresh_process.py")


@dataclass(frozen=True)
class Head:
    """A head of BERT: its class without ``AutoModel``, the names of its outputs, its module, and what it returns."""

    kind: str
    names: tuple[str, ...]
    module: str
    outputs: tuple[str, ...] = ("logits",)

    @property
    def auto_class(self) -> str:
        return f"AutoModel{self.kind}"

    def forward(self, model: nn.Module, tensors: Tensors) -> dict[str, torch.Tensor]:
        output = model(**tensors)
        return {name: output[name] for name in self.outputs}


HEADS = {
    "classes": Head("ForSequenceClassification", ("bad", "fine", "good"), "classifier"),
    "tags": Head("ForTokenClassification", ("O", "B-mood", "I-mood"), "classifier"),
    "answers": Head("ForQuestionAnswering", (), "qa_outputs", ("start_logits", "end_logits")),
}


@dataclass
class Export:
    """A model to be exported; tests spoil ``save`` and read what the fresh process was asked and answered."""

    head: Head
    backbone: Path
    run: RunDir
    model: nn.Module = field(init=False)
    inputs: GateInputs = field(init=False)

    def __post_init__(self) -> None:
        self.model = self.pretrained()
        tokenizer = AutoTokenizer.from_pretrained(self.backbone)
        raw = {"text": TEXTS, "padding": True} | ({} if self.head.names else {"text_pair": CONTEXTS})
        tensors = dict(tokenizer(**raw, return_tensors="pt"))
        if self.head.names:
            del tensors["token_type_ids"]  # all 0, which is what a model takes them for
        self.inputs = GateInputs(tensors, "AutoTokenizer", raw)

    def pretrained(self) -> Any:
        """The backbone with a new head, always of the same weights."""
        torch.manual_seed(1)
        named = {"id2label": dict(enumerate(self.head.names))} if self.head.names else {}
        return getattr(transformers, self.head.auto_class).from_pretrained(self.backbone, **named).train()

    def save(self, model: Any, folder: Path) -> None:
        model.save_pretrained(folder)
        AutoTokenizer.from_pretrained(self.backbone).save_pretrained(folder)

    def __call__(self, save: Callable[[Any, Path], None] | None = None) -> GateReport:
        return export_model(
            self.model,
            self.run,
            save=save or self.save,
            inputs=self.inputs,
            forward=self.head.forward,
            auto_class=self.head.auto_class,
            names=self.head.names,
            save_base=lambda folder: self.save(self.pretrained(), folder),
            adapter_base=None,
        )


@pytest.fixture
def make_export(lively_backbone: Path, tmp_path: Path) -> Callable[[str], Export]:
    return lambda head: Export(HEADS[head], lively_backbone, RunDir.create("tiny", tmp_path / "run"))


def change(file: Path, name: str, amount: float) -> None:
    """Add to the last number of a tensor on disk."""
    weights = load_file(file)
    weights[name].view(-1)[-1] += amount
    save_file(weights, file, metadata={"format": "pt"})


@pytest.mark.parametrize("head", HEADS)
def test_a_model_passes_and_one_number_of_its_head_changed_on_disk_does_not(
    head: str, make_export: Callable[[str], Export]
) -> None:
    export = make_export(head)
    report = export()
    assert (report.rows, report.merged, report.adapter) == (3, None, None)
    assert report.saved <= 1e-5

    def spoil(model: Any, folder: Path) -> None:
        export.save(model, folder)
        change(folder / "model.safetensors", f"{export.head.module}.bias", 1e-3)  # end_logits alone, of answers

    with pytest.raises(
        ArtifactError, match=r"saved against reloaded: logits differ by 0\.001, at most 1e-05"
    ) as caught:
        export(spoil)
    assert caught.value.exit_code == 6
    assert (export.run.model / "model.safetensors").is_file()


def test_a_timm_model_is_read_by_transformers_and_by_timm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = ("blue", "green", "red")
    backbone = load_image_classifier(
        None, HeadSpec(names), architecture="test_vit", image_size=32, dropout=0.0, drop_path=0.0, seed=0
    )
    readers: list[set[str]] = []
    honest = gate.reload_in_fresh_process

    def listen(*arguments: Any) -> dict[str, Any]:
        answer = honest(*arguments)
        readers.append(set(answer["outputs"]))
        return answer

    def spoil(model: Any, folder: Path) -> None:
        save_image_classifier(model, backbone.preprocessing, folder)
        change(folder / "model.safetensors", "head.bias", 1e-3)

    def export(save: Callable[[Any, Path], None]) -> GateReport:
        return export_model(
            backbone.model,
            RunDir(tmp_path),
            save=save,
            inputs=GateInputs({"pixel_values": torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))}),
            forward=lambda model, tensors: {"logits": model(**tensors).logits},
            auto_class="AutoModelForImageClassification",
            names=names,
            save_base=lambda folder: None,
            adapter_base=None,
        )

    monkeypatch.setattr(gate, "reload_in_fresh_process", listen)
    assert export(lambda model, folder: save_image_classifier(model, backbone.preprocessing, folder)).saved <= 1e-5
    assert readers == [{"transformers", "timm"}]
    with pytest.raises(ArtifactError, match=r"saved against reloaded: logits differ by 0\.001"):
        export(spoil)


def test_a_tokenizer_that_keeps_capitals_where_the_trained_one_did_not_fails_the_gate(
    make_export: Callable[[str], Export],
) -> None:
    export = make_export("tags")

    def spoil(model: Any, folder: Path) -> None:
        export.save(model, folder)
        vocabulary = AutoTokenizer.from_pretrained(export.backbone).get_vocab()
        BertTokenizer(vocab=vocabulary, do_lower_case=False).save_pretrained(folder)

    expected = "AutoTokenizer reads the rows differently: input_ids differs, first in row 2 of 3"
    with pytest.raises(ArtifactError, match=expected) as caught:
        export(spoil)
    assert "logits differ" not in str(caught.value)  # the weights are as they were


def test_labels_in_another_order_fail_the_gate(make_export: Callable[[str], Export]) -> None:
    export = make_export("classes")

    def spoil(model: Any, folder: Path) -> None:
        export.save(model, folder)
        config = json.loads((folder / "config.json").read_text())
        config["id2label"] = {"0": "good", "1": "fine", "2": "bad"}
        (folder / "config.json").write_text(json.dumps(config))

    with pytest.raises(ArtifactError, match=r"label names are \['good', 'fine', 'bad'\], trained were \['bad', 'fine'"):
        export(spoil)


def with_lora(export: Export) -> PeftModel:
    """Wrap the model of an export, and move the head and the adapters by a few steps of gradient descent."""
    model = apply_lora(
        export.model,
        rank=2,
        alpha=4.0,
        dropout=0.1,
        targets="all-linear",
        blocks=frozenset(),
        trained_modules=(export.head.module,),
        variants={},
    )
    optimizer = torch.optim.SGD([weight for weight in model.parameters() if weight.requires_grad], lr=0.1)
    for _ in range(3):
        outputs = export.head.forward(model, export.inputs.tensors)
        torch.stack([(output - 1).square().mean() for output in outputs.values()]).sum().backward()
        optimizer.step()
        optimizer.zero_grad()
    return model


@pytest.mark.parametrize("head", ["classes", "tags", "answers"])
def test_an_adapter_with_its_head_reloads_in_plain_peft(head: str, make_export: Callable[[str], Export]) -> None:
    export = make_export(head)
    export.model = with_lora(export)
    with torch.inference_mode():
        trained = export.head.forward(export.model.eval(), export.inputs.tensors)
    report = export()
    assert report.adapter is not None and report.adapter <= 1e-5
    assert report.merged is not None and report.merged <= 1e-4
    base = export.pretrained()
    with torch.inference_mode():
        untrained = export.head.forward(base.eval(), export.inputs.tensors)
        adapted = export.head.forward(PeftModel.from_pretrained(base, export.run.adapter).eval(), export.inputs.tensors)
    for name in export.head.outputs:
        assert (untrained[name] - trained[name]).abs().max() > 0.01
        torch.testing.assert_close(adapted[name], trained[name], rtol=0, atol=1e-5)


# Those of adapters that were published; a change would leave their heads behind without an error.
@pytest.mark.parametrize(("head", "task"), [("classes", "SEQ_CLS"), ("tags", "TOKEN_CLS")])
def test_an_adapter_names_its_task_and_its_head_as_peft_does(
    head: str, task: str, make_export: Callable[[str], Export], tmp_path: Path
) -> None:
    export = make_export(head)
    save_adapter(with_lora(export), tmp_path / "adapter", base="some/backbone")
    config = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert (config["task_type"], config["base_model_name_or_path"]) == (task, "some/backbone")
    assert len(config["target_modules"]) > 6
    assert config["target_modules"] == sorted(config["target_modules"])  # and not as this process orders a set
    names = set(load_file(tmp_path / "adapter" / "adapter_model.safetensors"))
    head_names = {name for name in names if "lora" not in name}
    assert head_names == {f"base_model.model.{export.head.module}.{part}" for part in ("weight", "bias")}
    assert "base_model.model.bert.encoder.layer.1.output.dense.lora_B.weight" in names


@pytest.fixture
def judge(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., GateReport]:
    """Run the gate on outputs of this process and of a fresh one, which is not started."""

    def run(
        merged: Tensors, unmerged: Tensors | None = None, noise: float = 0.0, **reloaded: dict[str, torch.Tensor]
    ) -> GateReport:
        files = {who: tmp_path / f"{who}.safetensors" for who in reloaded}
        for who, outputs in reloaded.items():
            save_file(outputs, files[who])
        answer = {"names": [], "processor": [], "pipeline": [], "outputs": files}
        monkeypatch.setattr(gate, "reload_in_fresh_process", lambda *_: answer)
        inputs, run_dir = GateInputs({"input_ids": torch.zeros(1, 1)}), RunDir(tmp_path)
        run_dir.adapter_base.mkdir(parents=True, exist_ok=True)
        return check_round_trip(
            run_dir,
            inputs,
            "AutoModel",
            (),
            lambda folder: None,
            merged=merged,
            unmerged=unmerged,
            answers=None,
            noise=noise,
        )

    return run


def logits(largest: float, moved: float = 0.0) -> dict[str, torch.Tensor]:
    """Exact outputs, one moved: not the largest one, which sets the scale."""
    return {"logits": torch.tensor([[largest, 0.5 + moved]], dtype=torch.float64)}


@pytest.mark.parametrize(
    ("largest", "scale"),
    [(0.0, 1.0), (10.0, 1.0), (20.0, 2.0), (-1000.0, 100.0)],
    ids=["none", "at-the-limit", "just-beyond", "large-and-negative"],
)
def test_the_tolerance_is_flat_up_to_ten_and_grows_in_proportion_beyond(
    largest: float, scale: float, judge: Callable[..., GateReport]
) -> None:
    ours = logits(largest)
    for sign in (-1, 1):
        below, above = logits(largest, sign * 0.95e-5 * scale), logits(largest, sign * 1.05e-5 * scale)
        assert judge(ours, transformers=below).saved == pytest.approx(0.95e-5 * scale)
        assert judge(ours, transformers=ours, timm=below).saved == pytest.approx(0.95e-5 * scale)
        assert judge(ours, ours, transformers=ours, adapter=below).adapter == pytest.approx(0.95e-5 * scale)
        with pytest.raises(ArtifactError, match="saved against reloaded"):
            judge(ours, transformers=above)
        with pytest.raises(ArtifactError, match="saved against reloaded"):
            judge(ours, transformers=ours, timm=above)
        with pytest.raises(ArtifactError, match="adapter against reloaded"):
            judge(ours, ours, transformers=ours, adapter=above)
        below, above = logits(largest, sign * 0.95e-4 * scale), logits(largest, sign * 1.05e-4 * scale)
        assert judge(ours, below, transformers=ours, adapter=below).merged == pytest.approx(0.95e-4 * scale)
        with pytest.raises(ArtifactError, match="merged against unmerged"):
            judge(ours, above, transformers=ours, adapter=above)


@pytest.mark.parametrize("largest", [1.0, 50.0])
def test_rounding_that_the_model_shows_by_itself_widens_the_tolerance_and_a_spoiled_head_still_fails(
    largest: float, judge: Callable[..., GateReport]
) -> None:
    ours, scale = logits(largest), max(1.0, largest / 10)
    assert judge(ours, noise=5e-6 * scale, transformers=logits(largest, 1.9e-5 * scale)).noise == 5e-6 * scale
    for noise, moved in ((5e-6, 2.1e-5), (2e-6, 1.1e-5), (0.0, 1.1e-5), (1.0, 1.1e-4), (math.nan, 1.1e-5)):
        with pytest.raises(ArtifactError, match="saved against reloaded"):
            judge(ours, noise=noise * scale, transformers=logits(largest, moved * scale))
    assert judge(ours, noise=1.0, transformers=logits(largest, 0.9e-4 * scale)).saved > 0
    with pytest.raises(ArtifactError, match="merged against unmerged"):
        judge(ours, logits(largest, 1.1e-3 * scale), noise=1.0, transformers=ours, adapter=ours)


PLAIN_STRIDE = (36, 9, 3, 1)


class Noisy(torch.nn.Module):
    """A convolution whose outputs tell how many rows it sees at once, and how its weights lie in memory."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = torch.nn.Conv2d(4, 2, 3, padding=1)
        self.rows = self.layout = 0.0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        moved = self.conv.weight.stride() != PLAIN_STRIDE
        return self.conv(x).mean((2, 3)) + self.rows * (len(x) > 1) + self.layout * moved


@pytest.mark.parametrize(("rows", "layout", "expected"), [(0.0, 0.0, 0.0), (0.25, 0.0, 0.25), (0.0, 0.5, 0.5)])
def test_noise_is_what_equal_weights_differ_by_in_another_order(rows: float, layout: float, expected: float) -> None:
    model = Noisy().to(memory_format=torch.channels_last)
    before = model.conv.weight.detach().clone()
    assert model.conv.weight.stride() != PLAIN_STRIDE
    assert gate.plain_layout(model).conv.weight.stride() == PLAIN_STRIDE
    model.rows, model.layout = rows, layout
    inputs = GateInputs({"x": torch.ones(3, 4, 2, 2)})
    found = gate.measure_noise(model, inputs, lambda model, tensors: {"logits": model(tensors["x"])})
    assert found == pytest.approx(expected, abs=1e-6)
    assert torch.equal(model.conv.weight, before) and model.conv.weight.stride() == PLAIN_STRIDE


def test_weights_of_linear_layers_get_the_layout_of_loaded_ones_too() -> None:
    linear = torch.nn.Linear(4, 2, bias=False)
    linear.weight.data = torch.arange(8.0).reshape(4, 2).T  # as merging an adapter of a transposed layer may leave it
    assert linear.to(memory_format=torch.contiguous_format).weight.stride() == (1, 2)
    assert gate.plain_layout(linear).weight.stride() == (4, 1)
    assert linear.weight.T.flatten().tolist() == list(range(8))


def test_noise_leaves_out_what_the_attention_mask_hides() -> None:
    def forward(model: Any, tensors: Tensors) -> dict[str, torch.Tensor]:
        return {"logits": tensors["attention_mask"][..., None] * 1.0 + (len(tensors["attention_mask"]) == 1) * hidden}

    hidden = torch.tensor([0.0, 0.0, 7.0])[:, None]
    inputs = GateInputs({"attention_mask": torch.tensor([[1, 1, 0], [1, 1, 0]])})
    assert gate.measure_noise(torch.nn.Linear(1, 1), inputs, forward) == 0.0


def test_an_output_that_is_not_a_number_missing_or_of_another_shape_fails_the_gate(
    judge: Callable[..., GateReport],
) -> None:
    ours = {"start_logits": torch.zeros(2, 3), "end_logits": torch.zeros(2, 3)}
    assert judge(ours, transformers=ours).saved == 0.0
    for end in (torch.full((2, 3), torch.nan), torch.full((2, 3), 1e-3), torch.zeros(2, 1)):
        with pytest.raises(ArtifactError, match="saved against reloaded"):
            judge(ours, transformers=ours | {"end_logits": end})
    with pytest.raises(ArtifactError, match="saved against reloaded"):
        judge(ours, transformers={"start_logits": ours["start_logits"]})


@pytest.fixture
def differences(monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[str]]:
    """Compare tensors with those of a processor, as the fresh process does."""
    with mock.patch.dict(sys.modules):  # the script makes hftoolkit impossible to import
        compare = runpy.run_path(str(FRESH_PROCESS))["differences"]

    def run(made: Tensors, trained: Tensors) -> list[str]:
        monkeypatch.setattr(AutoTokenizer, "from_pretrained", lambda folder: lambda *, return_tensors: made)
        return list(compare({"processor": "AutoTokenizer", "model": "folder", "raw": {}}, trained))

    return run


def test_a_processor_may_give_more_tensors_and_others_of_rounding_but_nothing_else(
    differences: Callable[..., list[str]],
) -> None:
    ids, pixels = torch.tensor([[2, 5, 3], [2, 6, 3]]), torch.full((3, 2, 2), 0.5)
    trained = {"input_ids": ids, "pixel_values": pixels}
    assert not differences(trained | {"token_type_ids": torch.zeros_like(ids)}, trained)
    rounded = pixels.clone()
    rounded[0] += 5e-7
    assert not differences(trained | {"pixel_values": rounded}, trained)
    for far in (0.5 + 5e-6, torch.nan):
        moved = torch.full_like(pixels, far)
        assert differences({**trained, "pixel_values": moved}, trained) == ["pixel_values differs, first in row 1 of 3"]
    assert differences({"pixel_values": pixels}, trained) == ["it gives no input_ids"]
    assert differences(trained | {"input_ids": ids[:, :2]}, trained) == [
        "input_ids has the shape [2, 2], trained was [2, 3]"
    ]


def test_a_processor_that_differs_is_told_by_the_first_row_beyond_the_tolerance(
    differences: Callable[..., list[str]],
) -> None:
    pixels = torch.full((3, 2, 2), 0.5)
    made = pixels.clone()
    made[0] += 5e-7
    made[2, 1, 1] += 5e-6
    assert differences({"x": made}, {"x": pixels}) == ["x differs, first in row 3 of 3"]
    made[1, 0, 0] = torch.nan
    assert differences({"x": made}, {"x": pixels}) == ["x differs, first in row 2 of 3"]
    lengths, longer = torch.tensor([3, 3, 2]), torch.tensor([3, 4, 2])
    assert differences({"x": longer}, {"x": lengths}) == ["x differs, first in row 2 of 3"]
