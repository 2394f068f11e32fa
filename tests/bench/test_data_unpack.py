"""Archives of Minari sets: what is taken out of them, and what is refused."""

import io
import stat
import tarfile
import tracemalloc
import zipfile
from pathlib import Path
from random import Random

import pytest

from bench.data import load, unpack
from bench.data.lockfile import locked
from bench.errors import DataError
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
from tests.bench.file_server import Step

FILES = minari_files()


def zipped(path: Path, files: dict[str, bytes], prefix: str = "") -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(prefix + name, content)
    return path


def tarred(path: Path, files: dict[str, bytes], prefix: str = "", mode: str = "w:gz") -> Path:
    with tarfile.open(path, mode) as archive:
        for name, content in files.items():
            add(archive, prefix + name, content)
    return path


def add(archive: tarfile.TarFile, name: str, content: bytes = b"", **facts) -> None:
    info = tarfile.TarInfo(name)
    info.size = len(content)
    for key, value in facts.items():
        setattr(info, key, value)
    archive.addfile(info, io.BytesIO(content))


@pytest.mark.parametrize(
    "prefix", ["", "./", "human-v2/", "D4RL/pen/human-v2/", "data/", "data/D4RL/data/human-v2/"]
)
@pytest.mark.parametrize("pack", [zipped, tarred])
def test_a_set_comes_out_of_an_archive(root, tmp_path, pack, prefix):  # noqa: F811
    if (pack, prefix) == (zipped, "./"):
        prefix = "set/"
    files = {**FILES, "README.md": b"not needed", "mydata/metadata.json": b"no set's"}
    run(MINARI, origin=str(pack(tmp_path / "archive", files, prefix)))
    assert load(MINARI).stats["transitions"] == 10 and not parts(root)
    found = {p.relative_to(folder(root)).as_posix() for p in folder(root).rglob("*.*")}
    assert found == set(FILES)
    assert {f.name for f in locked()[MINARI].files} == set(FILES)


@pytest.mark.parametrize("mode", ["w", "w:bz2", "w:xz"])
def test_other_kinds_of_tar(root, tmp_path, mode):  # noqa: F811
    run(MINARI, origin=str(tarred(tmp_path / "archive", FILES, "set/", mode)))
    assert load(MINARI).stats["transitions"] == 10


def test_an_archive_is_downloaded_and_held_to_the_lock_file(root, server, tmp_path):  # noqa: F811
    content = tarred(tmp_path / "a", FILES).read_bytes()
    server.files["/a.tar.gz"] = content
    server.script["/a.tar.gz"] = [Step(cut=len(content) // 2)]
    run(MINARI, origin=f"{server.url}/a.tar.gz")
    before = (folder(root) / "data/main_data.hdf5").read_bytes()
    other = zipped(tmp_path / "b", minari_files(seed=1))
    with pytest.raises(DataError, match=r"main_data.hdf5.*not what .*lock.toml records"):
        run(MINARI, origin=str(other), again=True)
    more = zipped(tmp_path / "c", {**FILES, "data/more": b"x"})
    with pytest.raises(DataError, match="data/more"):
        run(MINARI, origin=str(more), again=True)
    assert (folder(root) / "data/main_data.hdf5").read_bytes() == before and not parts(root)


def refused(root: Path, archive: Path, match: str) -> None:  # noqa: F811
    outside = {p for p in root.parent.rglob("*") if not p.is_dir()}
    with pytest.raises(DataError, match=match):
        run(MINARI, origin=str(archive))
    assert {p for p in root.parent.rglob("*") if not p.is_dir()} == outside
    assert not folder(root).exists() and not parts(root) and MINARI not in locked()


@pytest.mark.parametrize(
    "name", ["../evil", "/evil", "data/../../evil", "C:/evil", "data\\evil", "data/a\nb", "data//x"]
)
@pytest.mark.parametrize("pack", [zipped, tarred])
def test_names_that_lead_outside(root, tmp_path, pack, name):  # noqa: F811
    refused(root, pack(tmp_path / "archive", {**FILES, name: b"x"}), "not safe")


@pytest.mark.parametrize(
    "kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE]
)
def test_links_and_devices_in_a_tar(root, tmp_path, kind):  # noqa: F811
    path = tmp_path / "a.tar"
    with tarfile.open(path, "w") as archive:
        add(archive, "data/evil", type=kind, linkname="/etc/passwd")
        for name, content in FILES.items():
            add(archive, name, content)
    refused(root, path, "link or a device")


def test_links_in_a_zip(root, tmp_path):  # noqa: F811
    path = zipped(tmp_path / "a.zip", FILES)
    with zipfile.ZipFile(path, "a") as archive:
        info = zipfile.ZipInfo("data/evil")
        info.external_attr = (stat.S_IFLNK | 0o777) << 16
        archive.writestr(info, "/etc/passwd")
    refused(root, path, "link or a device")


def test_a_name_with_a_zero_byte_in_a_zip(root, tmp_path):  # noqa: F811
    path = zipped(tmp_path / "a.zip", {**FILES, "data/evilXx": b"x"})
    path.write_bytes(path.read_bytes().replace(b"evilXx", b"evil\0x"))
    refused(root, path, "not safe|damaged")


@pytest.mark.parametrize("pack", [zipped, tarred])
@pytest.mark.parametrize("name", ["data/zeros", "zeros"])
def test_bombs(root, tmp_path, pack, name, monkeypatch):  # noqa: F811
    """One file that unpacks to far more than the archive is, also where it would be left out."""
    monkeypatch.setattr(unpack, "SMALL", 1 << 20)
    bomb = {name: bytes(4 << 20), **FILES}
    refused(root, pack(tmp_path / "archive", bomb), "unpacks to more than")


def test_many_files(root, tmp_path, monkeypatch):  # noqa: F811
    monkeypatch.setattr(unpack, "MANY_FILES", 20)
    many = {f"data/{i}": b"" for i in range(30)}
    refused(root, zipped(tmp_path / "a.zip", FILES | many), "more than 20 files")


def test_archives_that_are_none_or_hold_no_set(root, tmp_path):  # noqa: F811
    text = tmp_path / "text"
    text.write_text("hello")
    refused(root, text, "no zip or tar archive")
    refused(root, zipped(tmp_path / "a.zip", {"data/x": b""}), "no Minari dataset.*but 'data/x'")
    refused(root, zipped(tmp_path / "n.zip", {}), "no Minari dataset.*but nothing|no zip or tar")
    two = {f"{k}/{n}": c for k in "ab" for n, c in FILES.items()}
    refused(root, zipped(tmp_path / "b.zip", two), "several datasets")
    twice = tmp_path / "c.tar"
    with tarfile.open(twice, "w") as archive:
        for name, content in [*FILES.items(), *FILES.items()]:
            add(archive, name, content)
    refused(root, twice, "twice")


def long_header(path: Path, kind: bytes, mode: str) -> Path:
    """A tar whose first entry says that what describes the next file is 64 MB long."""
    with tarfile.open(path, mode) as archive:
        info = tarfile.TarInfo("x")
        info.type, info.size = kind, 64 << 20
        archive.addfile(info, io.BytesIO(bytes(64 << 20)))
        for name, content in FILES.items():
            add(archive, name, content)
    return path


@pytest.mark.parametrize("mode", ["w:gz", "w"])
@pytest.mark.parametrize(
    "kind", [tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK]
)
def test_headers_of_any_length(root, tmp_path, kind, mode):  # noqa: F811
    """Catches: memory that grows with what a file says of itself."""
    path = long_header(tmp_path / "a.tar", kind, mode)
    tracemalloc.start()
    try:
        refused(root, path, r"says more than 4,194,304 bytes")
        most = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert most < 40 << 20


def test_a_list_of_files_of_any_length(root, tmp_path, monkeypatch):  # noqa: F811
    monkeypatch.setattr(unpack, "HEADERS", 1 << 17)
    names = {f"data/{'x' * 150}{i}": b"" for i in range(1000)}
    refused(root, zipped(tmp_path / "a.zip", FILES | names), "says more than 131,072 bytes")


def test_folders_count_as_files_do(root, tmp_path, monkeypatch):  # noqa: F811
    monkeypatch.setattr(unpack, "MANY_FILES", 20)
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        for number in range(30):
            add(archive, f"folder{number}", type=tarfile.DIRTYPE)
        for name, content in FILES.items():
            add(archive, name, content)
    refused(root, tmp_path / "a.tar", "more than 20 files")


@pytest.mark.parametrize("pack", [zipped, tarred])
def test_damaged_archives(tmp_path, pack):
    """Bits flipped anywhere, or the end missing: the right files or our own error."""
    path, random, refusals = pack(tmp_path / "archive", FILES), Random(0), 0
    whole = path.read_bytes()
    for attempt in range(100):
        damaged = bytearray(whole)
        damaged[random.randrange(len(whole))] ^= 1 << random.randrange(8)
        path.write_bytes(damaged[: random.randrange(len(whole))] if attempt % 5 == 0 else damaged)
        out = tmp_path / f"out{attempt}"
        try:
            if not unpack.is_archive(path):
                raise DataError("none")
            unpack.unpack(path, out)
        except DataError:
            refusals += 1
            continue
        assert {n: (out / n).read_bytes() for n in FILES} == FILES
    assert refusals > 80
