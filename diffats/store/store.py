"""Versions of groups in one Icechunk repository.

There is one branch. A group at its head is the newest version of that group; a finished version has a tag besides,
``GROUP-FINGERPRINT-N``, through whose snapshot it is read, so it stays readable when a version with another
fingerprint takes its place at the head.

Workers write through forks of the snapshot that holds the template. Icechunk merges such a fork into any later
snapshot that still has these arrays, so workers need not wait for commits.
"""

from __future__ import annotations

import contextlib
import itertools
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import icechunk
import xarray as xr
import zarr

from diffats.errors import IntegrityError, RootMismatchError, StoreError, StoreNotFoundError
from diffats.store import schema
from diffats.store.export import export_groups
from diffats.store.location import create_repository, reason
from diffats.store.lock import store_lock
from diffats.store.repository import (
    BRANCH,
    METADATA_DAMAGE,
    Repository,
    commit_metadata,
    configured,
    group_names,
    read_attrs,
    write_record,
)
from diffats.store.schema import RECORD, Record
from diffats.store.verify import Problem, verify_versions
from diffats.store.version import Progress, Version

_GROUP = re.compile(r"[A-Za-z][A-Za-z0-9_]*")
_FINGERPRINT = re.compile(r"[A-Za-z0-9_]+")


class Store(Repository):
    """One repository of versioned groups.

    Parameters
    ----------
    location
        A directory or URL that holds a repository; see `create_or_open`.

    Raises
    ------
    StoreNotFoundError
        Where there is none.

    Examples
    --------
    >>> import tempfile
    >>> import numpy as np
    >>> from diffats.compute import open_cluster
    >>> from diffats.config import Compute
    >>> def squares(start, stop):
    ...     samples = np.arange(start, stop, dtype=float)
    ...     return {"square": samples**2, "status": np.ones(stop - start, np.int8)}
    >>> template = xr.Dataset({"square": ("sample", np.zeros(5))}, coords={"sample": np.arange(5)})
    >>> with tempfile.TemporaryDirectory() as root, open_cluster(Compute()) as cluster:
    ...     store = Store.create_or_open(f"{root}/store")
    ...     version = store.begin("squares", template, fingerprint="a1", shard=2)
    ...     version.fill(squares, cluster)
    ...     version.finish().dataset().square.values
    array([ 0.,  1.,  4.,  9., 16.])
    """

    @classmethod
    def create_or_open(cls, location: str | Path) -> Self:
        """Open the store, or make an empty one."""
        with store_lock(location):
            repo = create_repository(location)
            if repo.config.manifest is None:  # just made, or by an earlier release
                repo.reopen(configured()).save_config()
        return cls(location)

    def check(self, name: str, dims: Sequence[str]) -> None:
        """Tie a new store to a recipe's name and its samples' dims, and refuse any other from then on.

        Raises
        ------
        RootMismatchError
            Where the store belongs to another name or other dims.
        """
        attrs = self._root_attrs()
        expected = {"name": name, "dims": list(dims)}
        if RECORD not in attrs:
            with self.writing() as session:
                root = zarr.open_group(session.store, mode="a", zarr_format=3)
                root.attrs[RECORD] = expected
                self.commit(session, f"store of {name}", {"name": name})
            return
        got = attrs[RECORD]
        for key, what in (("name", "recipe"), ("dims", "samples with dims")):
            if got[key] != expected[key]:
                raise RootMismatchError(
                    f"store {self.location} belongs to {what} {_words(got[key])}, got {_words(expected[key])}. "
                    "Give this recipe another root or store."
                )

    def _root_attrs(self) -> dict[str, Any]:
        try:
            return dict(zarr.open_group(self.head().store, mode="r", zarr_format=3).attrs)
        except FileNotFoundError:  # a repository nobody has written to
            return {}

    def begin(
        self,
        group: str,
        template: xr.Dataset,
        *,
        fingerprint: str,
        shard: int,
        attrs: Mapping[str, Any] | None = None,
        restart: bool = False,
    ) -> Version:
        """The version of a group to be filled: a new one, or the one of this fingerprint, however far it is.

        Parameters
        ----------
        group
            Its name.
        template
            Names, dims, dtypes, attributes and coordinates. Data variables with dim ``sample`` (first) are filled
            later, and may be lazy: no value of theirs is looked at. All else is written now.
        fingerprint
            Of all that determines the content.
        shard
            Samples in a shard. A version that is continued keeps its own.
        attrs
            JSON-able attributes of the group, besides the template's.
        restart
            Begin anew, whatever exists.

        Raises
        ------
        StoreError
            Where the template cannot be stored, or differs from the unfinished version with the same fingerprint.
        """
        self._check_names(group, fingerprint)
        where = f"store {self.location}, group {group}"
        with self.writing() as session:
            found = None if restart else self._begun(group, fingerprint)
            if found is not None:
                found.check_template(template)
                return found
            filled = tuple(schema.filled_names(template))
            ds = schema.sharded_template(template, shard, where).assign_attrs(schema.plain(attrs))
            self._clear(session, group)
            schema.write_template(ds, session.store, group, filled, shard)
            static = schema.static_digests(session.store, group, filled)
            record = Record(fingerprint, template.sizes[schema.SAMPLE], shard, filled, static)
            write_record(session, group, record)
            snapshot = self.commit(session, f"{group}: template", commit_metadata(group, record, 0, 0))
        return Version(self, group, snapshot)

    def put(self, group: str, ds: xr.Dataset, *, fingerprint: str, attrs: Mapping[str, Any] | None = None) -> Version:
        """Write a small group whole, in one commit; nothing where the same content is there already.

        Parameters
        ----------
        group
            Its name.
        ds
            The content.
        fingerprint
            Of all that determines it.
        attrs
            JSON-able attributes of the group, besides those of ``ds``.
        """
        self._check_names(group, fingerprint)
        with self.writing() as session:
            self._clear(session, group)
            ready = ds.drop_encoding().assign_attrs(schema.plain(attrs))
            schema.write_template(ready, session.store, group, (), 1)
            record = Record(fingerprint, 0, 1, (), schema.static_digests(session.store, group, ()))
            record = record.completed(schema.content_digest(session.store, group, record))
            known = self._complete(group, fingerprint)
            if known is not None and (known.digest, known.attrs) == (record.digest, read_attrs(session, group)[1]):
                return known
            write_record(session, group, record)
            snapshot = self.commit(session, f"{group}: whole", commit_metadata(group, record, 0, 0))
            self.tag(group, record.fingerprint, snapshot)
        return Version(self, group, snapshot)

    def latest(self, group: str) -> Version | None:
        """The newest complete version of a group, whatever its fingerprint."""
        return self._complete(group, None)

    def version(self, group: str, fingerprint: str) -> Version | None:
        """The newest version of a group with this fingerprint: a complete one, else the unfinished one."""
        tagged = self._tagged_versions(group, fingerprint)  # stages ask often, and these alone answer mostly
        if tagged:
            return Version(self, group, tagged[-1]["snapshot"])
        head = self._at_head(group)
        return head if head is not None and head.fingerprint == fingerprint else None

    def versions(self) -> list[dict[str, Any]]:
        """All versions, oldest first.

        Returns
        -------
        list
            Mappings with ``group``, ``fingerprint``, ``snapshot``, ``tag`` (None for an unfinished version),
            ``complete``, ``done``, ``total``, ``failed`` (in samples; 0 for a group written whole), ``digest`` and
            ``written_at`` (ISO 8601, UTC).

        Raises
        ------
        IntegrityError
            Where the repository's own files are damaged.
        """
        with self._readable():
            tagged = list(self._tagged(self.repo.list_tags()))
            entries = [*tagged, *self._untagged(tagged)]
        return sorted(entries, key=lambda entry: (entry["written_at"], entry["group"]))

    def verify(self, group: str | None = None, *, progress: Progress | None = None) -> list[Problem]:
        """Read everything back and compare it with its digests.

        Parameters
        ----------
        group
            One group only.
        progress
            Called with shards read and problems so far.

        Returns
        -------
        list
            What is damaged, in the newest complete version of each group and in unfinished ones.

        Raises
        ------
        StoreNotFoundError
            Where there is no such group.
        """
        fresh = type(self)(self.location, fresh=True)
        try:
            entries = [entry for entry in fresh.versions() if group in (None, entry["group"])]
        except IntegrityError as error:
            return [Problem(group or "", "", str(error))]
        if group is not None and not entries:
            raise StoreNotFoundError(f"store {self.location} has no group {group}. Run the stage that makes it.")
        newest = {(entry["group"], entry["complete"]): entry["snapshot"] for entry in entries}
        return verify_versions((Version(fresh, name, snapshot) for (name, _), snapshot in newest.items()), progress)

    def export(self, destination: str | Path, *, under: str = "") -> None:
        """Copy the newest complete version of each group into a plain Zarr v3 tree.

        Parameters
        ----------
        destination
            A directory that does not exist, or an earlier export for another ``under``.
        under
            Group of the tree to put this store's groups in, for trees of several stores.

        Raises
        ------
        InputError
            Where something is in the way.
        """
        newest = {entry["group"]: entry["snapshot"] for entry in self.versions() if entry["complete"]}
        sources = {group: self.repo.readonly_session(snapshot_id=snapshot) for group, snapshot in newest.items()}
        export_groups(sources, Path(destination), under, self._root_attrs())

    def _begun(self, group: str, fingerprint: str) -> Version | None:
        head = self._at_head(group)
        if head is not None and head.fingerprint == fingerprint and not head.complete:
            return head
        return self._complete(group, fingerprint)

    def _complete(self, group: str, fingerprint: str | None) -> Version | None:
        """The newest complete version of a group, with this fingerprint unless that is None."""
        head = self._at_head(group)
        tagged = self._tagged_versions(group, fingerprint)
        if head is not None and head.complete and fingerprint in (None, head.fingerprint):
            same = [entry for entry in tagged if _identity(entry) == (head.fingerprint, head.digest)]
            return Version(self, group, same[-1]["snapshot"]) if same else head
        return Version(self, group, tagged[-1]["snapshot"]) if tagged else None

    def _tagged_versions(self, group: str, fingerprint: str | None) -> list[dict[str, Any]]:
        """Entries of the tagged versions of a group, oldest first; no other version is looked at."""
        prefix = f"{group}-" if fingerprint is None else f"{group}-{fingerprint[:16]}-"
        with self._readable():
            tags = self._numbered_tags(prefix) if fingerprint is not None else []
            if not tags:  # perhaps the first was deleted
                tags = [tag for tag in self.repo.list_tags() if tag.startswith(prefix)]
            entries = [e for e in self._tagged(tags) if fingerprint in (None, e["fingerprint"])]
        return sorted(entries, key=lambda entry: str(entry["written_at"]))

    def _numbered_tags(self, prefix: str) -> list[str]:
        """``prefix1`` to the last before two that are not there: asking is quick where listing takes all versions."""
        tags, missing = [], 0
        for number in itertools.count(1):
            try:
                self.repo.lookup_tag(f"{prefix}{number}")
            except icechunk.IcechunkError as error:
                if "not found" not in str(error):
                    raise
                missing += 1  # one may have been deleted by hand
                if missing == 2:
                    break
                continue
            missing = 0
            tags.append(f"{prefix}{number}")
        return tags

    def _at_head(self, group: str) -> Version | None:
        session = self.head()
        return Version(self, group, session.snapshot_id) if group in group_names(session) else None

    @contextlib.contextmanager
    def _readable(self) -> Iterator[None]:
        """Say what to do where the repository's own files are damaged."""
        try:
            yield
        except METADATA_DAMAGE as error:
            raise IntegrityError(
                f"store {self.location}: a snapshot or manifest is damaged or lost ({reason(error)}). "
                "Bring the file back, or remove the store and run the stages again."
            ) from error

    def _tagged(self, tags: Iterable[str]) -> Iterator[dict[str, Any]]:
        for tag in tags:
            snapshot = self.repo.lookup_tag(tag)
            info = self.repo.lookup_snapshot(snapshot)
            if info.metadata.get("complete") and tag.startswith(f"{info.metadata['group']}-"):
                yield {**info.metadata, "snapshot": snapshot, "tag": tag, "written_at": _time_of(info)}

    def _untagged(self, tagged: Iterable[Mapping[str, Any]]) -> Iterator[dict[str, Any]]:
        """What the head holds beyond the tagged versions: mostly one unfinished group."""
        known = {(entry["group"], entry["fingerprint"], entry["digest"]) for entry in tagged}
        session = self.head()
        written_at = _time_of(self.repo.lookup_snapshot(session.snapshot_id))
        for group in group_names(session):
            version = Version(self, group, session.snapshot_id)
            if (group, version.fingerprint, version.digest) not in known:
                yield {**version.summary(), "tag": None, "written_at": written_at}

    def _clear(self, session: icechunk.Session, group: str) -> None:
        """Make room for a new version of a group."""
        head = self._at_head(group)
        if head is not None and head.complete:
            tagged = self._tagged_versions(group, head.fingerprint)
            if (head.fingerprint, head.digest) not in map(_identity, tagged):  # its process died before it was tagged
                self.tag(group, head.fingerprint, self._finished_in(head))
        root = zarr.open_group(session.store, mode="a", zarr_format=3)
        if group in root:
            del root[group]

    def _finished_in(self, version: Version) -> str:
        """The commit that completed a version."""
        expected = {"group": version.group, "digest": version.digest, "complete": True}
        for info in self.repo.ancestry(branch=BRANCH):
            if expected.items() <= info.metadata.items():
                return str(info.id)
        raise StoreError(f"store {self.location}: no commit completed group {version.group}. Run diffats verify.")

    def _check_names(self, group: str, fingerprint: str) -> None:
        for what, text, pattern in (("group", group, _GROUP), ("fingerprint", fingerprint, _FINGERPRINT)):
            if not pattern.fullmatch(text):
                raise StoreError(
                    f'store {self.location}: {what} "{text}" cannot be part of a tag. Use letters, digits and "_".'
                )


def _identity(entry: Mapping[str, Any]) -> tuple[str, str]:
    return entry["fingerprint"], entry["digest"]


def _words(value: Any) -> str:
    return ", ".join(value) if isinstance(value, list) else f'"{value}"'


def _time_of(info: icechunk.SnapshotInfo) -> str:
    return str(info.written_at.isoformat(timespec="microseconds"))
