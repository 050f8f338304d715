"""download_shards against a hub on the loopback interface: what arrives, and what was requested."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from collections import namedtuple
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from jepa_lm.data import download, hub_files, hub_listing
from jepa_lm.data.corpora import Shards
from jepa_lm.data.download import download_shards
from jepa_lm.data.shards import HEADER_BYTES, ShardWriter, open_shard
from jepa_lm.utils.errors import UserError
from jepa_lm.utils.files import HOST
from tests.data.hub_server import HubServer
from tests.forks import begun_together

FOLDER = "datasets/datasets/fineweb10B_sp1024"
TRAIN = [f"{FOLDER}/fineweb_train_{i:06d}.bin" for i in range(3)]
VAL = f"{FOLDER}/fineweb_val_000000.bin"
TOKENIZER = "datasets/tokenizers/fineweb_1024_bpe.model"
TOKENS = 200_000


def shard(path: Path, seed: int) -> bytes:
    with ShardWriter(path) as writer:
        writer.write(np.random.default_rng(seed).integers(0, 1024, TOKENS))
    return path.read_bytes()


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    scratch = tmp_path_factory.mktemp("shards") / "shard.bin"
    shards = {path: shard(scratch, seed) for seed, path in enumerate([*TRAIN, VAL])}
    other = "datasets/datasets/fineweb10B_byte260"
    return shards | {
        f"{other}/fineweb_train_000000.bin": shards[VAL],
        f"{other}/fineweb_val_000000.bin": shards[VAL],
        TOKENIZER: b"a sentencepiece model",
        "datasets/manifest.json": b"{}",
    }


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(hub_files, "BACKOFF_SECONDS", 0.0)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    # Otherwise the client asks the real hub for a list to complete its user agent.
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_TELEMETRY", True)


@pytest.fixture
def hub(files: dict[str, bytes], monkeypatch: pytest.MonkeyPatch) -> Iterator[HubServer]:
    with HubServer(dict(files)) as server:
        monkeypatch.setenv("HF_ENDPOINT", server.url)
        yield server


Fetch = Callable[..., Shards]


@pytest.fixture
def fetch(tmp_path: Path) -> Fetch:
    def call(**changes: Any) -> Shards:
        settings = {
            "folder": "fineweb10B_sp1024",
            "destination": tmp_path / "shards",
            "train_shards": 2,
            "tokenizer_file": "fineweb_1024_bpe.model",
        }
        return download_shards(**(settings | changes))

    return call


def refused(fetch: Fetch, **changes: Any) -> str:
    """Return the message of the UserError, which must be a single line."""
    with pytest.raises(UserError) as caught:
        fetch(**changes)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_files_arrive_identical_and_only_the_wanted_ones(
    hub: HubServer, fetch: Fetch, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    got = fetch()
    destination = tmp_path / "shards"
    assert got.train == [destination / path for path in TRAIN[:2]]
    assert got.val == [destination / VAL]
    assert got.tokenizer == destination / TOKENIZER
    for path in [*TRAIN[:2], VAL, TOKENIZER]:
        assert (destination / path).read_bytes() == hub.files[path]
    assert hub.downloads(TRAIN[2]) == []
    assert len(open_shard(got.train[0])) == TOKENS
    assert not list(destination.rglob("*.incomplete"))
    output = capfd.readouterr()
    assert output.out == ""
    assert "fineweb_train_000000.bin" in output.err


def test_listing_in_pages_without_lfs_and_without_tokenizer(hub: HubServer, fetch: Fetch) -> None:
    hub.lfs, hub.page_size = False, 2
    got = fetch(folder="fineweb10B_byte260", train_shards=1, tokenizer_file=None)
    assert got.tokenizer is None
    assert [path.name for path in got.train] == ["fineweb_train_000000.bin"]
    assert sum("/tree/" in request.path for request in hub.requests) > 1


def test_a_cut_download_asks_only_for_the_rest(hub: HubServer, fetch: Fetch) -> None:
    hub.cuts[TRAIN[0]] = [150_000, 100_000]
    got = fetch()
    assert got.train[0].read_bytes() == hub.files[TRAIN[0]]
    seen = hub.downloads(TRAIN[0])
    assert [request.range for request in seen] == [None, "bytes=150000-", "bytes=250000-"]
    assert sum(request.sent for request in seen) == len(hub.files[TRAIN[0]])


def test_a_second_call_resumes_what_the_first_gave_up(
    hub: HubServer, fetch: Fetch, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hub_files, "ATTEMPTS", 2)
    hub.cuts[TRAIN[1]] = [150_000, 0, 0]
    message = refused(fetch)
    assert "fineweb_train_000001.bin" in message
    assert f"150000 of {len(hub.files[TRAIN[1]])} bytes" in message
    got = fetch()
    assert got.train[1].read_bytes() == hub.files[TRAIN[1]]
    seen = hub.downloads(TRAIN[1])
    assert [request.range for request in seen] == [None, "bytes=150000-"]
    assert sum(request.sent for request in seen) == len(hub.files[TRAIN[1]])
    assert len(hub.downloads(TRAIN[0])) == 1, "what was complete is not fetched again"


def test_another_process_resumes(hub: HubServer, fetch: Fetch, tmp_path: Path) -> None:
    hub.cuts[TRAIN[0]] = [150_000]
    code = (
        "import os\n"
        "from pathlib import Path\n"
        "from jepa_lm.data import download, hub_files\n"
        "hub_files.time.sleep = lambda seconds: os._exit(9)  # killed after the connection broke\n"
        "download.download_shards(folder='fineweb10B_sp1024', destination=Path('shards'),\n"
        "                         train_shards=2, tokenizer_file=None)\n"
    )
    root = str(Path(download.__file__).parents[2])
    env = os.environ | {"PYTHONPATH": root, "HF_HUB_DISABLE_TELEMETRY": "1"}
    killed = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=env, check=False)
    assert killed.returncode == 9
    got = fetch()
    assert got.train[0].read_bytes() == hub.files[TRAIN[0]]
    assert [r.range for r in hub.downloads(TRAIN[0])] == [None, "bytes=150000-"]


def test_a_server_that_ignores_ranges_or_is_busy_still_gives_the_file(
    hub: HubServer, fetch: Fetch
) -> None:
    hub.cuts[TRAIN[0]] = [150_000]
    hub.ignore_range = True
    hub.statuses[VAL] = [503, 429]
    got = fetch()
    assert got.train[0].read_bytes() == hub.files[TRAIN[0]]
    assert got.val[0].read_bytes() == hub.files[VAL]


def test_once_verified_nothing_is_asked_for_or_hashed(
    hub: HubServer, fetch: Fetch, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = fetch()
    hub.requests.clear()
    monkeypatch.setattr(hub_files.hashlib, "file_digest", None)
    assert fetch() == first
    assert fetch(train_shards=1).train == first.train[:1]
    assert hub.requests == []


def test_the_cached_path_does_not_import_the_hub_client(
    hub: HubServer, fetch: Fetch, tmp_path: Path
) -> None:
    fetch()
    code = (
        "import sys\n"
        "from pathlib import Path\n"
        "from jepa_lm.data.download import download_shards\n"
        "download_shards(folder='fineweb10B_sp1024', destination=Path('shards'), train_shards=2,\n"
        "                tokenizer_file='fineweb_1024_bpe.model')\n"
        "assert 'huggingface_hub' not in sys.modules\n"
    )
    env = os.environ | {"PYTHONPATH": str(Path(download.__file__).parents[2])}
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=env, check=True)


def test_a_file_already_there_is_verified_and_kept(
    hub: HubServer, fetch: Fetch, tmp_path: Path
) -> None:
    mine = tmp_path / "shards" / TRAIN[0]
    mine.parent.mkdir(parents=True)
    mine.write_bytes(hub.files[TRAIN[0]])
    fetch()
    assert hub.downloads(TRAIN[0]) == []


SOURCE = {"repo_id": "willdepueoai/parameter-golf", "root": "datasets", "revision": "main"}
OF_ANOTHER_KIND = {"path": 5, "size": 1, "blob": "a" * 40, "sha256": None}
LEADS_OUT = OF_ANOTHER_KIND | {"path": "../fineweb_train_0.bin"}


@pytest.mark.parametrize(
    "record",
    [
        "",
        "{damaged",
        "[]",
        "[" * 100_000,
        json.dumps({"verified": 5, "source": SOURCE, "files": []}),
        json.dumps({"verified": {}, "source": SOURCE, "files": [OF_ANOTHER_KIND]}),
        json.dumps({"verified": {}, "source": SOURCE, "files": [LEADS_OUT, 5]}),
        '{"verified": {"x": ' + "[" * 900 + "]" * 900 + "}}",
    ],
)
def test_a_damaged_record_is_made_anew_without_fetching_again(
    hub: HubServer, fetch: Fetch, tmp_path: Path, record: str
) -> None:
    fetch()
    (tmp_path / "shards/downloads.json").write_text(record)
    hub.requests.clear()
    fetch()
    assert hub.requests
    assert not any(hub.downloads(path) for path in hub.files)
    hub.requests.clear()
    fetch()
    assert hub.requests == []


def test_a_file_changed_after_verification_is_fetched_anew(
    hub: HubServer, fetch: Fetch, capfd: pytest.CaptureFixture[str]
) -> None:
    got = fetch()
    os.truncate(got.train[0], 5000)
    assert fetch() == got
    assert got.train[0].read_bytes() == hub.files[TRAIN[0]]
    assert "is truncated" in capfd.readouterr().err


@pytest.mark.parametrize("length", [10_000, 401_024, 500_000])
def test_what_a_killed_process_left_is_checked_and_swept_up(
    hub: HubServer, fetch: Fetch, tmp_path: Path, length: int
) -> None:
    target = tmp_path / "shards" / TRAIN[0]
    target.parent.mkdir(parents=True)
    version = hashlib.sha256(hub.files[TRAIN[0]]).hexdigest()[:16]
    for name in (version, "f" * 16):  # one of this version, and one that the repo no longer has
        target.with_name(f"{target.name}.{name}.incomplete").write_bytes(b"j" * length)
    (tmp_path / "shards" / f".{HOST}-999999999-00.tmp").write_bytes(b"half a record")
    assert fetch().train[0].read_bytes() == hub.files[TRAIN[0]]
    assert not [*(tmp_path / "shards").rglob("*.incomplete"), *(tmp_path / "shards").glob("*.tmp")]


@pytest.mark.skipif(os.name == "nt", reason="forks")
def test_processes_that_begin_together_fetch_each_file_once(
    hub: HubServer, fetch: Fetch, tmp_path: Path
) -> None:
    assert begun_together(fetch, 3) == 0
    assert {len(hub.downloads(path)) for path in [*TRAIN[:2], VAL, TOKENIZER]} == {1}


def test_more_shards_later_fetches_only_the_new_one(hub: HubServer, fetch: Fetch) -> None:
    fetch()
    hub.requests.clear()
    assert len(fetch(train_shards=3).train) == 3
    assert [path for path in hub.files if hub.downloads(path)] == [TRAIN[2]]


def announced(capfd: pytest.CaptureFixture[str]) -> list[str]:
    """Return the lines about the size of a download."""
    return [line for line in capfd.readouterr().err.splitlines() if "downloading" in line]


def test_more_than_a_gigabyte_is_told(
    hub: HubServer, fetch: Fetch, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """The size comes from the listing; the hub then sends less, which does not matter here."""
    refused(fetch, folder="fineweb10B_sp999")
    hub.entries[VAL] = {"size": 999_000_000}
    refused(fetch)
    assert announced(capfd) == []
    hub.entries[VAL] = {"size": 1_250_000_000}
    refused(fetch)
    (line,) = announced(capfd)
    assert line.startswith(
        "data: downloading 2 files, 1.2 GB, from willdepueoai/parameter-golf (main) "
        f"at {hub.url} to {tmp_path}/shards; "  # the training shards are already there
    )
    for setting in ("data.corpus.train_shards=2", "paths.cache=FOLDER", "data.path=FOLDER"):
        assert setting in line


def test_it_is_told_before_the_first_byte_and_never_of_what_is_there(
    hub: HubServer, fetch: Fetch, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[tuple[str, list[str]]] = []

    def tell(text: str) -> None:
        told.append((text.split(", ")[0], [path for path in hub.files if hub.downloads(path)]))

    monkeypatch.setattr(download, "tell", tell)
    monkeypatch.setattr(download, "TOLD_BYTES", 0)
    monkeypatch.setattr(hub_files, "ATTEMPTS", 1)
    hub.cuts[TRAIN[1]] = [50_000]
    refused(fetch)
    assert told.pop() == ("data: downloading 4 files", [])
    hub.requests.clear()
    rest = sum(len(hub.files[path]) for path in (TRAIN[1], VAL, TOKENIZER)) - 50_000
    monkeypatch.setattr(download, "TOLD_BYTES", rest)  # this is all that is missing
    fetch()
    assert told == []
    fetch()
    monkeypatch.setattr(download, "TOLD_BYTES", len(hub.files[TRAIN[2]]) - 1)
    hub.requests.clear()
    fetch(train_shards=3)
    assert told == [("data: downloading 1 file", [])]


def test_files_of_an_older_version_count_as_not_there(
    hub: HubServer,
    fetch: Fetch,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """Planted bug: old files of the same name count as downloaded, and 16 GB arrive unannounced."""
    got = fetch()
    for path in TRAIN[:2]:
        hub.files[path] = hub.files[path][:-2] + b"\1\0"
    (got.train[0].parents[3] / "downloads.json").unlink()
    monkeypatch.setattr(download, "TOLD_BYTES", 2 * len(hub.files[VAL]) - 1)
    assert fetch() == got
    assert got.train[0].read_bytes() == hub.files[TRAIN[0]]
    (line,) = announced(capfd)
    assert line.startswith("data: downloading 2 files")


@pytest.mark.skipif(os.name == "nt", reason="forks")
def test_of_processes_that_begin_together_one_tells(
    hub: HubServer,
    fetch: Fetch,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(download, "TOLD_BYTES", 0)
    assert begun_together(fetch, 3) == 0
    assert len(announced(capfd)) == 1


def published_truncated(content: bytes) -> bytes:
    return content[:-1000]


def published_with_bad_header(content: bytes) -> bytes:
    return bytes(HEADER_BYTES) + content[HEADER_BYTES:]


@pytest.mark.parametrize(
    ("spoil", "problem"),
    [(published_truncated, "truncated"), (published_with_bad_header, "bad header")],
)
def test_a_broken_published_shard_is_deleted(
    hub: HubServer,
    fetch: Fetch,
    tmp_path: Path,
    spoil: Callable[[bytes], bytes],
    problem: str,
) -> None:
    hub.files[TRAIN[1]] = spoil(hub.files[TRAIN[1]])
    message = refused(fetch)
    assert problem in message
    assert "fineweb_train_000001.bin" in message
    assert not (tmp_path / "shards" / TRAIN[1]).exists()


def test_content_that_differs_from_the_published_hash_is_deleted(
    hub: HubServer, fetch: Fetch, tmp_path: Path
) -> None:
    content = bytearray(hub.files[TRAIN[0]])
    content[-1] ^= 1
    hub.instead[TRAIN[0]] = bytes(content)
    message = refused(fetch)
    assert "sha256" in message
    assert "fineweb_train_000000.bin" in message
    assert not (tmp_path / "shards" / TRAIN[0]).exists()
    hub.instead.clear()
    fetch()


@pytest.mark.parametrize("change", [-1000, 1000])
def test_content_of_another_length_than_listed(
    hub: HubServer, fetch: Fetch, tmp_path: Path, change: int
) -> None:
    content = hub.files[TRAIN[0]]
    hub.instead[TRAIN[0]] = (content + bytes(1000))[: len(content) + change]
    message = refused(fetch)
    assert "fineweb_train_000000.bin" in message
    assert "fewer than" in message or "more than" in message
    assert not (tmp_path / "shards" / TRAIN[0]).exists()
    hub.instead.clear()
    assert fetch().train[0].read_bytes() == content


def test_a_body_without_end_is_cut_off(hub: HubServer, fetch: Fetch, tmp_path: Path) -> None:
    hub.unsized = {TRAIN[0]}
    message = refused(fetch)
    assert f"more than the {len(hub.files[TRAIN[0]])} bytes that its listing gives" in message
    (kept,) = (tmp_path / "shards").rglob("fineweb_train_000000.bin*")
    assert kept.stat().st_size <= len(hub.files[TRAIN[0]])
    assert hub.downloads(TRAIN[0])[0].sent < 32 << 20


def test_content_without_lfs_is_held_against_its_git_id(
    hub: HubServer, fetch: Fetch, tmp_path: Path
) -> None:
    hub.lfs = False
    hub.instead[TOKENIZER] = hub.files[TOKENIZER].replace(b"model", b"MODEL")
    assert "has the git id" in refused(fetch)
    assert not (tmp_path / "shards" / TOKENIZER).exists()
    hub.instead.clear()
    fetch()


def test_unknown_folder_lists_the_available(hub: HubServer, fetch: Fetch) -> None:
    message = refused(fetch, folder="fineweb10B_sp999")
    assert "data.corpus.folder=fineweb10B_sp999" in message
    assert "fineweb10B_byte260, fineweb10B_sp1024" in message


def test_a_folder_name_found_twice_needs_more_of_its_path(hub: HubServer, fetch: Fetch) -> None:
    old = "datasets/old/fineweb10B_sp1024"
    hub.files |= {path.replace(FOLDER, old): hub.files[path] for path in [*TRAIN, VAL]}
    assert f"{FOLDER}, {old}" in refused(fetch)
    assert old in str(fetch(folder="old/fineweb10B_sp1024").train[0])


@pytest.mark.parametrize("train_shards", [4, 0])
def test_more_training_shards_than_published(
    hub: HubServer, fetch: Fetch, train_shards: int
) -> None:
    message = refused(fetch, train_shards=train_shards)
    assert f"data.corpus.train_shards={train_shards}" in message
    assert "3 training shards" in message


def test_no_validation_shards_and_no_such_tokenizer(hub: HubServer, fetch: Fetch) -> None:
    assert "fineweb_1024_bpe.model" in refused(fetch, tokenizer_file="absent.model")
    del hub.files[VAL]
    assert "no validation shards" in refused(fetch)


def test_server_gone(
    files: dict[str, bytes], fetch: Fetch, monkeypatch: pytest.MonkeyPatch
) -> None:
    with HubServer(dict(files)) as server:
        monkeypatch.setenv("HF_ENDPOINT", server.url)
    message = refused(fetch)
    assert server.url in message
    assert "data.path=FOLDER" in message


@pytest.mark.parametrize("endpoint", ["nowhere", "http://[nowhere", "http://h:port", "ftp://h"])
def test_malformed_endpoint(fetch: Fetch, monkeypatch: pytest.MonkeyPatch, endpoint: str) -> None:
    monkeypatch.setenv("HF_ENDPOINT", endpoint)
    assert f"HF_ENDPOINT={endpoint}: not the address" in refused(fetch)


def test_server_gone_but_everything_is_there(
    files: dict[str, bytes], fetch: Fetch, monkeypatch: pytest.MonkeyPatch
) -> None:
    with HubServer(dict(files)) as server:
        monkeypatch.setenv("HF_ENDPOINT", server.url)
        first = fetch()
    assert fetch() == first
    assert server.url in refused(fetch, train_shards=3)


def test_unknown_root_and_malformed_repo(hub: HubServer, fetch: Fetch) -> None:
    assert "data.path=FOLDER" in refused(fetch, root="elsewhere")
    assert "cannot list" in refused(fetch, repo_id="not/a/repo")


def test_a_file_refused_by_the_hub_is_not_asked_for_again(hub: HubServer, fetch: Fetch) -> None:
    hub.statuses[TRAIN[0]] = [403, 403]
    assert "403" in refused(fetch)
    assert len(hub.statuses[TRAIN[0]]) == 1


def test_destination_that_cannot_be_written(hub: HubServer, fetch: Fetch, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    assert "cannot write" in refused(fetch, destination=tmp_path / "file")


LISTED: dict[str, dict[str, Any]] = {
    "a file whose path is 5": {"path": 5},
    "without 'path'": {"path": None},
    "with a size of x": {"size": "x"},
    "with a size of -5": {"size": -5},
    "with a size of 1.5": {"size": 1.5},
    "with a size of True": {"size": True},
    "without 'size'": {"size": None},
    "with a hash of ../../x/": {"lfs": {"oid": "../../x/"}},
    "with a hash of 5": {"lfs": {"oid": 5}},
    "without 'oid'": {"oid": None},
    "with a hash of /../../owned": {"lfs": None, "oid": "/../../owned"},
    "which is not a file": {"lfs": "text"},
    "twice": {"path": TRAIN[1]},
    r"fineweb_train_\n\x1b[31m.bin, which is not a valid file name": {
        "path": f"{FOLDER}/fineweb_train_\n\x1b[31m.bin"
    },
    r"fineweb_train_\ud800.bin, which is not a valid": {
        "path": f"{FOLDER}/fineweb_train_\ud800.bin"
    },
    "(354 characters), which is not a": {"path": f"{FOLDER}/fineweb_train_{'0' * 300}.bin"},
    "1,000,000,000.0 GB to download, but": {"size": 10**18},
}


@pytest.mark.parametrize("words", LISTED)
def test_a_listing_is_not_believed(
    hub: HubServer, fetch: Fetch, tmp_path: Path, words: str
) -> None:
    hub.entries[TRAIN[0]] = LISTED[words]
    message = refused(fetch, train_shards=3)
    assert words in message
    assert message.isprintable()
    assert [path.name for path in tmp_path.iterdir()] == ["shards"]
    assert not any(hub.downloads(path) for path in hub.files)


@pytest.mark.parametrize(
    ("page", "words"),
    [
        (b"<html>please log in</html>", "not a listing"),
        (b"[" * 100_000 + b"]" * 100_000, "nested too deeply"),
        (b"null", "not a list of files but None"),
        (b'["a", "b"]', "lists a, which is not a file"),
        (b"[" + b" " * (9 << 20) + b"]", "more than 8388608 bytes"),
    ],
)
def test_a_page_that_is_no_listing(hub: HubServer, fetch: Fetch, page: bytes, words: str) -> None:
    hub.listing = page
    assert words in refused(fetch)


@pytest.mark.parametrize(
    "address", ["file:///etc/passwd", "http://localhost:9/?c=1", "//[", "?c=" + "1" * 70_000]
)
def test_pages_that_lie_elsewhere_are_not_asked_for(
    hub: HubServer, fetch: Fetch, address: str
) -> None:
    hub.next_page = address
    message = refused(fetch)
    assert "URL too long" in message if len(address) > 100 else address in message
    assert len(hub.requests) == 1


def test_pages_without_end_are_given_up(
    hub: HubServer, fetch: Fetch, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hub_listing, "MOST_FILES", 20)
    hub.next_page = "endless"
    assert "does not end within" in refused(fetch)
    assert len(hub.requests) < 25


@pytest.mark.parametrize(
    ("address", "words"),
    [
        ("file:///etc/passwd", "an invalid address"),
        (f"/datasets/willdepueoai/parameter-golf/resolve/main/{TRAIN[0]}", "more than 10 times"),
    ],
)
def test_where_a_file_may_not_be(hub: HubServer, fetch: Fetch, address: str, words: str) -> None:
    hub.redirects[TRAIN[0]] = address
    assert words in refused(fetch)


def test_the_token_goes_to_the_hub_alone(
    hub: HubServer, fetch: Fetch, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1,localhost")
    with HubServer(dict(hub.files)) as elsewhere:
        address = elsewhere.url.replace("127.0.0.1", "localhost")
        hub.redirects[TRAIN[0]] = f"{address}/cdn/{TRAIN[0]}"
        fetch()
    assert {request.token for request in hub.requests} == {"Bearer hf_secret"}
    assert [request.token for request in elsewhere.requests] == [None]


def test_a_packed_answer_is_not_unpacked(hub: HubServer, fetch: Fetch) -> None:
    hub.headers[TRAIN[0]] = {"Content-Encoding": "zstd"}
    assert "compressed (zstd)" in refused(fetch)


@pytest.mark.parametrize("where", ["headers", "body"])
def test_an_answer_that_trickles_in_is_given_up(
    hub: HubServer, fetch: Fetch, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_DOWNLOAD_TIMEOUT", 0.2)
    monkeypatch.setattr(hub_files, "ATTEMPTS", 2)
    hub.drip[TRAIN[0]] = (where, 0.02)
    message = refused(fetch)
    assert (
        "no response within 0.6 seconds" in message or "less than 1024 bytes per second" in message
    )


def test_a_byte_at_each_attempt_is_no_progress(hub: HubServer, fetch: Fetch) -> None:
    hub.cuts[TRAIN[0]] = [1] * 100
    assert "stopped at" in refused(fetch)
    assert len(hub.downloads(TRAIN[0])) == hub_files.ATTEMPTS


def test_files_larger_than_the_free_space_are_not_begun(
    hub: HubServer, fetch: Fetch, monkeypatch: pytest.MonkeyPatch
) -> None:
    free = namedtuple("free", "free")
    monkeypatch.setattr(download.shutil, "disk_usage", lambda path: free(1_000_000))
    message = refused(fetch)
    assert "paths.cache=FOLDER" in message
    assert not any(hub.downloads(path) for path in hub.files)


def test_what_an_error_says_is_shown_safely(hub: HubServer, fetch: Fetch) -> None:
    hub.statuses[TRAIN[0]] = [403]
    hub.error = b"\x1b[31mno\nentry\xe2\x80\xae" + b"x" * 100_000
    message = refused(fetch)
    assert r"403 Forbidden: \x1b[31mno entry\u202ex" in message
    assert len(message) < 600


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        (
            "HTTPS_PROXY",
            "socks5://me:secret@host:1",
            "HTTPS_PROXY=socks5://...: a SOCKS proxy needs",
        ),
        ("all_proxy", "carrier-pigeon://host", "all_proxy"),
        ("SSL_CERT_FILE", "/nowhere", "SSL_CERT_FILE"),
        ("HF_TOKEN", "hf_secret\x01", "HF_TOKEN contains characters that no token has"),
    ],
)
def test_a_setting_of_the_environment_that_the_client_cannot_take(
    hub: HubServer, fetch: Fetch, monkeypatch: pytest.MonkeyPatch, name: str, value: str, words: str
) -> None:
    from huggingface_hub.utils import close_session

    for other in ("SSL_CERT_FILE", "SSL_CERT_DIR"):
        monkeypatch.delenv(other, raising=False)
    monkeypatch.setenv(name, value)
    monkeypatch.setitem(sys.modules, "socksio", None)  # not installed
    close_session()
    message = refused(fetch)
    close_session()
    assert words in message
    assert "secret" not in message


@pytest.mark.parametrize("escape", ["../../", "/", "..\\..\\", "C:\\"])
def test_paths_never_leave_the_destination(
    hub: HubServer,
    fetch: Fetch,
    tmp_path: Path,
    escape: str,
) -> None:
    folder = f"{escape}{tmp_path.name}/evil"
    hub.files |= {
        f"{folder}/fineweb_train_000000.bin": hub.files[VAL],
        f"{folder}/fineweb_val_000000.bin": hub.files[VAL],
    }
    message = refused(fetch, folder="evil", train_shards=1, tokenizer_file=None, root="")
    assert "unsafe path" in message
    assert not list(tmp_path.rglob("*evil*"))
