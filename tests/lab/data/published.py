"""Small files in the formats of the published sets, with their checksums in the place of the real ones."""

import gzip
import hashlib
import io
import pickle
import struct
import tarfile
from dataclasses import replace

import numpy as np


def sha256(content):
    return hashlib.sha256(content).hexdigest()


def idx_bytes(array):
    return b"\x00\x00\x08" + bytes([array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()


def small_idx(archive, root):
    """Write four .gz files under root; return the archive that they are, and what is in them."""
    random = np.random.default_rng(0)
    content, files = {}, {}
    folder = root / archive.folder
    folder.mkdir(parents=True)
    for name in archive.files:
        n = 5 if name.startswith("train") else 3
        shape, high = ((n, 28, 28), 256) if "images" in name else ((n,), 10)
        content[name] = random.integers(0, high, shape, dtype=np.uint8)
        plain = idx_bytes(content[name])
        compressed = gzip.compress(plain)
        (folder / f"{name}.gz").write_bytes(compressed)
        files[name] = (sha256(compressed), sha256(plain))
    return replace(archive, files=files), content


def python2_pickle(value):
    """Pickle bytes, numbers, lists, dicts and arrays of bytes as Python 2 with an old NumPy did.

    Python 3 has no way to write a str of Python 2, which is what these files hold; so the opcodes are written here.
    """
    return b"\x80\x02" + _opcodes(value) + b"."


def _opcodes(value):
    if isinstance(value, bytes):
        return pickle.BINSTRING + struct.pack("<i", len(value)) + value
    if isinstance(value, int):
        return pickle.BININT + struct.pack("<i", value)
    if isinstance(value, list):
        return b"](" + b"".join(map(_opcodes, value)) + b"e"
    if isinstance(value, dict):
        return b"}(" + b"".join(_opcodes(key) + _opcodes(item) for key, item in value.items()) + b"u"
    rows, columns = value.shape
    return (
        b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n" + _opcodes(0) + b"\x85" + _opcodes(b"b") + b"tR"
        b"(" + _opcodes(1) + _opcodes(rows) + _opcodes(columns) + b"\x86"
        b"cnumpy\ndtype\n(" + _opcodes(b"u1") + _opcodes(0) + _opcodes(1) + b"tR"
        b"(" + _opcodes(3) + _opcodes(b"|") + b"NNN" + _opcodes(-1) + _opcodes(-1) + _opcodes(0) + b"tb"
        b"\x89" + _opcodes(value.tobytes()) + b"tb"
    )


def small_cifar(archive, root):
    """Write the archive and the extracted folder; return the archive that they are, and its images and classes."""
    random = np.random.default_rng(1)
    content, arrays = {}, {}
    for name in archive.members:
        if name == archive.meta[0]:
            table = {archive.names.encode(): [f"class {k}".encode() for k in range(archive.classes)]}
        else:
            images = random.integers(0, 256, (4, 3072), dtype=np.uint8)
            classes = random.integers(0, archive.classes, 4).tolist()
            arrays[name] = images.reshape(4, 3, 32, 32), classes
            table = {b"data": images, archive.labels.encode(): classes, b"batch_label": b"some"}
        content[name] = python2_pickle(table)
    folder = root / archive.folder
    folder.mkdir(parents=True)
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archived:
        for name, pickled in content.items():
            (folder / name).write_bytes(pickled)
            member = tarfile.TarInfo(f"{archive.folder}/{name}")
            member.size = len(pickled)
            archived.addfile(member, io.BytesIO(pickled))
    (root / archive.url.rpartition("/")[2]).write_bytes(buffer.getvalue())
    checksums = {name: f"sha256:{sha256(pickled)}" for name, pickled in content.items()}
    return (
        replace(
            archive,
            checksums=(f"sha256:{sha256(buffer.getvalue())}",),
            train={name: checksums[name] for name in archive.train},
            test={name: checksums[name] for name in archive.test},
            meta=(archive.meta[0], checksums[archive.meta[0]]),
        ),
        arrays,
    )
