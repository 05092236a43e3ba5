"""``evaluation.extra_metrics``: modules of the evaluate library, whose code runs only where the user said so."""

import json
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from types import SimpleNamespace
from typing import Any

import evaluate
import numpy as np
import pytest

from doubles.commands import hft, read_json, refused
from doubles.paths import ROOT
from doubles.tiny import text_classification
from hftoolkit.data.labels import LabelSet
from hftoolkit.hub.card import public_recipe
from hftoolkit.metrics.extra import extra_values, load_extra_metrics
from hftoolkit.recipe import Classification, Recipe, load_recipe
from hftoolkit.tasks.shared.class_head import ClassHead

pytestmark = pytest.mark.slow

AGREEMENT = ROOT / "tests" / "doubles" / "agreement.py"
SHORT = ("--set", "train.epochs=1", "--set", "evaluation.baselines=false")
FAILING = "        equal = np.mean("


@pytest.fixture(scope="module", autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Keep the copies that evaluate makes of modules for these tests alone."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("evaluate.config.HF_MODULES_CACHE", str(tmp_path_factory.mktemp("modules")))
        patch.setattr("evaluate.config.HF_METRICS_CACHE", str(tmp_path_factory.mktemp("metrics")))
        yield


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return text_classification.write(tmp_path_factory.mktemp("texts"))


def named(*addresses: object) -> tuple[str, str]:
    return "--set", f"evaluation.extra_metrics={json.dumps([str(address) for address in addresses])}"


@pytest.fixture(scope="module")
def broken(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A module that loads, and cannot compute."""
    path = tmp_path_factory.mktemp("broken") / "broken.py"
    text = AGREEMENT.read_text(encoding="utf-8")
    assert FAILING in text
    path.write_text(text.replace(FAILING, "        raise KeyError('by\\ndesign')\n" + FAILING), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def run(recipe: Path, broken: Path) -> Path:
    """A finished run with a metric that can be computed, and one that cannot; its output is beside it."""
    where = recipe.parent / "run"
    ended = hft("finetune", recipe, "--run-dir", where, *SHORT, *named(AGREEMENT, broken), "--allow-code")
    assert ended.code == 0, ended
    (recipe.parent / "out.txt").write_text(ended.out, encoding="utf-8")
    return where


def test_an_extra_metric_is_computed_once_at_the_end_and_shown(run: Path) -> None:
    test = read_json(run / "results.json")["test"]
    found = extra_values(test["metrics"])
    assert found == {
        "agreement/equal": pytest.approx(test["metrics"]["accuracy"]),
        "agreement/of/rows": test["examples"],
        "agreement/distance": pytest.approx(found["agreement/distance"]),
    }
    assert not any(name.startswith("extra/") for name in test["intervals"])
    assert "agreement/equal" in (run.parent / "out.txt").read_text(encoding="utf-8")
    assert f"agreement/equal: {found['agreement/equal']:.4g}" in (run / "model" / "README.md").read_text()


def test_one_that_fails_costs_nothing_but_itself(run: Path) -> None:
    results = read_json(run / "results.json")
    ((address, reason),) = results["test"]["extra_metrics_failed"].items()
    assert address.endswith("broken.py") and reason.startswith("KeyError") and "\n" not in reason
    assert read_json(run / "status.json")["exit_code"] == 0
    said = " ".join((run.parent / "out.txt").read_text(encoding="utf-8").split())
    assert "warning: evaluation.extra_metrics" in said and "--allow-code" in said


def test_no_other_number_depends_on_extra_metrics(recipe: Path, run: Path) -> None:
    plain = recipe.parent / "plain"
    assert hft("finetune", recipe, "--run-dir", plain, *SHORT).code == 0
    with_them, without = (read_json(folder / "results.json")["test"] for folder in (run, plain))
    own = {name: value for name, value in with_them["metrics"].items() if not name.startswith("extra/")}
    assert own == without["metrics"] and with_them["intervals"] == without["intervals"]
    assert with_them.keys() - without.keys() == {"extra_metrics_failed"}
    weights = [(folder / "model" / "model.safetensors").read_bytes() for folder in (run, plain)]
    assert weights[0] == weights[1]


def test_evaluate_repeats_them_if_their_code_may_run(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    refused(hft("evaluate", run), 2, "evaluation.extra_metrics", "--allow-code")
    ended = hft("evaluate", run, "--allow-code")
    assert ended.code == 0 and "agreement/equal" in ended.out, ended
    from hftoolkit.commands.evaluate import evaluate as measure_again

    again = measure_again(run, split="test", source=None, emit=lambda _: None, allow_code=True)
    assert json.loads(json.dumps(again)) == read_json(run / "results.json")["test"]


def test_using_the_model_runs_no_code_of_the_recipe(run: Path, recipe: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(evaluate, "load", lambda *_, **__: pytest.fail("a metric was loaded"))
    assert hft("predict", run, recipe.parent / "reviews.csv").code == 0


@pytest.mark.parametrize("more", [(), ("--dry-run",)], ids=["train", "dry run"])
def test_code_runs_only_where_the_user_allows_it(more: tuple[str, ...], recipe: Path, tmp_path: Path) -> None:
    traitor, sign = tmp_path / "traitor.py", tmp_path / "it ran"
    traitor.write_text(f"open({str(sign)!r}, 'w').close()\n{AGREEMENT.read_text()}", encoding="utf-8")
    command = ("finetune", recipe, "--run-dir", tmp_path / "run", *named(traitor), *more)
    refused(hft(*command), 2, "evaluation.extra_metrics", "traitor.py", "--allow-code")
    assert not sign.exists() and not (tmp_path / "run").exists()


def test_a_dry_run_loads_them(recipe: Path, tmp_path: Path) -> None:
    command = ("finetune", recipe, "--run-dir", tmp_path / "run", "--dry-run", "--allow-code")
    assert hft(*command, *named(AGREEMENT)).code == 0
    refused(hft(*command, *named(tmp_path / "none.py")), 2, "none.py")


MODULE = AGREEMENT.read_text(encoding="utf-8")
MEASUREMENT = MODULE.replace("evaluate.MetricInfo(", "evaluate.MeasurementInfo(")
SOURCES_TOO = MODULE.replace('"references": kind}', '"references": kind, "sources": kind}')


@pytest.mark.parametrize(
    ("source", "code", "said"),
    [
        (None, 2, "@REVISION"),
        ("def (", 2, "SyntaxError"),
        ("x = 1", 2, "cannot be loaded as a metric"),
        ("open('no such file')", 2, "cannot be loaded as a metric"),
        ("import no_such_package_at_all", 4, "no_such_package_at_all"),
        (MEASUREMENT, 2, "measurement"),
        (SOURCES_TOO, 2, "sources"),
    ],
    ids=["missing", "no Python", "no metric", "fails", "no package", "measurement", "other inputs"],
)
def test_what_is_no_metric_is_found_before_anything_is_trained(
    source: str | None, code: int, said: str, recipe: Path, tmp_path: Path
) -> None:
    module = tmp_path / "bad.py"
    if source is not None:
        module.write_text(source, encoding="utf-8")
    ended = hft("finetune", recipe, "--run-dir", tmp_path / "run", *named(module), "--allow-code")
    refused(ended, code, "evaluation.extra_metrics", "bad.py", said)
    assert not (tmp_path / "run").exists()


def test_two_metrics_of_one_name_are_refused(recipe: Path) -> None:
    refused(hft("finetune", recipe, *named("ada/mape@v1", "./mape.py")), 2, "extra_metrics", "mape", "rename")


def test_a_recommender_has_no_such_knob() -> None:
    recipe = ROOT / "recipes" / "recommendation.yaml"
    refused(hft("finetune", recipe, *named(AGREEMENT)), 2, "extra_metrics", "unknown key")


def test_classes_of_multi_label_texts_are_0_and_1_in_the_configuration_of_that_name() -> None:
    (metric,) = load_extra_metrics([str(AGREEMENT)])
    head = ClassHead(LabelSet(("a", "b"), {}, multi_label=True), Classification(kind="any"), (), None)
    logits = [np.array(row, np.float32) for row in ([-1, 1], [1, 1], [-1, -1])]
    raw = [SimpleNamespace(target=np.array(row, np.float32)) for row in ([0, 1], [1, 0], [0, 0])]
    predictions, references = head.pairs(logits, raw)
    assert predictions == [[0, 1], [1, 1], [0, 0]] and references == [[0, 1], [1, 0], [0, 0]]
    assert extra_values(metric.compute(predictions, references))["agreement/equal"] == pytest.approx(2 / 3)


@pytest.mark.parametrize("returned", [{"curve": [1.0]}, {"f": float("inf")}, {"say": "good"}, 0.5], ids=str)
def test_a_metric_without_a_finite_number_has_failed(returned: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    (metric,) = load_extra_metrics([str(AGREEMENT)])
    monkeypatch.setattr(metric.module, "_compute", lambda **_: returned)
    with pytest.raises(ValueError, match="finite number"):
        metric.compute([1], [1])


def test_numbers_of_numpy_and_of_nested_dicts_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    (metric,) = load_extra_metrics([str(AGREEMENT)])
    returned = {"a": np.float32(0.5), "b": {"c": np.int64(2), "d": np.array(3.0)}, "e": "text", "f": [1.0]}
    monkeypatch.setattr(metric.module, "_compute", lambda **_: returned)
    assert extra_values(metric.compute([1], [1])) == {"agreement/a": 0.5, "agreement/b/c": 2.0, "agreement/b/d": 3.0}


def test_others_see_no_folder_of_this_machine(recipe: Path) -> None:
    parsed = load_recipe(recipe, named(AGREEMENT)[1:])
    assert isinstance(parsed, Recipe)
    assert public_recipe(parsed).evaluation.extra_metrics == ("agreement.py",)


@pytest.fixture
def serve(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], list[str]]]:
    """Serve a module at any address of a Hub; return the list of paths that are asked for."""
    servers = []

    def start(module: str) -> list[str]:
        asked: list[str] = []

        class Hub(BaseHTTPRequestHandler):
            def do_HEAD(self) -> None:
                asked.append(self.path)
                self.send_response(200 if self.path.endswith("/agreement.py") else 404)
                self.send_header("Content-Length", str(len(module.encode())))
                self.send_header("ETag", '"1"')
                self.end_headers()

            def do_GET(self) -> None:
                self.do_HEAD()
                self.wfile.write(module.encode())

            def log_message(self, *_: Any) -> None:
                """Keep quiet."""

        servers.append(ThreadingHTTPServer(("127.0.0.1", 0), Hub))
        Thread(target=servers[-1].serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{servers[-1].server_port}"
        monkeypatch.setattr("evaluate.config.HUB_EVALUATE_URL", url + "/spaces/{path}/resolve/{revision}/{name}")
        monkeypatch.setattr("evaluate.config.HF_EVALUATE_OFFLINE", False)
        monkeypatch.setattr("evaluate.config.HF_UPDATE_DOWNLOAD_COUNTS", False)
        return asked

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


@pytest.mark.parametrize("revision", ["", "@v1"], ids=["newest", "pinned"])
def test_a_metric_comes_from_the_hub(
    revision: str, serve: Callable[[str], list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("evaluate.config.DOWNLOADED_EVALUATE_PATH", tmp_path)
    asked = serve(AGREEMENT.read_text(encoding="utf-8"))
    (metric,) = load_extra_metrics([f"ada/agreement{revision}"])
    assert extra_values(metric.compute([1, 2], [1, 1]))["agreement/equal"] == 0.5
    assert asked and all(path.startswith("/spaces/ada/agreement/resolve/") for path in asked)
    assert any("/v1/" in path for path in asked) == bool(revision)
