"""What a power cut leaves on disk: everything that was not fsynced may be gone, or half there.

A killed process loses nothing that the kernel was told. A power cut does: POSIX promises the
content of a file only up to its last fsync, and a name in a folder only up to the last fsync of
that folder. File systems keep more than that, each in its own way, so one run of the device is
turned into every disk that one of these rules could leave at each of its system calls:

- `strict`: names and contents as of their last fsync, nothing later;
- `names`: every name is there, contents as of their last fsync, so a new file is empty
  (a journalling file system with delayed allocation);
- `zeros`: every name and length is there, the content that was not fsynced is zeros
  (likewise, after the length was written);
- `torn`: for each name and each 4 KiB page, by a seeded coin, the old or the new.

Nothing of how calls are combined is assumed: the state that the kernel sees is read from the disk
itself at each stop, and only fsync makes something durable. Index files of SQLite's write-ahead
log (`-shm`) are rebuilt after a start, and are zeros here.
"""

import os
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path

RULES = ("strict", "names", "zeros", "torn")
_PAGE_BYTES = 4096

# What a name stands for: a file by inode number, a symbolic link's target, or None for a folder.
Entry = int | str | None
# Gives the content of an inode; chooses between an old page and a new one.
Content = Callable[[int], bytes]
Choose = Callable[[bytes, bytes], bytes]


@dataclass(frozen=True)
class Store:
    """The content of a store: path → bytes of a file, target of a link, None for a folder."""

    entries: tuple[tuple[str, bytes | str | None], ...]

    @property
    def digest(self) -> str:
        """Of names and contents."""
        digest = sha256()
        for path, content in self.entries:
            data = content if isinstance(content, bytes) else repr(content).encode()
            digest.update(f"{path}\0{len(data)}\0".encode() + data)
        return digest.hexdigest()

    def write(self, folder: Path) -> None:
        """Make it real in an empty folder."""
        folder.mkdir(parents=True)
        for path, content in self.entries:
            place = folder / path
            if content is None:
                place.mkdir()
            elif isinstance(content, str):
                place.symlink_to(content)
            else:
                place.write_bytes(content)


@dataclass
class _Tree:
    names: dict[str, dict[str, Entry]] = field(default_factory=dict)
    contents: dict[int, bytes] = field(default_factory=dict)


class Disk:
    """A store as the kernel sees it, beside what of it would survive a power cut now."""

    def __init__(self, folder: Path) -> None:
        """Take everything in `folder` as durable: it was there long ago."""
        self._folder = folder
        # An inode number must not be used again while it is known here, so it is held open.
        self._held: dict[int, int] = {}
        self._durable = self._look()

    def close(self) -> None:
        """Let go of the files."""
        for descriptor in self._held.values():
            os.close(descriptor)
        self._held.clear()

    def made_durable(self, path: str) -> None:
        """Take note of a finished fsync of a file or folder, by its path below the store."""
        now = self._look()
        if path in now.names:
            self._durable.names[path] = dict(now.names[path])
            return
        folder, _, name = path.rpartition("/")
        entry = now.names.get(folder, {}).get(name)
        if isinstance(entry, int):
            self._durable.contents[entry] = now.contents[entry]

    def after_power_loss(self, rule: str, *, seed: int) -> Store:
        """Return the store that a power cut now would leave by one of `RULES`."""
        now = self._look()
        if rule == "strict":
            return self._build(self._durable.names, self._synced)
        if rule == "names":
            return self._build(now.names, self._synced)
        if rule == "zeros":
            return self._build(now.names, lambda inode: self._zeroed(inode, now))
        coin = random.Random(seed)
        names = self._mixed_names(now, coin)
        pages: dict[int, bytes] = {}

        def torn(inode: int) -> bytes:
            if inode not in pages:
                pages[inode] = self._torn(inode, now, coin)
            return pages[inode]

        return self._build(names, torn)

    def _look(self) -> _Tree:
        tree = _Tree()
        waiting = [""]
        while waiting:
            path = waiting.pop()
            names: dict[str, Entry] = {}
            with os.scandir(self._folder / path) as found:
                for item in sorted(found, key=lambda item: item.name):
                    if item.is_symlink():
                        names[item.name] = str(Path(item.path).readlink())
                    elif item.is_dir():
                        names[item.name] = None
                        waiting.append(f"{path}/{item.name}".lstrip("/"))
                    else:
                        inode = item.inode()
                        names[item.name] = inode
                        if inode not in self._held:
                            self._held[inode] = os.open(item.path, os.O_RDONLY)
                        content = Path(item.path).read_bytes()
                        is_index = item.name.endswith("-shm")
                        tree.contents[inode] = bytes(len(content)) if is_index else content
            tree.names[path] = names
        return tree

    def _build(self, names: dict[str, dict[str, Entry]], content: Content) -> Store:
        entries: list[tuple[str, bytes | str | None]] = []
        waiting = [""]
        while waiting:
            path = waiting.pop(0)
            for name, entry in sorted(names.get(path, {}).items()):
                full = f"{path}/{name}".lstrip("/")
                if entry is None:
                    waiting.append(full)
                entries.append((full, content(entry) if isinstance(entry, int) else entry))
        return Store(tuple(entries))

    def _synced(self, inode: int) -> bytes:
        return self._durable.contents.get(inode, b"")

    def _zeroed(self, inode: int, now: _Tree) -> bytes:
        return _by_page(
            self._synced(inode), now.contents.get(inode), lambda old, new: bytes(len(new))
        )

    def _torn(self, inode: int, now: _Tree, coin: random.Random) -> bytes:
        return _by_page(
            self._synced(inode),
            now.contents.get(inode),
            lambda old, new: coin.choice((old.ljust(len(new), b"\0")[: len(new)], new)),
        )

    def _mixed_names(self, now: _Tree, coin: random.Random) -> dict[str, dict[str, Entry]]:
        mixed: dict[str, dict[str, Entry]] = {}
        for path in sorted({*now.names, *self._durable.names}):
            new, old = now.names.get(path, {}), self._durable.names.get(path, {})
            mixed[path] = {}
            for name in sorted({*new, *old}):
                source = new if new.get(name, "") == old.get(name, "") else coin.choice((new, old))
                if name in source:
                    mixed[path][name] = source[name]
        return mixed


def _by_page(old: bytes, new: bytes | None, choose: Choose) -> bytes:
    if new is None or new == old:  # deleted since, or fsynced
        return old
    pages = []
    for at in range(0, len(new), _PAGE_BYTES):
        before, after = old[at : at + _PAGE_BYTES], new[at : at + _PAGE_BYTES]
        pages.append(after if before == after else choose(before, after))
    return b"".join(pages)
