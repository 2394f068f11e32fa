"""`bench data get` of Minari's datasets from a local server that speaks the Hub's interface."""

# ruff: noqa: F811 (fixtures)

import json
import zipfile

import pytest
import requests

from bench.data import export_minari, hub, load, names
from bench.data.fetch import new_session
from bench.data.lockfile import locked
from bench.errors import ConfigError, DataError
from tests.bench.data_files import columns, write
from tests.bench.downloads import (  # noqa: F401
    MINARI,
    folder,
    minari_files,
    parts,
    quick,
    root,
    run,
    server,
)
from tests.bench.file_server import SHA, Step, add_hub_set, running


def test_a_minari_set_arrives_and_loads(root, server):
    files = minari_files()
    add_hub_set(server, MINARI, files)
    run(MINARI)
    for name, content in files.items():
        assert (folder(root) / name).read_bytes() == content
    entry = locked()[MINARI]
    assert entry.revision == SHA and entry.source == f"{server.url}/datasets/farama-minari/toy"
    assert len(entry.files) == 2 and not parts(root)
    assert load(MINARI).stats["transitions"] == 10


def test_minari_itself_reads_what_was_downloaded(root, server):
    minari = pytest.importorskip("minari")
    out = root / "made"
    dataset = load(write(root / "x.hdf5", columns()))
    export_minari(dataset, "toy/x-v0", out)
    files = {
        p.relative_to(out / "toy/x-v0").as_posix(): p.read_bytes()
        for p in (out / "toy/x-v0").rglob("*") if p.is_file()
    }  # fmt: skip
    add_hub_set(server, "toy/x-v0", files)
    run("toy/x-v0")
    assert minari.load_dataset("toy/x-v0").total_steps == dataset.stats["transitions"]
    assert load("toy/x-v0").fingerprint == dataset.fingerprint


def test_what_another_revision_left_does_not_get_in(root, server):
    add_hub_set(server, MINARI, minari_files())
    stray = folder(root).parent / ".human-v2.part/set/data/stray"
    stray.parent.mkdir(parents=True)
    stray.write_text("x")
    run(MINARI)
    assert {p.name for p in folder(root).rglob("*.*")} == {"main_data.hdf5", "metadata.json"}
    assert len(locked()[MINARI].files) == 2 and not (folder(root) / "data/stray").exists()


def test_later_downloads_are_of_the_recorded_revision(root, server):
    old = minari_files()
    add_hub_set(server, MINARI, old)
    run(MINARI)
    add_hub_set(server, MINARI, minari_files(seed=1), commit="f" * 40)  # uploaded anew
    server.asked.clear()
    run(MINARI, again=True)
    assert (folder(root) / "data/main_data.hdf5").read_bytes() == old["data/main_data.hdf5"]
    assert not any("/api/" in path for path, _ in server.asked)
    run(MINARI, update=True)
    assert locked()[MINARI].revision == "f" * 40 and not parts(root)
    assert (folder(root) / "data/main_data.hdf5").read_bytes() != old["data/main_data.hdf5"]


@pytest.mark.parametrize("name", ["data/main_data.hdf5", "data/metadata.json"])
def test_bytes_that_are_not_what_the_hub_lists(root, server, name):
    files = minari_files()
    add_hub_set(server, MINARI, files)
    path = f"/datasets/farama-minari/toy/resolve/{SHA}/pendulum/human-v2/{name}"
    server.files[path] = b"\0" + files[name][1:]
    with pytest.raises(DataError, match="is expected"):
        run(MINARI)
    assert not folder(root).exists() and MINARI not in locked()
    server.files[path] = files[name]
    run(MINARI)
    assert load(MINARI).stats["episodes"] == 2


def test_an_unfinished_set_is_no_local_set(root, server):
    files = dict(reversed(minari_files().items()))  # metadata.json is there first
    add_hub_set(server, MINARI, files)
    path = f"/datasets/farama-minari/toy/resolve/{SHA}/pendulum/human-v2/"
    server.script[path + "data/main_data.hdf5"] = [Step(status=403)]
    with pytest.raises(DataError, match=r"403.*HF_TOKEN"):
        run(MINARI)
    assert (folder(root).parent / ".human-v2.part/set/data/metadata.json").exists()
    assert not [name for name in names() if ".part" in name]
    server.served.clear()
    run(MINARI)
    assert server.served[path + "data/metadata.json"] == 0  # that one was whole


@pytest.mark.parametrize(
    "name",
    ["../../evil", "/etc/evil", "pendulum/human-v2/data/../../../evil", "C:\\evil", "a\0b", "C:/e",
     "pendulum/other-v1/data/x", "pendulum/human-v2/data/" + "x" * 300, "", None, 3],
)  # fmt: skip
def test_hostile_names_in_the_list_of_files(root, server, name):
    add_hub_set(server, MINARI, minari_files(), names=[name])
    before = sorted(root.parent.rglob("*"))
    with pytest.raises(DataError, match=r"not safe|outside"):
        run(MINARI)
    assert not any("/resolve/" in path for path, _ in server.asked)
    assert [p for p in root.parent.rglob("*") if p.is_file() and p not in before] == []


def test_hostile_ids(root, server):
    for name in ("../x-v0", "/x-v0", "a/../../x-v0", "a//x-v0", "C:/x-v0", "x\0-v0"):
        with pytest.raises(DataError, match="no such dataset"):
            run(name)
    assert server.asked == []


def test_a_list_in_pages_and_one_that_leads_elsewhere(root, server):
    files = minari_files()
    add_hub_set(server, MINARI, files)
    tree = f"/api/datasets/farama-minari/toy/tree/{SHA}/pendulum/human-v2/data"
    rows = json.loads(server.files[tree])
    server.files[tree] = json.dumps(rows[2:]).encode()
    first = json.dumps(rows[:2]).encode()
    link = {"Link": f'<{server.url}{tree}?cursor=x>; rel="next"'}
    server.script[tree] = [Step(body=first, headers=link)]
    run(MINARI)
    assert len(locked()[MINARI].files) == 2
    server.script[tree] = [Step(body=first, headers={"Link": '<http://evil.test/>; rel="next"'})]
    with pytest.raises(DataError, match="not followed"):
        run(MINARI, update=True)


@pytest.mark.parametrize(
    ("path", "answer"),
    [("revision/main", b"{}"), ("revision/main", b"<html>"), ("tree", b'{"a": 1}'),
     ("tree", b"[]"), ("tree", b'[{"type": "file"}]'), ("revision/main", b'{"sha": "../.."}')],
)  # fmt: skip
def test_a_server_that_is_no_hub(root, server, path, answer):
    add_hub_set(server, MINARI, minari_files())
    found = next(p for p in server.files if f"/{path}" in p)
    server.files[found] = answer
    with pytest.raises(DataError, match=r"Hub|understood|no files"):
        run(MINARI)
    assert not parts(root)


def test_an_unknown_set(root, server):
    with pytest.raises(DataError, match=r"answers 404.*check the id"):
        run("toy/nothing-v0")


def test_the_token_goes_to_the_hub_only(root, server, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_x")
    files = minari_files()
    add_hub_set(server, MINARI, files)
    path = f"/datasets/farama-minari/toy/resolve/{SHA}/pendulum/human-v2/data/main_data.hdf5"
    with running() as store:
        store.files["/blob"] = files["data/main_data.hdf5"]
        elsewhere = store.url.replace("127.0.0.1", "localhost")
        server.script[path] = [Step(location=f"{elsewhere}/blob")]
        monkeypatch.setenv("NO_PROXY", "127.0.0.1,localhost")
        run(MINARI)
        assert all(seen.get("Authorization") == "Bearer hf_x" for seen in server.seen)
        assert [seen.get("Authorization") for seen in store.seen] == [None]


@pytest.mark.parametrize("way", ["mirror", "unencrypted", "port"])
def test_the_token_goes_nowhere_else(root, server, monkeypatch, way):
    """Catches: a secret of one server told to another, in the clear, or to another port of the
    same host that the Hub redirects to."""
    monkeypatch.setenv("HF_TOKEN", "hf_x")
    monkeypatch.setenv("NO_PROXY", "*")
    files = minari_files()
    with running() as other:
        add_hub_set(other, MINARI, files)
        if way == "mirror":
            run(MINARI, mirror=other.url)
        elif way == "unencrypted":
            monkeypatch.setattr(hub, "THIS_MACHINE", ())
            monkeypatch.setenv("HF_ENDPOINT", other.url)
            run(MINARI)
        else:
            add_hub_set(server, MINARI, files)
            path = next(p for p in server.files if p.endswith("main_data.hdf5"))
            server.script[path] = [Step(location=f"{other.url}{path}")]
            run(MINARI)
        assert other.seen and not [s for s in other.seen if "Authorization" in s]
    assert load(MINARI).stats["transitions"] == 10


@pytest.mark.parametrize(
    ("home", "address", "sent"),
    [
        ("https://huggingface.co", "https://huggingface.co/api/x", True),
        ("https://huggingface.co", "https://huggingface.co:443/api/x", True),
        ("https://huggingface.co", "http://huggingface.co/api/x", False),
        ("https://huggingface.co", "https://huggingface.co.evil.test/x", False),
        ("https://huggingface.co", "https://huggingface.co@evil.test/x", False),
        ("https://hub.test", "https://huggingface.co/x", False),
        ("http://hub.test", "http://hub.test/x", False),
        ("http://localhost:1", "http://localhost:1/x", True),
        ("http://localhost:1", "http://localhost:2/x", False),
    ],
)
def test_where_the_token_goes(monkeypatch, home, address, sent):
    monkeypatch.setenv("HF_TOKEN", "hf_x")
    monkeypatch.setenv("HF_ENDPOINT", home)
    with new_session() as session:
        hub.authorise(session)
        asked = session.prepare_request(requests.Request("GET", address))
    assert asked.headers.get("Authorization") == ("Bearer hf_x" if sent else None)


def test_a_set_that_could_not_be_read_is_not_downloaded(root, server, tmp_path):
    """Catches: gigabytes that arrive before the refusal; parts that stay; the refusal of an archive
    after it took the place of a set."""
    files = minari_files()
    metadata = json.loads(files["data/metadata.json"]) | {"data_format": "arrow"}
    files["data/metadata.json"] = json.dumps(metadata).encode()
    add_hub_set(server, MINARI, files)
    with pytest.raises(DataError, match=f"{MINARI}: data_format: is 'arrow'.*nothing else was"):
        run(MINARI)
    asked = [path for path, _ in server.asked if "/resolve/" in path]
    assert [path.rpartition("/")[2] for path in asked] == ["metadata.json"]
    archive = tmp_path / "a.zip"
    with zipfile.ZipFile(archive, "w") as file:
        for name, content in files.items():
            file.writestr(name, content)
    with pytest.raises(DataError, match=r"a\.zip gave no dataset.*is 'arrow'"):
        run(MINARI, origin=str(archive))
    assert not folder(root).exists() and not parts(root) and MINARI not in locked()


def test_another_owner_and_other_remotes(root, server, monkeypatch):
    add_hub_set(server, MINARI, minari_files())
    server.files = {k.replace("farama-minari", "mine"): v for k, v in server.files.items()}
    monkeypatch.setenv("MINARI_REMOTE", "hf://mine")
    run(MINARI)
    monkeypatch.setenv("MINARI_REMOTE", "gcp://minari-remote")
    with pytest.raises(ConfigError, match="MINARI_REMOTE"):
        run(MINARI, again=True)


def test_a_set_outside_any_namespace(root, server):
    add_hub_set(server, "solo-test-v0", minari_files())
    run("solo-test-v0")
    assert (root / "minari/solo-test-v0/data/metadata.json").exists()
    assert load("solo-test-v0").stats["episodes"] == 2


@pytest.mark.parametrize("lfs", [{"oid": "abc", "size": 9}, {"oid": "a" * 64, "size": "x"}])
def test_a_listing_without_a_hash_or_size_is_refused(lfs):
    """Catches: a large file that nothing verifies, and a traceback."""
    folder = hub.place("toy/x-v0")[1]
    row = {
        "type": "file",
        "path": f"{folder}/data/a.hdf5".lstrip("/"),
        "size": 9,
        "oid": "0" * 40,
        "lfs": lfs,
    }
    with pytest.raises(DataError, match="lists files in a way that is not understood"):
        hub._page("http://hub", [row], "toy/x-v0", "c" * 40, None)
