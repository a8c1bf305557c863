"""The files of a lake as bytes: listed, read and deleted the same way on every store."""

from __future__ import annotations

from dataclasses import dataclass

from deltalake.fs import DeltaStorageHandler
from pyarrow.fs import FileSelector, FileType, PyFileSystem

_CHUNK_BYTES = 8 << 20


@dataclass(frozen=True)
class Entry:
    """A file or folder below the root of a store."""

    path: str
    size: int
    is_folder: bool
    time_us: int

    @property
    def name(self) -> str:
        """The last part of the path."""
        return self.path.rpartition("/")[2]


class Store:
    """Reads whole files one after another: Arrow's threaded readers over it abort the process at exit."""

    def __init__(self, uri: str, *, folder: str = "", files: PyFileSystem | None = None) -> None:
        self._root = uri
        self._folder = folder
        self._files = files or PyFileSystem(DeltaStorageHandler(uri))

    @property
    def uri(self) -> str:
        """Where the files stand."""
        return f"{self._root}/{self._folder}" if self._folder else self._root

    def below(self, folder: str) -> Store:
        """Returns the store of one folder, over the same connection."""
        return Store(self._root, folder=folder, files=self._files)

    def entries(self, folder: str) -> list[Entry]:
        """Returns what stands in a folder, sorted; nothing when there is no such folder."""
        found = self._files.get_file_info(FileSelector(self._at(folder), allow_not_found=True))
        return sorted((_entry(info, self._folder) for info in found), key=lambda entry: entry.path)

    def have_folders(self, paths: list[str]) -> list[bool]:
        """Returns for each path whether a folder stands there."""
        return (
            [info.type == FileType.Directory for info in self._files.get_file_info([self._at(path) for path in paths])]
            if paths
            else []
        )

    def size(self, path: str) -> int | None:
        """Returns the bytes of a file, or None when there is no such file."""
        info = self._files.get_file_info(self._at(path))
        return None if info.type == FileType.NotFound else int(info.size or 0)

    def read(self, path: str) -> bytes:
        """Returns the bytes of a file."""
        with self._files.open_input_file(self._at(path)) as file:
            data: bytes = file.read()
            return data

    def copy(self, path: str, target: str) -> None:
        """Writes the bytes of a file to a local path."""
        with self._files.open_input_file(self._at(path)) as file, open(target, "wb") as copy:  # noqa: PTH123 - a path as text
            while data := file.read(_CHUNK_BYTES):
                copy.write(data)

    def delete(self, path: str) -> None:
        """Deletes a file."""
        self._files.delete_file(self._at(path))

    def _at(self, path: str) -> str:
        return f"{self._folder}/{path}".strip("/")


def _entry(info: object, folder: str) -> Entry:
    nanoseconds = getattr(info, "mtime_ns", None) or 0
    return Entry(
        path=str(getattr(info, "path", "")).strip("/").removeprefix(f"{folder}/" if folder else ""),
        size=int(getattr(info, "size", None) or 0),
        is_folder=getattr(info, "type", None) == FileType.Directory,
        time_us=nanoseconds // 1000,
    )
