"""Files and folders that take their place whole or not at all, also after a kill or a loss of power."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path


def replace_file(path: Path, write: Callable[[Path], object]) -> None:
    """Have ``write`` make a file that takes the place of ``path``."""
    partial = partial_name(path)
    write(partial)
    put_in_place(partial, path)


def replace_text(path: Path, text: str) -> None:
    """Write a text file, in UTF-8, that takes the place of ``path``."""
    replace_file(path, lambda partial: partial.write_text(text, encoding="utf-8"))


@contextmanager
def replace_folder(path: Path) -> Iterator[Path]:
    """A new folder to be filled in a ``with`` block, at whose end it takes the place of ``path``.

    Where the block fails, ``path`` stays as it was. What is left of the new folder is removed at the next try.
    """
    if _aside(path).exists() and not path.exists():  # a kill came between two renames
        os.replace(_aside(path), path)
    partial = partial_name(path)
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    yield partial
    put_in_place(partial, path)


def partial_name(path: Path) -> Path:
    """What takes the place of a file or folder is made beside it, under this name."""
    return path.with_name(f".{path.name}.partial")


def put_in_place(partial: Path, path: Path) -> None:
    """Rename a finished file or folder to the name that says it is whole, once all of it is on disk."""
    if partial.is_dir() and not partial.is_symlink():
        for inside in sorted(partial.rglob("*")):
            sync_to_disk(inside)
        _set_aside(path)
    if not partial.is_symlink():
        sync_to_disk(partial)
    os.replace(partial, path)
    sync_to_disk(path.parent)
    shutil.rmtree(_aside(path), ignore_errors=True)


def _aside(path: Path) -> Path:
    return path.with_name(f".{path.name}.earlier")


def _set_aside(path: Path) -> None:
    """Free the name of a folder, which cannot be replaced while it holds files; as briefly as can be."""
    if path.exists():
        shutil.rmtree(_aside(path), ignore_errors=True)
        os.replace(path, _aside(path))


def sync_to_disk(path: Path) -> None:
    """Wait until a file, or the names in a directory, are on disk, where a loss of power leaves them."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
