"""Exports on the hub: what a push sends, what a pull believes, and loading with and without a network."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

import jepa_lm
from jepa_lm.artifact import hub_repo
from jepa_lm.artifact.container import from_file
from jepa_lm.artifact.hub_form import to_share, without_paths
from jepa_lm.artifact.hub_push import push
from jepa_lm.artifact.hub_repo import model_repo, pull
from jepa_lm.data import hub_files
from jepa_lm.hub import main
from jepa_lm.model.checkpoint import read_checkpoint
from jepa_lm.utils.errors import LossError, OverCapError, UserError
from tests.data.hub_server import HubServer
from tests.data.hub_uploads import COMMIT

REPO = "me/my-model"
QUICK = ("export.codecs=[zlib]", "export.protocols=[]", f"push={REPO}")
SHARED = {
    "README.md": "model_card.md",
    "config.json": "run_config.json",
    "export.json": "export.json",
    "submission.json": "submission.json",
}
"""Names in the repo and in the folder of an export."""


@pytest.fixture(autouse=True)
def here(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(hub_files, "BACKOFF_SECONDS", 0.0)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_TELEMETRY", True)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)  # the hub here takes uploads by LFS
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("JEPA_LM_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def files(exported) -> dict[str, bytes]:
    """The files of the export by their names in a repo."""
    found = {there: (exported.folder / local).read_bytes() for there, local in SHARED.items()}
    return {exported.file.name: exported.file.read_bytes(), **found}


@pytest.fixture
def shared(exported) -> dict[str, bytes]:
    """The form in which they are pushed."""
    records = {there: exported.folder / local for there, local in SHARED.items()}
    return to_share(exported.file, records)


@pytest.fixture
def hub(files: dict[str, bytes], monkeypatch: pytest.MonkeyPatch) -> Iterator[HubServer]:
    with HubServer(dict(files), repo_id=REPO, models=True) as server:
        monkeypatch.setenv("HF_ENDPOINT", server.url)
        yield server


@pytest.fixture
def empty(hub: HubServer) -> HubServer:
    """A hub without the repo."""
    hub.files.clear()
    hub.private = None
    return hub


def refused(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    """Return the only line that a command prints when it fails."""
    assert main(list(words)) == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1
    assert "\n" not in lines[0]
    return lines[0]


@pytest.mark.slow
def test_a_push_is_one_commit_with_the_bytes_of_the_files(empty, shared, exported, capsys):
    assert main(["push", str(exported.folder), REPO]) == 0
    assert f"pushed to {empty.url}/{REPO} at {COMMIT}" in capsys.readouterr().out
    assert empty.files == shared
    assert len(empty.commits) == 1
    assert empty.sent.keys() == {hashlib.sha256(shared[exported.file.name]).hexdigest()}
    assert empty.private is False


def test_nothing_that_is_pushed_holds_a_path_of_this_machine(
    empty, exported, trained, small_text, tmp_path, monkeypatch
):
    """Neither of the run, the export, the text, nor in the command of the card; the model is the same."""
    folder, home = tmp_path / "export", small_text.parent  # the text is in the user's home
    monkeypatch.setenv("HOME", str(home))
    shutil.copytree(exported.folder, folder)
    card = folder / "model_card.md"
    command = f"    train.py paths.cache=/scratch/me/cache data.path={small_text} https://a.b/c/d\n"
    card.write_text(f"{card.read_text()}{command}")
    push(str(folder), "push", REPO)
    pulled = pull(model_repo("repo", REPO), tmp_path / "pulled")
    sent = {**empty.files, "inside the artifact": b"".join(from_file(pulled))}
    for name, content in sent.items():
        for place in (home, trained.folder, exported.folder, tmp_path.parent, "/scratch"):
            assert str(place).encode() not in content, (name, place)
    assert (
        empty.files["README.md"]
        .decode()
        .endswith("    train.py paths.cache=cache data.path=emma.txt https://a.b/c/d\n")
    )
    config = json.loads(empty.files["config.json"])
    assert (
        config["model"]
        == read_checkpoint(trained.checkpoint)["hyper_parameters"]["config"]["model"]
    )
    assert config["data"]["path"] == "emma.txt"
    account, before = json.loads(empty.files["export.json"]), exported.account
    assert (account["artifact"], account["source"]) == (exported.file.name, "last.ckpt")
    changed = {"artifact", "artifact_sha256", "source", "bytes", "total", "headroom"}
    assert {key for key in account if account[key] != before[key]} <= changed
    # Every record states the file that was sent.
    assert (
        account["bytes"]
        == len(pulled.read_bytes())
        == before["bytes"] - before["total"] + account["total"]
    )
    said = json.loads(empty.files["submission.json"])
    digest = hashlib.sha256(pulled.read_bytes()).hexdigest()
    assert said["artifact_sha256"] == account["artifact_sha256"] == digest
    assert (said["bytes_model"], said["bytes_total"]) == (account["bytes"], account["total"])
    for stated in (digest, f"| {account['bytes']:,} |", f"| total | {account['total']:,} |"):
        assert stated in empty.files["README.md"].decode()
    ours, theirs = (jepa_lm.load(path, device="cpu") for path in (exported.file, pulled))
    assert ours.score("It was.") == theirs.score("It was.")
    assert {p.name for p in folder.iterdir()} == {p.name for p in exported.folder.iterdir()}
    assert (folder / exported.file.name).read_bytes() == exported.file.read_bytes()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("/home/me/a.txt", "a.txt"),
        ("data.path=/b, 'data.val_path=/c/d'", "data.path=b, 'data.val_path=d'"),
        ("[/a/b,~/c,~you/d/e]", "[b,c,e]"),
        ("file:///a/b", "b"),
        (r"C:\\Users\\me\\a.txt or C:/b/c", "a.txt or c"),
        ("https://example.org/a/b", "https://example.org/a/b"),
        ("logs/train/x and/or 3 / 4, 1/2, ../a, ./b, 16,000,000 bytes/s", None),
    ],
)
def test_what_is_a_path(text, expected):
    assert without_paths(text) == (text if expected is None else expected)


def test_a_home_with_a_space_in_its_name_is_cut_whole(monkeypatch):
    monkeypatch.setenv("HOME", "/Users/Jane Doe")
    assert without_paths("data.path='/Users/Jane Doe/my text/a.txt'") == "data.path='my text/a.txt'"


def test_an_artifact_without_paths_is_sent_as_it_is(exported, tmp_path):
    """What a second push of a pulled export sends is the same."""
    shutil.copytree(exported.folder, tmp_path / "a")
    records = {there: tmp_path / "a" / local for there, local in SHARED.items()}
    once = to_share(tmp_path / "a" / exported.file.name, records)
    for there, path in {exported.file.name: tmp_path / "a" / exported.file.name, **records}.items():
        path.write_bytes(once[there])
    assert to_share(tmp_path / "a" / exported.file.name, records) == once


def test_a_push_replaces_the_artifact_of_an_earlier_one(hub, shared, exported, tmp_path):
    hub.files |= {"artifact.old": b"x", "tokenizer.model": b"x", "notes.txt": b"kept"}
    push(str(exported.file), "push", REPO)
    assert hub.files == {**shared, "notes.txt": b"kept"}
    shutil.copytree(exported.folder, tmp_path / "export")
    (tmp_path / "export" / "tokenizer.model").write_bytes(b"beside")
    push("export", "push", REPO)
    assert hub.files["tokenizer.model"] == b"beside"


def test_private_is_not_promised_of_a_public_repo(empty, exported, capsys):
    words = ("push", str(exported.folder), REPO, "--private")
    assert main(list(words)) == 0
    assert empty.private is True
    empty.private, empty.commits = False, []
    assert f"{REPO}: is public already" in refused(capsys, *words)
    assert empty.commits == []


def test_a_push_to_a_repo_that_is_empty_or_not_yet_there(hub, shared, exported):
    hub.files.clear()
    push(str(exported.folder), "push", REPO)
    assert hub.files == shared
    assert hub.created == []
    hub.files.clear()
    hub.private = None
    hub.statuses[f"/api/models/{REPO}/tree/main"] = [401]  # as the hub answers without a token
    push(str(exported.folder), "push", REPO)
    assert hub.files == shared
    assert len(hub.created) == 1


def test_half_an_export_is_not_pushed(hub, exported, tmp_path, capsys):
    folder = tmp_path / "half"
    assert "no artifact.* in" in refused(capsys, "push", str(tmp_path), REPO)
    folder.mkdir()
    shutil.copy(exported.file, folder)
    assert "model_card.md, export.json, submission.json missing beside" in refused(
        capsys, "push", str(folder), REPO
    )
    shutil.copytree(exported.folder, folder, dirs_exist_ok=True)
    account = json.loads((folder / "export.json").read_text())
    (folder / "export.json").write_text(json.dumps({**account, "artifact_sha256": "0" * 64}))
    assert "is of another artifact" in refused(capsys, "push", str(folder), REPO)
    (folder / exported.file.name).write_bytes(b"PK\3\4 anything else")
    assert "not an artifact of" in refused(capsys, "push", str(folder), REPO)
    assert hub.requests == []


@pytest.mark.parametrize(
    ("path", "status", "words"),
    [
        (
            f"/api/models/{REPO}/commit/main",
            401,
            "no token that may write there; run `hf auth login`",
        ),
        (f"/{REPO}.git/info/lfs/objects/batch", 403, "no token that may write there"),
        (f"/api/models/{REPO}/tree/main", 403, "no token that may write there"),
    ],
)
def test_a_push_that_the_hub_refuses_is_one_line(hub, exported, capsys, path, status, words):
    hub.statuses[path] = [status]
    assert words in refused(capsys, "push", str(exported.folder), REPO)
    assert hub.statuses[path] == []
    assert hub.commits == []


@pytest.mark.parametrize(
    ("status", "words"),
    [
        (401, "no token that may write there"),
        (404, "no such user, organisation or repo"),
        (500, "the hub refuses it (500"),
    ],
)
def test_a_repo_that_cannot_be_created_is_one_line(empty, exported, capsys, status, words):
    empty.statuses["/api/repos/create"] = [status]
    assert words in refused(capsys, "push", str(exported.folder), REPO)
    assert empty.statuses["/api/repos/create"] == []


@pytest.mark.parametrize("command", ["push", "pull"])
@pytest.mark.parametrize(
    "name", ["model", "a/b/c", "../x", "me/..", "me/a--b", "/model", "me/m.git", "-a/b", "me/m\n"]
)
def test_names_that_no_repo_has(hub, exported, capsys, command, name):
    words = ["push", str(exported.folder), name] if command == "push" else ["pull", name]
    if name.startswith("-"):
        words.insert(1, "--")
    assert "write USER/NAME" in refused(capsys, *words)
    assert hub.requests == []


def test_a_wrong_word_is_one_line(capsys):
    assert "invalid choice: 'psuh'" in refused(capsys, "psuh")
    assert "see python -m jepa_lm.hub pull --help" in refused(capsys, "pull")
    assert "after the @ goes a branch" in refused(capsys, "pull", REPO, "--revision", "../x")


def test_a_pull_brings_back_the_folder_that_was_pushed(hub, files, exported, tmp_path, capsys):
    hub.files |= {"evil.py": b"x", "code/artifact.br": b"x", "tokenizer.model": b"beside"}
    assert main(["pull", REPO]) == 0
    assert capsys.readouterr().out == f"pulled my-model/{exported.file.name}\n"
    folder = tmp_path / "my-model"
    for name in (exported.file.name, *SHARED.values()):
        assert (folder / name).read_bytes() == (exported.folder / name).read_bytes()
    assert (folder / "tokenizer.model").read_bytes() == b"beside"
    known = {exported.file.name, *SHARED.values(), "tokenizer.model", "hub.json", ".pull.lock"}
    assert {path.name for path in folder.iterdir()} == known
    hub.requests.clear()
    (folder / "model_card.md").write_bytes(b"damaged")
    del hub.files["tokenizer.model"]
    assert main(["pull", f"hf://{REPO}", str(folder), "--revision", COMMIT]) == 0
    assert (folder / "model_card.md").read_bytes() == files["README.md"]
    assert not (folder / "tokenizer.model").exists()
    assert [r.path for r in hub.requests if r.sent and "/cdn/" in r.path] == ["/cdn/README.md"]


def test_a_pull_leaves_files_alone_that_are_not_its_own(hub, exported, tmp_path, capsys):
    shutil.copytree(exported.folder, tmp_path / "mine")
    before = {path.name: path.read_bytes() for path in (tmp_path / "mine").iterdir()}
    assert "which was not pulled from" in refused(capsys, "pull", REPO, "mine")
    after = {path.name: path.read_bytes() for path in (tmp_path / "mine").iterdir()}
    assert after.pop(".pull.lock") == b""
    assert after == before


@pytest.mark.parametrize("lfs", [True, False])
def test_content_that_differs_from_the_listing_is_not_kept(hub, exported, tmp_path, capsys, lfs):
    name, hub.lfs = exported.file.name, lfs
    hub.instead[name] = hub.files[name][:-1] + b"\0"
    said = refused(capsys, "pull", REPO, "here")
    assert ("sha256" if lfs else "the git id") in said
    assert {path.name for path in (tmp_path / "here").iterdir()} <= {".pull", ".pull.lock"}
    assert list((tmp_path / "here" / ".pull").iterdir()) == []


def test_sizes_are_limited_before_anything_is_fetched(hub, exported, capsys):
    for name, size in ((exported.file.name, hub_repo.MAX_FILE), ("export.json", 16 << 20)):
        hub.entries = {name: {"size": size + 1}}
        assert f"{name} has {size + 1:,} bytes" in refused(capsys, "pull", REPO)
    assert not any(hub.downloads(name) for name in hub.files)


def test_what_a_repo_may_lack(hub, exported, capsys):
    hub.files["artifact.zip"] = b"x"
    assert "several artifacts in it (artifact." in refused(capsys, "pull", REPO)
    hub.files = {"notes.txt": b"x", "artifact.earlier.br": b"x"}
    assert f"hf://{REPO}: no artifact in it" in refused(capsys, "pull", REPO)
    assert "no such model repo or revision" in refused(capsys, "pull", "me/other")
    assert "no such model repo or revision" in refused(capsys, "pull", REPO, "--revision", "v2")
    hub.statuses[f"/api/models/{REPO}/tree/main"] = [401]
    assert "or a private one: set HF_TOKEN" in refused(capsys, "pull", REPO)


def test_load_needs_no_network_for_a_commit_that_is_there(files, exported, monkeypatch):
    with HubServer(dict(files), repo_id=REPO, models=True) as server:
        monkeypatch.setenv("HF_ENDPOINT", server.url)
        model = jepa_lm.load(f"hf://{REPO}@{COMMIT}", device="cpu")
        seen = len(server.requests)
        jepa_lm.load(f"hf://{REPO}@{COMMIT}", device="cpu")
        assert len(server.requests) == seen
    assert model.score("It was.") == jepa_lm.load(exported.file, device="cpu").score("It was.")
    again = jepa_lm.load(f"hf://{REPO}@{COMMIT}", device="cpu")
    assert again.path.read_bytes() == exported.file.read_bytes()
    again.path.write_bytes(b"damaged")
    with pytest.raises(UserError, match="no network, cannot reach"):
        jepa_lm.load(f"hf://{REPO}@{COMMIT}", device="cpu")


def test_without_network_a_branch_is_what_it_was_and_says_so(files, monkeypatch, capsys, exported):
    with HubServer(dict(files), repo_id=REPO, models=True) as server:
        monkeypatch.setenv("HF_ENDPOINT", server.url)
        first = jepa_lm.load(f"hf://{REPO}", device="cpu").path
        server.statuses[f"/api/models/{REPO}/tree/main"] = [403]
        with pytest.raises(UserError, match="or a private one"):  # not for want of a network
            jepa_lm.load(f"hf://{REPO}", device="cpu")
    capsys.readouterr()
    assert jepa_lm.load(f"hf://{REPO}", device="cpu").path == first
    assert f"warning: hf://{REPO}: no network" in capsys.readouterr().err
    with pytest.raises(UserError, match="no network, cannot reach"):
        jepa_lm.load(f"hf://{REPO}@v2", device="cpu")
    assert "no network, cannot reach" in refused(capsys, "pull", REPO)
    assert "no network, cannot reach" in refused(capsys, "push", str(exported.folder), REPO)


def test_a_folder_that_cannot_be_written(hub, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    assert f"{tmp_path / 'file'}: " in refused(capsys, "pull", REPO, str(tmp_path / "file"))
    with pytest.raises(UserError):
        pull(model_repo("repo", REPO), tmp_path / "file")


def test_an_artifact_from_the_hub_is_read_strictly(hub, exported):
    hub.files[exported.file.name] = exported.file.read_bytes()[:-1]
    with pytest.raises(UserError, match="damaged or truncated"):
        jepa_lm.load(f"hf://{REPO}", device="cpu")


def test_a_kill_between_the_files_is_mended(hub, exported, tmp_path, monkeypatch):
    folder, real = tmp_path / "here", hub_repo.os.replace

    class KilledError(BaseException):
        pass

    def replace(source, target):
        if Path(target) == folder / "export.json":
            raise KilledError
        real(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(hub_repo.os, "replace", replace)
        with pytest.raises(KilledError):
            pull(model_repo("repo", REPO), folder)
    assert (folder / exported.file.name).is_file()
    assert pull(model_repo("repo", REPO), folder) == folder / exported.file.name
    assert (folder / "export.json").read_bytes() == hub.files["export.json"]


def test_export_pushes_what_it_wrote(empty, exporting):
    account = exporting(*QUICK)
    assert empty.files["artifact.zlib"]
    assert json.loads(empty.files["export.json"])["weights_sha256"] == account["weights_sha256"]
    empty.statuses[f"/api/models/{REPO}/commit/main"] = [401]
    with pytest.raises(UserError, match=f"push={REPO}: no token") as caught:
        exporting(*QUICK)
    assert caught.value.exit_code == 2
    assert (exporting.folder / "artifact.zlib").is_file()


@pytest.mark.parametrize("error", [OverCapError, LossError])
def test_export_pushes_nothing_that_it_refuses(empty, exporting, monkeypatch, error):
    def judge(account, most):
        raise error("planted")

    monkeypatch.setattr("jepa_lm.commands.export.judge", judge)
    with pytest.raises(error, match="planted"):
        exporting(*QUICK)
    assert (exporting.folder / "artifact.zlib").is_file()
    assert empty.requests == []


def test_a_name_that_no_repo_has_is_refused_before_an_export(exporting):
    with pytest.raises(UserError, match="push=nobody: not a model repo"):
        exporting("push=nobody")
    with pytest.raises(UserError, match=f"push={REPO}@v2: a push goes to main"):
        exporting(f"push={REPO}@v2")
    assert not exporting.folder.exists() or not list(exporting.folder.glob("artifact.*"))
