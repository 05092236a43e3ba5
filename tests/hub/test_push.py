"""``hftoolkit push`` and ``hub:`` against a Hub on loopback: what arrives, what loads it, and what is refused."""

import csv
import json
import random
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from huggingface_hub import get_session
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from PIL import Image

from doubles.commands import hft, read_json, refused
from doubles.loopback_hub import Account, Client, LoopbackHub, Repository, card_errors, small
from doubles.pictures import PICTURE_RECIPE
from doubles.pushes import POLICY_RECIPE, commits, make_run, model_files, remote_files
from doubles.recommend_tables import RECIPE as RECOMMENDER
from doubles.recommend_tables import write_world
from doubles.reviews import RECIPE, review_rows
from hftoolkit.hub.faults import with_retries
from hftoolkit.recipe import check_repository

TOKEN = "hf_canary_3f9a51"


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[LoopbackHub]:
    with LoopbackHub.running(tmp_path / "xet") as hub:
        hub.accounts[TOKEN] = Account("ada", organizations=("lab",))
        yield hub


@pytest.fixture(params=["lfs", "xet"])
def client(hub: LoopbackHub, tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Client]:
    """A client in either upload mode, whose secrets are looked for in all that it left, printed and sent."""
    (tmp_path / "work").mkdir()
    client = Client(hub, tmp_path / "work", TOKEN, xet=request.param == "xet")
    yield client
    assert client.leaks() == []


lfs_only = pytest.mark.parametrize("client", ["lfs"], indirect=True)
xet_only = pytest.mark.parametrize("client", ["xet"], indirect=True)


@pytest.fixture(scope="session")
def lora_run(tmp_path_factory: pytest.TempPathFactory, lively_backbone: Path) -> Path:
    folder = tmp_path_factory.mktemp("lora")
    with (folder / "t.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("text", "label"), *review_rows(60)])
    recipe = RECIPE.format(table=folder / "t.csv", backbone=lively_backbone)
    (folder / "lora.yaml").write_text(recipe + "tuning: {method: lora, rank: 2}\n")
    ended = hft("finetune", folder / "lora.yaml", "--run-dir", folder / "run", "--set", "train.epochs=1")
    assert ended.code == 0, ended
    return folder / "run"


@pytest.fixture(scope="session")
def picture_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder, generator = tmp_path_factory.mktemp("pictures"), random.Random(0)
    for name, level in {"dark": 40, "light": 200}.items():
        (folder / "data" / name).mkdir(parents=True)
        for number in range(20):
            pixels = np.full((32, 32, 3), level + generator.randrange(40), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / "data" / name / f"{number}.png")
    (folder / "pictures.yaml").write_text(PICTURE_RECIPE.format(source=folder / "data"))
    ended = hft("finetune", folder / "pictures.yaml", "--run-dir", folder / "run")
    assert ended.code == 0, ended
    return folder / "run"


@pytest.fixture(scope="session")
def policy_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("policy")
    (folder / "policy.yaml").write_text(POLICY_RECIPE)
    ended = hft("rl", "train", folder / "policy.yaml", "--run-dir", folder / "run")
    assert ended.code == 0, ended
    return folder / "run"


@pytest.fixture(scope="session")
def recommender_run(tmp_path_factory: pytest.TempPathFactory, lively_backbone: Path) -> Path:
    folder = tmp_path_factory.mktemp("recommender")
    write_world(folder)
    text = RECOMMENDER.format(folder=folder, backbone=lively_backbone)
    (folder / "r.yaml").write_text(text.replace("bootstrap_samples: 100,", "bootstrap_samples: 100, baselines: false,"))
    ended = hft("finetune", folder / "r.yaml", "--run-dir", folder / "run", "--set", "train.epochs=1")
    assert ended.code == 0, ended
    return folder / "run"


# --- what arrives ---------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_push_makes_a_private_repository_equal_to_the_model_in_one_commit_and_no_second_one(
    client: Client, tmp_path: Path
):
    run = make_run(tmp_path / "run")
    ended = client.run("push", run, "ada/reviews")
    assert ended.code == 0 and ended.err == "", ended
    repository = client.hub.repositories["ada/reviews"]
    assert repository.private
    assert remote_files(repository) == model_files(run)
    assert commits(repository) == 1
    assert f"{client.hub.endpoint}/ada/reviews (private, commit {repository.commits[-1][:12]})" in ended.out
    assert 'hftoolkit.load("ada/reviews")' in ended.out
    is_xet = [blob.xet_hash is not None for blob in repository.tree().values() if blob.sha256]
    assert is_xet == [client.xet] * 2

    ended = client.run("push", run, "ada/reviews")
    assert ended.code == 0 and "holds exactly this model" in ended.out, ended
    assert commits(repository) == 1


@pytest.mark.slow
@lfs_only
def test_nothing_but_the_model_is_sent(client: Client, tmp_path: Path):
    run = make_run(tmp_path / "run")
    expected = model_files(run)
    (run / "model" / ".env").write_text(f"HF_TOKEN={TOKEN}")
    (run / "model" / ".cache").mkdir()
    (run / "model" / ".cache" / "x").write_text("x")
    assert client.run("push", run, "ada/reviews", "--public").code == 0
    assert remote_files(client.hub.repositories["ada/reviews"]) == expected
    assert not client.hub.repositories["ada/reviews"].private
    sent = b"".join(request.body for request in client.hub.requests)
    checkpoint = run / "checkpoints" / "step-000001" / "model.safetensors"
    assert checkpoint.read_bytes() not in sent
    weights = {sha for name, sha in expected.items() if name.endswith(".safetensors")}
    assert set(client.hub.large) == weights


@pytest.mark.slow
@lfs_only
def test_files_of_an_older_push_go_in_the_same_commit(client: Client, tmp_path: Path):
    run = make_run(tmp_path / "run")
    repository = client.hub.repositories["ada/reviews"] = Repository(private=True)
    first = {".gitattributes": small(b"* -text\n"), ".gitignore": small(b"*.json\n"), "README.md": small(b"old")}
    old = repository.add(first | {"adapter/merges.txt": small(b"{}")}, "older push")
    ended = client.run("push", run, "ada/reviews")
    assert ended.code == 0, ended
    assert f"kept in commit {old[:12]}: .gitignore, adapter/merges.txt" in ended.out
    assert remote_files(repository) == model_files(run)
    assert repository.tree()[".gitattributes"].data == b"* -text\n"
    assert commits(repository) == 1


# --- what loads it --------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("client", [pytest.param("lfs", marks=pytest.mark.faults), "xet"], indirect=True)
def test_plain_libraries_load_what_was_pushed_by_its_id(
    client: Client, lora_run: Path, picture_run: Path, recommender_run: Path, policy_run: Path
):
    runs = ((lora_run, "reviews"), (picture_run, "shades"), (recommender_run, "items"), (policy_run, "cartpole"))
    for run, name in runs:
        ended = client.run("push", run, f"ada/{name}")
        assert ended.code == 0, ended
        assert remote_files(client.hub.repositories[f"ada/{name}"]) == model_files(run)
    assert 'hftoolkit.load("ada/cartpole")' in ended.out
    printed = client.python(f"""
import json, pathlib, torch, timm
from huggingface_hub import snapshot_download
from peft import PeftModel
from safetensors.torch import load_file
from sentence_transformers import SentenceTransformer
from transformers import AutoModelForImageClassification, AutoModelForSequenceClassification, AutoTokenizer, pipeline

def logits(model, **batch):
    with torch.inference_mode():
        answer = model.eval()(**batch) if "x" not in batch else model.eval()(batch["x"])
    return getattr(answer, "logits", answer)

text = "word1 word2 good"
encoded = AutoTokenizer.from_pretrained("ada/reviews")(text, return_tensors="pt")
whole = AutoModelForSequenceClassification.from_pretrained("ada/reviews")
base = AutoModelForSequenceClassification.from_pretrained("ada/reviews", subfolder="adapter/base")
adapted = PeftModel.from_pretrained(base, "ada/reviews", subfolder="adapter")
local = AutoModelForSequenceClassification.from_pretrained({str(lora_run / "model")!r})
pixels = torch.rand(1, 3, 32, 32)
image = AutoModelForImageClassification.from_pretrained("ada/shades")
plain = timm.create_model("hf_hub:ada/shades", pretrained=True)
here = AutoModelForImageClassification.from_pretrained({str(picture_run / "model")!r})
titles = ["bad word1", "good word2"]
vectors = SentenceTransformer("ada/items", device="cpu").encode(titles)
own_vectors = SentenceTransformer({str(recommender_run / "model")!r}, device="cpu").encode(titles)
policy = load_file(pathlib.Path(snapshot_download("ada/cartpole"), "model.safetensors"))
trained = load_file({str(policy_run / "model" / "model.safetensors")!r})
print(json.dumps({{
    "text": (logits(whole, **encoded) - logits(local, **encoded)).abs().max().item(),
    "peft": (logits(whole, **encoded) - logits(adapted, **encoded)).abs().max().item(),
    "pipeline": sorted(each["label"] for each in pipeline("text-classification", "ada/reviews", top_k=None)([text])[0]),
    "image": (logits(image, pixel_values=pixels) - logits(here, pixel_values=pixels)).abs().max().item(),
    "timm": (logits(plain, x=pixels) - logits(image, pixel_values=pixels)).abs().max().item(),
    "shades": sorted(pipeline("image-classification", "ada/shades").model.config.label2id),
    "items": float(abs(vectors - own_vectors).max()),
    "spread": float(abs(vectors[0] - vectors[1]).max()),
    "policy": all(torch.equal(policy[name], trained[name]) for name in trained),
}}))
""")
    seen = json.loads(printed.splitlines()[-1])
    assert seen["text"] == seen["image"] == seen["items"] == 0 and seen["policy"] and seen["spread"] > 1e-3
    assert seen["peft"] < 1e-4 and seen["timm"] < 1e-5
    assert seen["pipeline"] == ["bad", "fine", "good"] and seen["shades"] == ["dark", "light"]


@pytest.mark.slow
@xet_only
def test_a_pushed_model_is_a_backbone_again_and_the_recipe_pushes_what_comes_out(client: Client, tiny_run: Path):
    assert client.run("push", tiny_run, "ada/reviews").code == 0
    rows = "".join(f"{text},{label}\n" for text, label in [("text", "label"), *review_rows(60)])
    data = client.hub.repositories["datasets/ada/table"] = Repository(private=True)
    data.add({"train.csv": small(rows.encode())}, "data")
    recipe = RECIPE.format(table="ada/table", backbone="ada/reviews") + "hub: {repo: lab/again}\n"
    (client.folder / "again.yaml").write_text(recipe)

    ended = client.run("--verbose", "finetune", "again.yaml", "--dry-run")
    assert ended.code == 0 and "lab/again (private) does not exist yet, and can be made" in ended.out, ended
    assert "lab/again" not in client.hub.repositories

    ended = client.run("--verbose", "finetune", "again.yaml", "--set", "train.epochs=1")
    assert ended.code == 0, ended
    run = client.folder / "runs" / "again"
    assert remote_files(client.hub.repositories["lab/again"]) == model_files(run)
    assert commits(client.hub.repositories["lab/again"]) == 1
    asked = [str(request) for request in client.hub.requests]
    check = asked.index("POST /api/repos/create", asked.index("POST /api/repos/create") + 1)
    assert any(request.startswith("GET /api/datasets/ada/table") for request in asked[check:])
    assert "base_model: ada/reviews" in (run / "model" / "README.md").read_text()
    assert f"{client.hub.endpoint}/lab/again" in (run / "train.log").read_text()

    begun = {"ada/table": data.commits[-1], "ada/reviews": client.hub.repositories["ada/reviews"].commits[-1]}
    assert json.loads((run / "revisions.json").read_text()) == begun
    data.add({"train.csv": small(b"text,label\nanother,bad\n")}, "other rows")
    ended = client.run("evaluate", run)  # on the rows that the run began with
    assert ended.code == 0, ended


# --- hub: in a recipe -----------------------------------------------------------------------------------------------


@pytest.mark.slow
@lfs_only
def test_a_missing_permission_stops_a_run_before_its_model_and_data_are_touched(client: Client):
    recipe = RECIPE.format(table="no/table", backbone="no/model") + "hub: {repo: grace/reviews}\n"
    (client.folder / "r.yaml").write_text(recipe)
    ended = client.run("finetune", "r.yaml")
    refused(ended, 4, "hub.repo grace/reviews", "ada/reviews, lab/reviews", "leave out the section hub")
    assert not any("no/" in str(request) for request in client.hub.requests)
    assert client.hub.repositories == {}
    assert read_json(client.folder / "runs" / "r" / "status.json")["exit_code"] == 4


@pytest.mark.slow
@lfs_only
def test_a_push_that_fails_at_the_end_leaves_a_finished_run_and_the_command_to_push_it(client: Client):
    (client.folder / "policy.yaml").write_text(POLICY_RECIPE + "hub: {repo: ada/cartpole, private: false}\n")
    client.hub.fail("POST /api/models/ada/cartpole/commit", status=503, times=1000)
    ended = client.run("rl", "train", "policy.yaml")
    assert ended.code == 4 and "Traceback" not in ended.err, ended
    assert "error: cannot push runs/policy/model to ada/cartpole: the Hub answered 503" in ended.err
    assert "The model is complete in runs/policy/model" in ended.err
    assert read_json(client.folder / "runs" / "policy" / "status.json")["state"] == "done"
    assert commits(client.hub.repositories["ada/cartpole"]) == 0

    client.hub.faults.clear()
    again = ended.err.partition("type: hftoolkit ")[2].split()
    assert again == ["push", "runs/policy", "ada/cartpole", "--public"]
    assert client.run(*again).code == 0
    assert remote_files(client.hub.repositories["ada/cartpole"]) == model_files(client.folder / "runs" / "policy")


def test_one_repository_does_not_take_the_policies_of_several_seeds(tmp_path: Path):
    (tmp_path / "policy.yaml").write_text(POLICY_RECIPE + "hub: {repo: ada/cartpole}\n")
    ended = hft("rl", "train", tmp_path / "policy.yaml", "--seeds", 2, "--run-dir", tmp_path / "run")
    refused(ended, 2, "hub.repo holds one policy")
    assert not (tmp_path / "run").exists()


# --- what is refused ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", ["reviews", "a/b/c", "/b", "a/", "-a/b", "a/b.git", "a/x--y", "a/x..y", "\u00e9/b", "a b/c"]
)
def test_a_repository_id_is_checked_before_anything_else(name: str, tmp_path: Path):
    refused(hft("push", tmp_path, "--", name), 2, repr(name), "OWNER/NAME")


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.text("aZ0_-./\u00e9", max_size=12) | st.from_regex(r"\A[a-c.-]{1,4}/[a-c.-]{1,4}(\.git)?\Z"))
@example("a" * 96 + "/" + "b" * 96)
@example("a" * 97 + "/b")
def test_repository_ids_are_those_of_the_hub_with_an_owner(name: str):
    try:
        validate_repo_id(name)
        expected = name.count("/") == 1
    except HFValidationError:
        expected = False
    try:
        found = check_repository(name) == name
    except ValueError:
        found = False
    assert found == expected


def test_no_answer_is_waited_for_without_end():
    assert with_retries(lambda: get_session().timeout.read, lambda event: None) == 600


@pytest.mark.slow
@lfs_only
def test_each_reason_not_to_push_is_one_message_and_nothing_is_sent(client: Client, tmp_path: Path):
    hub, run = client.hub, make_run(tmp_path / "a run")
    hub.accounts |= {"hf_reader": Account("ada", role="read"), "hf_grace": Account("grace")}
    hub.repositories["grace/open"] = Repository(private=False)
    hub.repositories["grace/open"].add({".gitattributes": small(b"")}, "initial commit")
    again = f"type: hftoolkit push '{run}' ada/x"

    def push(name: str, code: int, *fragments: str, token: str | None = TOKEN, **environment: str) -> None:
        client.token = token
        refused(client.run("push", run, *name.split(), **environment), code, *fragments)

    push("ada/x", 4, "no Hub token", "hf auth login", again, token=None)
    push("ada/x", 4, "the token is wrong or has expired", "hf auth login", again, token="hf_unknown")
    push("ada/x", 4, "may only read", again, token="hf_reader")
    push("ada/x", 4, "HF_HUB_OFFLINE is set", again, HF_HUB_OFFLINE="1")
    push("ada/x", 4, "the connection to the Hub failed", "HF_ENDPOINT", again, HF_ENDPOINT="http://127.0.0.1:9")
    push("grace/x", 4, "cannot make it; choose one of ada/x, lab/x")
    push("grace/open --public", 4, "the Hub answered 403 (You don't have write access")
    push("grace/open", 2, "exists and is public", "add --public")
    hub.repositories["ada/mine"] = hub.repositories["grace/open"]
    hub.repositories["ada/mine"].private = True
    push("ada/mine --public", 2, "exists and is private", "leave out --public")
    assert {request.path for request in hub.requests if request.method != "GET"} == {"/api/validate-yaml"}


def test_only_a_finished_run_of_one_model_is_pushed(tmp_path: Path):
    refused(hft("push", tmp_path, "ada/x"), 3, "not a run directory")
    make_run(tmp_path / "several" / "seeds" / "seed-4")
    shutil.copy(tmp_path / "several" / "seeds" / "seed-4" / "recipe.yaml", tmp_path / "several")
    refused(hft("push", tmp_path / "several", "ada/x"), 3, "several seeds", "seeds/seed-4")

    run = make_run(tmp_path / "run")
    (run / "model" / "more.json").symlink_to("/etc/hostname")
    refused(hft("push", run, "ada/x"), 3, "more.json was added since the run ended")
    (run / "model" / "more.json").rename(run / "model" / "more.png")
    refused(hft("push", run, "ada/x"), 3, "more.png is a link")
    (run / "model" / "more.png").unlink()
    weights = run / "model" / "model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-3] + bytes([whole[-3] ^ 0x40]) + whole[-2:])
    refused(hft("push", run, "ada/x"), 3, "model.safetensors has changed")
    weights.write_bytes(whole)
    card = run / "model" / "README.md"
    card.rename(run / "card.md")
    refused(hft("push", run, "ada/x"), 3, "no README.md")
    for state, reason in (("running", ""), ("failed", "the disk is full"), ("interrupted", "")):
        (run / "status.json").write_text(json.dumps({"state": state, "reason": reason}))
        refused(hft("push", run, "ada/x"), 3, f"is {state}", reason)


@pytest.mark.slow
@lfs_only
def test_a_card_that_the_hub_refuses_is_told_before_a_repository_is_made(client: Client, tmp_path: Path):
    run = make_run(tmp_path / "run")
    card = run / "model" / "README.md"
    card.write_text(card.read_text().replace("tags:\n- hftoolkit\n- full\n", "tags: hftoolkit\n"))
    refused(client.run("push", run, "ada/x"), 3, '"tags" must be a list', str(card))
    assert client.hub.repositories == {}


@pytest.mark.slow
def test_the_metadata_of_the_cards_are_what_the_hub_takes(tiny_run: Path, picture_run: Path, policy_run: Path):
    for run in (tiny_run, picture_run, policy_run):
        assert list(card_errors((run / "model" / "README.md").read_text())) == []
    assert list(card_errors("---\nlicense: [mit]\n---\n"))


@pytest.mark.slow
@lfs_only
def test_a_file_that_changes_while_it_is_sent_is_noticed(client: Client, tmp_path: Path):
    run = make_run(tmp_path / "run")
    config = run / "model" / "config.json"
    client.hub.fail("POST .*/preupload/", meanwhile=lambda: config.write_text(config.read_text() + "\n"))
    ended = client.run("push", run, "ada/x")
    refused(ended, 4, "differs from here in config.json")


# --- secrets --------------------------------------------------------------------------------------------------------


def test_the_search_for_secrets_finds_them_everywhere(hub: LoopbackHub, tmp_path: Path):
    client = Client(hub, tmp_path, TOKEN)
    assert client.leaks() == []
    (tmp_path / "train.log").write_text(f"using {TOKEN}")
    client.said.append(f"HF_TOKEN={TOKEN}")
    client.python(f"""
from huggingface_hub import HfApi, get_session
HfApi().whoami()
get_session().post("{hub.endpoint}/api/validate-yaml", json={{"content": "{TOKEN}"}})
get_session().get("{hub.endpoint}/api/whoami-v2?token={TOKEN}")
""")
    leaks = client.leaks()
    assert [name.partition(" ")[0].rpartition("/")[2] for name in leaks] == [
        "output",
        "train.log",
        "request",
        "request",
    ]


@pytest.mark.slow
@lfs_only
def test_a_token_in_a_recipe_is_refused_and_not_repeated(client: Client):
    (client.folder / "r.yaml").write_text(RECIPE.format(table="t.csv", backbone="x/y") + "hub: {repo: a/b}\n")
    ended = client.run("finetune", "r.yaml", "--set", f"hub.token={TOKEN}")
    refused(ended, 2, "hub.token: unknown key")


@pytest.mark.slow
@xet_only
def test_logs_and_a_crash_keep_the_token(client: Client, tmp_path: Path):
    run = make_run(tmp_path / "run")
    client.hub.fail("GET .*/xet-write-token/", times=1, status=403)
    ended = client.run("--verbose", "push", run, "ada/x")
    assert ended.code == 4 and "Traceback" in ended.err, ended
    assert client.run("--verbose", "push", run, "ada/x").code == 0
