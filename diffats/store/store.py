"""Versions of groups in one Icechunk repository.

There is one branch. A group at its head is the newest version of that group; a finished version has a tag besides,
``GROUP-FINGERPRINT-N``, through whose snapshot it is read, so it stays readable when a version with another
fingerprint takes its place at the head. What was made from the version that is replaced leaves the head with it:
otherwise the snapshots of the new versions would hold it, and its chunks could not be freed before they are.

Users' names of versions, and a list of what was named, rolled back and pruned, are an attribute of the root.

Workers write through forks of the snapshot that holds the template. Icechunk merges such a fork into any later
snapshot that still has these arrays, so workers need not wait for commits.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Self

import icechunk
import xarray as xr
import zarr

from diffats.errors import InputError, IntegrityError, RootMismatchError, StoreError, StoreNotFoundError
from diffats.icechunk_releases import format_of, reason
from diffats.store import schema
from diffats.store.export import export_groups
from diffats.store.growth import copy_group, grow_group
from diffats.store.location import create_repository
from diffats.store.lock import store_lock
from diffats.store.repository import (
    BRANCH,
    HISTORY,
    METADATA_DAMAGE,
    Repository,
    commit_metadata,
    configured,
    group_names,
    read_attrs,
    root_attrs,
    write_record,
)
from diffats.store.schema import RECORD, Record
from diffats.store.verify import Problem, verify_versions
from diffats.store.version import Progress, Version

_GROUP = re.compile(r"[A-Za-z][A-Za-z0-9_]*")
_FINGERPRINT = re.compile(r"[A-Za-z0-9_]+")
_SHORTEST_ID = 4  # characters of an id that may stand for it
#: Before the tag of a version that a rollback has withdrawn; no group's name has a full stop.
WITHDRAWN = "withdrawn."
_BLANK: dict[str, Any] = {"author": None, "release": None, "source": None, "withdrawn": False}


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
        expected = {"name": name, "dims": list(dims)}
        with self.readable():
            got = root_attrs(self.head()).get(RECORD)
        if got is None:
            with self.writing() as session:
                got = root_attrs(session).get(RECORD)  # another process may have been here meanwhile
                if got is None:
                    zarr.open_group(session.store, mode="a", zarr_format=3).attrs[RECORD] = expected
                    self.commit(session, f"store of {name}", {"name": name})
                    return
        for key, what in (("name", "recipe"), ("dims", "samples with dims")):
            if got[key] != expected[key]:
                raise RootMismatchError(
                    f"store {self.location} belongs to {what} {_words(got[key])}, got {_words(expected[key])}. "
                    "Give this recipe another root or store."
                )

    @property
    def name(self) -> str | None:
        """The name of the recipe that it is tied to; None for now."""
        with self.readable():
            name = root_attrs(self.head()).get(RECORD, {}).get("name")
        return None if name is None else str(name)

    def begin(
        self,
        group: str,
        template: xr.Dataset,
        *,
        fingerprint: str,
        shard: int,
        attrs: Mapping[str, Any] | None = None,
        restart: bool = False,
        grows: bool = False,
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
        grows
            Whether `grow` shall be able to continue it, also where its samples fill no shard.

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
            schema.write_template(ds, session.store, group, filled, shard, grows=grows)
            static = schema.static_digests(session.store, group, filled)
            record = Record(fingerprint, template.sizes[schema.SAMPLE], shard, filled, static)
            write_record(session, group, record)
            snapshot = self.commit(session, f"{group}: template", commit_metadata(group, record, 0, 0, attrs))
        return Version(self, group, snapshot)

    def grow(
        self, previous: Version, template: xr.Dataset, *, fingerprint: str, attrs: Mapping[str, Any] | None = None
    ) -> Version:
        """The version of a group that has an earlier one's samples and more after them, which are to be filled.

        Parameters
        ----------
        previous
            A complete version, begun with ``grows``; it stays readable, and shares its chunks.
        template, fingerprint, attrs
            As in `begin`.

        Raises
        ------
        StoreError
            Where the template has fewer samples, or other variables, dims or dtypes.
        """
        group = previous.group
        self._check_names(group, fingerprint)
        with self.writing() as session:
            found = self._begun(group, fingerprint)
            if found is not None:
                found.check_template(template)
                return found
            head = self._at_head(group)
            if head is not None and head.record == previous.record:
                self.tag_finished(head)
            else:
                self._clear(session, group)
                copy_group(self.repo.readonly_session(snapshot_id=previous.snapshot), session, group)
            record = replace(grow_group(session, previous, template, attrs), fingerprint=fingerprint)
            write_record(session, group, record)
            metadata = commit_metadata(group, record, previous.record.n, 0, attrs)
            snapshot = self.commit(session, f"{group}: {record.n - previous.record.n} new samples", metadata)
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
            content = schema.content_digest(session.store, group, record)
            record = record.completed(content, read_attrs(session, group)[1])
            known = self._complete(group, fingerprint)
            if known is not None and (known.digest, known.attrs) == (record.digest, read_attrs(session, group)[1]):
                return known
            write_record(session, group, record)
            snapshot = self.commit(session, f"{group}: whole", commit_metadata(group, record, 0, 0, attrs))
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

    def newest(self, group: str, lineage: str) -> Version | None:
        """The newest complete version of a group whose fingerprint begins so, with at least 16 characters."""
        head = self._at_head(group)
        if head is not None and head.complete and head.fingerprint.startswith(lineage):
            return self._complete(group, head.fingerprint)
        tagged = self._tagged_versions(group, lineage)
        return Version(self, group, tagged[-1]["snapshot"]) if tagged else None

    def versions(self) -> list[dict[str, Any]]:
        """All versions, oldest first.

        Returns
        -------
        list
            Mappings with ``group``, ``fingerprint``, ``snapshot``, ``tag`` (None for an unfinished version),
            ``complete``, ``done``, ``total``, ``failed`` (in samples; 0 for a group written whole), ``digest``,
            ``written_at`` (ISO 8601, UTC), ``author``, ``release`` and ``source`` (the source's digest; None where an
            earlier release has not recorded them), ``names`` (users' names of it) and ``withdrawn`` (by a rollback:
            readable, but not found by its fingerprint).

        Raises
        ------
        IntegrityError
            Where the repository's own files are damaged.
        """
        return self._entries()

    def _entries(self, damaged: list[str] | None = None) -> list[dict[str, Any]]:
        """The same; of tags whose snapshots are damaged, ``damaged`` gets a line each, where it is given."""
        with self.readable():
            tagged = list(self._tagged(self.repo.list_tags(), damaged))
            entries = [*tagged, *self._untagged(tagged)]
        ordered: list[dict[str, Any]] = [{**_BLANK, **entry, "names": []} for entry in entries]
        ordered.sort(key=lambda entry: (entry["written_at"], entry["group"]))
        newest = {(entry["group"], *_identity(entry)): entry for entry in ordered}
        for name, given in self.names().items():
            for group, identity in given["versions"].items():
                if (group, *identity) in newest:
                    newest[group, *identity]["names"].append(name)
        return ordered

    def names(self) -> dict[str, dict[str, Any]]:
        """What users have named: by name, ``versions`` (fingerprint and digest by group), ``author`` and time."""
        return dict(self._noted().get("names", {}))

    def events(self) -> list[dict[str, Any]]:
        """What was named, unnamed, rolled back and pruned, oldest first: ``event``, ``written_at``, ``author``, ..."""
        return list(self._noted().get("events", []))

    def _noted(self) -> dict[str, Any]:
        with self.readable():
            return dict(root_attrs(self.head()).get(HISTORY, {}))

    def resolve(self, text: str, group: str | None = None) -> list[dict[str, Any]]:
        """The versions that a user means; none where there is no such version.

        Parameters
        ----------
        text
            A name given by a user (which may mean one version of each of several groups), a version's id or the
            first characters of it, or its tag.
        group
            Versions of this group only.

        Returns
        -------
        list
            As of `versions`.

        Raises
        ------
        InputError
            Where ids of several versions begin so.
        """
        entries = [entry for entry in self.versions() if group in (None, entry["group"])]
        named = [entry for entry in entries if text in entry["names"]]
        exact = named or [entry for entry in entries if text in (entry["tag"], entry["snapshot"])]
        if exact or len(text) < _SHORTEST_ID:
            return exact
        begun = [entry for entry in entries if entry["snapshot"].startswith(text)]
        if len({entry["snapshot"] for entry in begun}) > 1:
            raise InputError(f'store {self.location}: several ids of versions begin with "{text}". Give more of it.')
        return begun

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
            What is damaged, in any version. What several versions share is read once.

        Raises
        ------
        StoreNotFoundError
            Where there is no such group.
        """
        fresh = type(self)(self.location, fresh=True)
        damaged: list[str] = []
        try:
            entries = [entry for entry in fresh._entries(damaged) if group in (None, entry["group"])]
        except IntegrityError as error:
            return [Problem(group or "", "", str(error))]
        if group is not None and not entries and not damaged:
            raise StoreNotFoundError(f"store {self.location} has no group {group}. Run the stage that makes it.")
        try:
            damaged += map(self._lost_tag, fresh.lost())
        except IntegrityError as error:
            damaged.append(str(error))
        versions = []
        for entry in reversed(entries):
            try:
                versions.append(Version(fresh, entry["group"], entry["snapshot"]))
            except IntegrityError as error:
                damaged.append(str(error))
        return [*(Problem(group or "", "", text) for text in damaged), *verify_versions(versions, progress)]

    def _lost_tag(self, entry: Mapping[str, Any]) -> str:
        tag, content = f"{entry['group']}-{entry['fingerprint'][:16]}", json.dumps({"snapshot": entry["snapshot"]})
        of = f"a version of group {entry['group']} is damaged or lost, so the version is not found"
        if format_of(self.repo) > 1:
            return f"store {self.location}: the tag {tag}-N of {of}. The next prune makes it again."
        return (
            f"store {self.location}: the file refs/tag.{tag}-N/ref.json of {of}. Bring it back: it holds {content}. "
            "The next prune makes it again, too."
        )

    def lost(self) -> list[dict[str, Any]]:
        """Versions that were finished, and neither pruned nor rolled back, and that no tag keeps any more.

        Raises
        ------
        IntegrityError
            Where the history cannot be read.
        """
        known = {(entry["group"], *_identity(entry)) for entry in self._entries([])}
        pruned = {each["snapshot"] for event in self.events() for each in event.get("removed", ())}
        found: dict[tuple[str, ...], dict[str, Any]] = {}
        for info in self._history():
            made = info.metadata
            if made.get("complete") and str(info.id) not in pruned:
                identity = (made["group"], *_identity(made))
                if identity not in known:
                    found.setdefault(identity, {**made, "snapshot": str(info.id)})
        return list(found.values())

    def _history(self) -> Iterator[icechunk.SnapshotInfo]:
        """The commits, newest first."""
        parent: str | None = self.repo.lookup_branch(BRANCH)
        try:
            for info in self.repo.ancestry(branch=BRANCH):
                yield info
                parent = info.parent_id
        except METADATA_DAMAGE as error:
            raise IntegrityError(
                f"store {self.location}: snapshots/{parent}, a commit of the past, is damaged or lost "
                f"({reason(error)}). What is stored can be read without it, but not pruned. Bring it back, or begin "
                "anew in another root before the disk is full."
            ) from error

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
        newest = self.current()
        sources = {group: self.repo.readonly_session(snapshot_id=snapshot) for group, snapshot in newest.items()}
        attrs = {key: value for key, value in root_attrs(self.head()).items() if key != HISTORY}
        export_groups(sources, Path(destination), under, attrs)

    def current(self) -> dict[str, str]:
        """The snapshot of the newest complete version of each group."""
        entries = [entry for entry in self.versions() if entry["complete"] and not entry["withdrawn"]]
        return {str(entry["group"]): str(entry["snapshot"]) for entry in entries}

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
        """Entries of the tagged versions of a group, oldest first, whose fingerprint is so or begins so."""
        prefix = f"{group}-" if fingerprint is None else f"{group}-{fingerprint[:16]}-"
        with self.readable():
            tags = [tag for tag in self.repo.list_tags() if tag.startswith(prefix)]
            entries = [e for e in self._tagged(tags) if e["fingerprint"].startswith(fingerprint or "")]
        return sorted(entries, key=lambda entry: str(entry["written_at"]))

    def _at_head(self, group: str) -> Version | None:
        with self.readable():
            session = self.head()
            known = group in group_names(session)
        return Version(self, group, session.snapshot_id) if known else None

    def _tagged(self, tags: Iterable[str], damaged: list[str] | None = None) -> Iterator[dict[str, Any]]:
        for tag in tags:
            snapshot = self.repo.lookup_tag(tag)
            try:
                info = self._tag_info(tag, snapshot)
            except IntegrityError as error:
                if damaged is None:
                    raise
                damaged.append(str(error))
                continue
            own, withdrawn = tag.removeprefix(WITHDRAWN), tag.startswith(WITHDRAWN)
            if info.metadata.get("complete") and own.startswith(f"{info.metadata['group']}-"):
                about = {"snapshot": snapshot, "tag": tag, "written_at": time_of(info), "withdrawn": withdrawn}
                yield {**info.metadata, **about}

    def _tag_info(self, tag: str, snapshot: str) -> icechunk.SnapshotInfo:
        try:
            return self.repo.lookup_snapshot(snapshot)
        except METADATA_DAMAGE as error:
            raise IntegrityError(
                f"store {self.location}: snapshots/{snapshot} of version {tag} is damaged or lost ({reason(error)}). "
                f"Bring it back, or go on without this version: move refs/tag.{tag} to another place."
            ) from error

    def _untagged(self, tagged: Iterable[Mapping[str, Any]]) -> Iterator[dict[str, Any]]:
        """What the head holds beyond the tagged versions: mostly one unfinished group."""
        known = {(entry["group"], *_identity(entry)) for entry in tagged if not entry["withdrawn"]}
        session = self.head()
        info = self.repo.lookup_snapshot(session.snapshot_id)
        signed = {key: info.metadata.get(key) for key in ("author", "release")}
        for group in group_names(session):
            version = Version(self, group, session.snapshot_id)
            if (group, version.fingerprint, version.digest) not in known:
                yield {**signed, **version.summary(), "tag": None, "written_at": time_of(info)}

    def _clear(self, session: icechunk.Session, group: str) -> None:
        """Make room for a new version of a group; what was made from the one that goes, goes too."""
        root = zarr.open_group(session.store, mode="a", zarr_format=3)
        going = [group, *_made_from(session, group)]
        for name in going:
            head = self._at_head(name)
            if head is not None and head.complete:
                self.tag_finished(head)
            if name in root:
                del root[name]

    def tag_finished(self, head: Version) -> None:
        """Tag a complete version whose process died before it did."""
        tagged = self._tagged_versions(head.group, head.fingerprint)
        if (head.fingerprint, head.digest) not in map(_identity, tagged):
            self.tag(head.group, head.fingerprint, self._finished_in(head))

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


def _made_from(session: icechunk.Session, group: str) -> list[str]:
    """The complete groups of a session that were made from some version of a group, directly or not.

    A group says so by an attribute: the name of the other one, and its snapshot.
    """
    attrs = {name: read_attrs(session, name) for name in group_names(session) if name != group}
    made = [group]
    for origin in made:  # which grows meanwhile
        made += [n for n, (record, a) in attrs.items() if n not in made and record["complete"] and _from(a, origin)]
    return made[1:]


def _from(attrs: Mapping[str, Any], group: str) -> bool:
    return isinstance(attrs.get(group), str)


def _identity(entry: Mapping[str, Any]) -> tuple[str, str]:
    return entry["fingerprint"], entry["digest"]


def _words(value: Any) -> str:
    return ", ".join(value) if isinstance(value, list) else f'"{value}"'


def time_of(info: icechunk.SnapshotInfo) -> str:
    """When a snapshot was written, in ISO 8601 and UTC."""
    return str(info.written_at.isoformat(timespec="microseconds"))
