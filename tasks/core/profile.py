"""What can be relied on in a file system: which fields of stat are stable there, and how coarse its stamps are.

Values of f_type are those of statfs(2) and linux/magic.h.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from tasks.core.filesystem import filesystem_magic
from tasks.core.guard import Place
from tasks.core.walk import Tree


@dataclass(frozen=True, slots=True)
class Profile:
    """How entries of one file system are compared."""

    name: str
    ctime: bool = True  # moves with every change of content, and nobody can set it
    inode: bool = True  # stays the same for the same file, also after a remount
    network: bool = False  # its clock is another machine's
    granularity_s: float = 1.0  # of its coarsest stamps
    maps_move_times: bool = True  # a write through a memory map moves a time, at the latest when it is flushed
    racy_window_ns: int = field(init=False)  # a stamp within this of the listing may be carried by a later write too

    def __post_init__(self) -> None:
        seconds = 10.0 if self.network else max(2 * self.granularity_s, 2.0)
        object.__setattr__(self, "racy_window_ns", int(seconds * 1e9))

    @property
    def cannot_see(self) -> str | None:
        """What a scan misses here, in words; None: nothing that stat can show."""
        if not self.maps_move_times:
            return (
                f"on {self.name} a write through a memory map after the file was hashed is not seen: it moves no time"
            )
        if self.ctime:
            return None
        return f"on {self.name} a rewrite that sets size and mtime back is not seen: it keeps no change time"


# An unknown file system is compared by everything: where a field is unstable that costs hashing, but misses nothing.
_UNKNOWN = Profile("unknown")
_KNOWN = {
    0xEF53: Profile("ext4"),
    0x58465342: Profile("xfs"),
    0x9123683E: Profile("btrfs"),
    0x01021994: Profile("tmpfs", maps_move_times=False),
    0x794C7630: Profile("overlay"),
    0x2FC12FC1: Profile("zfs"),
    0xF2F52010: Profile("f2fs"),
    0x6969: Profile("nfs", network=True),
    0x00C36400: Profile("ceph", network=True),
    0xFF534D42: Profile("cifs", ctime=False, inode=False, network=True),
    0xFE534D42: Profile("smb2", ctime=False, inode=False, network=True),
    0x65735546: Profile("fuse", ctime=False, inode=False, network=True),
    0x01021997: Profile("9p", ctime=True, inode=False, network=True),
    0x4D44: Profile("vfat", ctime=False, inode=False, granularity_s=2.0),
    0x2011BAB0: Profile("exfat", ctime=False, inode=False, granularity_s=2.0),
    0x5346544E: Profile("ntfs", ctime=False),
}


def place_of(tree: Tree) -> Place:
    """Which folder a root is."""
    profile = profile_of(filesystem_magic(tree.fd))
    return Place(profile.name, tree.inode if profile.inode else None)


def profile_of(magic: int) -> Profile:
    """The profile of a file system, by the `f_type` that statfs tells."""
    return _KNOWN.get(magic, _UNKNOWN)


def profile_named(name: str) -> Profile:
    """The profile by the name that a tenant's row keeps."""
    return next((profile for profile in _KNOWN.values() if profile.name == name), _UNKNOWN)
