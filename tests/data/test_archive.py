"""Arrays are what the archive holds, and an archive that tells of more than it holds costs no memory."""

from __future__ import annotations

import io
import resource
import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from disa_framework.data.archive import read_array
from disa_framework.data.image_files import ImageFiles
from disa_framework.metrics.fid import load_statistics

Shape = tuple[int, ...]
STORED, DEFLATED = zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED


def array(shape: Shape, kind: str = "|u1", content: bytes = b"", version: int = 1) -> bytes:
    """An array as NumPy writes it, or one that holds something else than it says."""
    file = io.BytesIO()
    header = {"descr": kind, "fortran_order": False, "shape": shape}
    write = np.lib.format.write_array_header_1_0 if version == 1 else np.lib.format.write_array_header_2_0
    write(file, header)
    return file.getvalue() + content


def pack(path: Path, compression: int, **members: bytes) -> Path:
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, content in members.items():
            archive.writestr(f"{name}.npy", content)
    return path


@pytest.fixture
def little_memory() -> Iterator[None]:
    before = resource.getrlimit(resource.RLIMIT_AS)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + 2**28, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_AS, before)


IMAGES = bytes(range(192)) * 4
LIES = {
    "more than there is": array((2**44, 8, 8, 3), content=IMAGES),
    "more than fits into 64 bits": array((2**62, 2**62, 8, 3), content=IMAGES),
    "a gigabyte": array((5592405, 8, 8, 3), content=IMAGES),
    "less than there is": array((3, 8, 8, 3), content=IMAGES),
    "less than none": array((-4, 8, 8, 3), content=IMAGES),
    "a bomb": array((4, 8, 8, 3), content=bytes(2**24)),
    "objects": array((96,), "|O", content=IMAGES),
    "nothing often": array((2**44,), "|V0"),
    "a header of 4 GiB": b"\x93NUMPY\x02\x00\xff\xff\xff\xff{",
    "a pickle": b"\x80\x04N.",
}


@pytest.mark.usefixtures("little_memory")
@pytest.mark.parametrize("compression", [STORED, DEFLATED], ids=["stored", "deflated"])
@pytest.mark.parametrize("lie", LIES)
def test_an_archive_that_lies_about_its_size_is_refused(lie: str, compression: int, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"^[^\n]*i\.npz is damaged or of another kind: [^\n]+$"):
        ImageFiles(pack(tmp_path / "i.npz", compression, arr_0=LIES[lie]))
    honest = array((6, 6), "<f8", np.eye(6).tobytes())
    for mu, sigma in ((LIES[lie], honest), (array((6,), "<f8", bytes(48)), LIES[lie])):
        with pytest.raises(ValueError, match=r"^[^\n]*s\.npz is damaged or of another kind: [^\n]+$"):
            load_statistics(pack(tmp_path / "s.npz", compression, mu=mu, sigma=sigma))


@pytest.mark.parametrize("compression", [STORED, DEFLATED], ids=["stored", "deflated"])
def test_a_table_of_contents_that_lies_is_refused(compression: int, tmp_path: Path) -> None:
    path = pack(tmp_path / "i.npz", compression, arr_0=array((4, 8, 8, 3), content=IMAGES))
    content = bytearray(path.read_bytes())
    size = content.rfind(b"PK\x01\x02") + 24
    content[size : size + 4] = b"\0\0\0\x70"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"i\.npz is damaged or of another kind"):
        ImageFiles(path)


@pytest.mark.parametrize("compression", [STORED, DEFLATED], ids=["stored", "deflated"])
@pytest.mark.parametrize("form", ["rows", "columns", "newer", "second"])
def test_arrays_are_read_whatever_their_form(form: str, compression: int, tmp_path: Path) -> None:
    want = np.random.default_rng(0).integers(0, 256, (4, 5, 6, 3), dtype=np.uint8)
    content = array(want.shape, content=want.tobytes(), version=2 if form == "newer" else 1)
    if form == "columns":
        file = io.BytesIO()
        np.save(file, np.asfortranarray(want))
        content = file.getvalue()
    others = {"mu": array((3,), content=b"abc")} if form == "second" else {}
    path = pack(tmp_path / "i.npz", compression, **others, arr_0=content)
    assert np.array_equal(read_array(path, "arr_0"), want)
    assert np.array_equal(ImageFiles(path)[2].permute(1, 2, 0), want[2])
