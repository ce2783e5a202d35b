"""What changes a store's history: names of versions, rollback, prune."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import icechunk
import zarr

from diffats.errors import InputError, StoreError
from diffats.icechunk_releases import reason
from diffats.store.location import forget, local_path, open_repository
from diffats.store.lock import store_lock
from diffats.store.repository import BRANCH, HISTORY, group_names, read_attrs, root_attrs, signature
from diffats.store.store import WITHDRAWN, Store
from diffats.store.version import Version

Entry = Mapping[str, Any]
#: Why a version is to stay, or None.
Reason = Callable[[Entry], str | None]

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_ROLLBACK = "rollback"  # a branch, while one is under way
_EVENTS = 1000  # that are remembered
_EVER = datetime(9999, 1, 1, tzinfo=UTC)


@dataclass(frozen=True)
class Pruned:
    """What a prune did, or would do."""

    removed: tuple[Entry, ...]
    kept: tuple[tuple[Entry, str], ...]
    """Versions that stay, and why."""
    bytes: int
    """Freed; in a dry run, what no version needs already."""


@dataclass(frozen=True)
class RolledBack:
    """What a rollback did, or would do."""

    to: Entry
    withdrawn: tuple[Entry, ...]
    """Versions that are gone, to be freed by the next prune."""
    kept: tuple[tuple[Entry, str], ...]
    """Versions that stay readable though withdrawn, and why."""


def name_versions(store: Store, name: str, entries: Sequence[Entry]) -> None:
    """Name complete versions, at most one of each group, so that prune keeps them; nothing where they have the name.

    Raises
    ------
    InputError
        Where the name cannot be one or has another meaning, or a version is unfinished.
    """
    if not _NAME.fullmatch(name):
        raise InputError(
            f'"{name}" cannot name a version. Use at most 64 letters, digits, ".", "_" or "-", first a letter or digit.'
        )
    for entry in entries:
        if not entry["complete"]:
            raise InputError(f'group {entry["group"]} is unfinished and cannot be named "{name}". Finish it first.')
    wanted = {entry["group"]: [entry["fingerprint"], entry["digest"]] for entry in entries}
    known = store.names().get(name)
    if known is not None and known["versions"] == wanted:
        return
    if known is not None:
        raise InputError(
            f'store {store.location}: "{name}" names other versions already. Take another name, or delete it first: '
            f"diffats tag RECIPE {name} --delete."
        )
    _note(store, {"event": "tag", "name": name, "groups": sorted(wanted)}, lambda names: {**names, name: wanted})


def delete_name(store: Store, name: str) -> bool:
    """Delete a name; whether there was one. Its versions stay until they are pruned."""
    if name not in store.names():
        return False
    _note(store, {"event": "untag", "name": name}, lambda names: {n: v for n, v in names.items() if n != name})
    return True


def rollback(store: Store, to: Entry, keep: Reason, *, dry_run: bool = False) -> RolledBack:
    """Take a store back to how it was when a version was committed.

    Of what was committed later, unfinished versions are lost, and finished ones are not found any more. Those that a
    user has named, or that must be kept for another reason, stay readable by name and id until they may be pruned. A
    call that was interrupted is completed by the same call.

    Parameters
    ----------
    store
        Where.
    to
        A complete version, as of `Store.versions`.
    keep
        Why a later version is to stay readable.
    dry_run
        Only say what would be done.

    Raises
    ------
    InputError
        Where that version is unfinished or itself withdrawn.
    """
    if not to["complete"] or to["withdrawn"] or to["tag"] is None:
        state = "withdrawn" if to["withdrawn"] else "unfinished"
        raise InputError(f"version {to['snapshot']} of group {to['group']} is {state}. Roll back to a finished one.")
    with store_lock(store.location):
        if not dry_run:
            _tag_finished(store)
        later = [e for e in store.versions() if e["written_at"] > to["written_at"] and not e["withdrawn"]]
        later = [e for e in later if e["complete"] or not _there(store, e, to)]
        why = [(entry, (_named(entry) or keep(entry)) if entry["complete"] else None) for entry in later]
        made = RolledBack(
            to, tuple(e for e, reason in why if not reason), tuple((e, reason) for e, reason in why if reason)
        )
        if later and not dry_run:
            for entry, _ in made.kept:
                _retag(store, WITHDRAWN + entry["tag"], entry)
            _reset(store, to, made)
            for entry in later:
                if entry["tag"] is not None:
                    store.repo.delete_tag(entry["tag"])
    return made


def prune(store: Store, keep: int, why: Reason, *, grace: timedelta = timedelta(0), dry_run: bool = False) -> Pruned:
    """Free what no version needs that is to stay.

    The newest complete versions of each group stay, and those that have a name or another reason, and whatever these
    were made from. Unfinished versions stay at the head. Icechunk then expires all other snapshots and collects what
    no snapshot refers to. A call that was interrupted is completed by the same call.

    Parameters
    ----------
    store
        Where.
    keep
        How many versions of each group, at least 1.
    why
        Why an older version is to stay.
    grace
        What was written in this time stays on object storage: no lock tells whether another machine is writing it.
    dry_run
        Only say what would be done.

    Raises
    ------
    InputError
        Where ``keep`` is less than 1.
    StoreError
        Where the storage fails.
    """
    if keep < 1:
        raise InputError(f"prune cannot keep {keep} versions. Keep at least 1.")
    with store_lock(store.location):
        lost = store.lost()  # which would go with what no version needs
        if not dry_run:
            for entry in lost:
                store.tag(entry["group"], entry["fingerprint"], entry["snapshot"])
            _tag_finished(store)
        complete = [entry for entry in store.versions() if entry["complete"]]
        kept = _kept(store, complete, keep, why)
        removed = [entry for entry in complete if entry["snapshot"] not in kept and entry["tag"] is not None]
        if removed and not dry_run:
            _note(store, {"event": "prune", "keep": keep, "removed": [_short(entry) for entry in removed]})
            for entry in removed:
                store.repo.delete_tag(entry["tag"])
        freed = _collect(store, grace, dry_run=dry_run)
    stay = [(entry, kept[entry["snapshot"]]) for entry in complete if entry["snapshot"] in kept]
    return Pruned(tuple(removed), tuple(stay), freed)


def _kept(store: Store, complete: Sequence[Entry], keep: int, why: Reason) -> dict[str, str]:
    """Snapshots of versions that stay, and the reason for each."""
    newest: dict[str, int] = {}
    kept: dict[str, str] = {}
    for entry in reversed(complete):
        rank = newest[entry["group"]] = newest.get(entry["group"], 0) + (not entry["withdrawn"])
        found = "newest" if rank <= keep and not entry["withdrawn"] else _named(entry) or why(entry)
        if found:
            kept[entry["snapshot"]] = found
    by_snapshot = {entry["snapshot"]: entry for entry in complete}
    queue = [by_snapshot[snapshot] for snapshot in kept] + [e for e in store.versions() if not e["complete"]]
    for entry in queue:  # which grows meanwhile
        for origin in origins(Version(store, entry["group"], entry["snapshot"]), complete):
            if origin["snapshot"] not in kept:
                kept[origin["snapshot"]] = f"{entry['group']} is made from it"
                queue.append(origin)
    return kept


def origins(version: Version, entries: Iterable[Entry]) -> list[Entry]:
    """Of some versions, those that a version was made from: it holds their snapshots as attributes of their names."""
    return [entry for entry in entries if version.attrs.get(entry["group"]) == entry["snapshot"]]


def _named(entry: Entry) -> str | None:
    return f"tag {', '.join(entry['names'])}" if entry["names"] else None


def _short(entry: Entry) -> dict[str, Any]:
    return {key: entry[key] for key in ("group", "snapshot")}


def _there(store: Store, entry: Entry, to: Entry) -> bool:
    """Whether an unfinished version was begun before another was committed, and so is there afterwards."""
    session = store.repo.readonly_session(snapshot_id=to["snapshot"])
    if entry["group"] not in group_names(session):
        return False
    then = Version(store, entry["group"], to["snapshot"])
    return then.fingerprint == entry["fingerprint"] and not then.complete


def _note(
    store: Store, event: Mapping[str, Any], change: Callable[[dict[str, Any]], dict[str, Any]] = lambda names: names
) -> None:
    """Commit an event, and a change of the names."""
    with store.writing() as session:
        _write_note(session, root_attrs(session), event, change)
        store.commit(session, _message(event), dict(event))


def _message(event: Mapping[str, Any]) -> str:
    return f"{event['event']} {event.get('name', '')}".strip()


def _write_note(
    session: icechunk.Session,
    attrs: Mapping[str, Any],
    event: Mapping[str, Any],
    change: Callable[[dict[str, Any]], dict[str, Any]] = lambda names: names,
) -> None:
    """Add an event to the history that ``attrs`` hold, and write it into a session."""
    history = attrs.get(HISTORY, {"names": {}, "events": []})
    signed = {"written_at": datetime.now(UTC).isoformat(timespec="microseconds"), **signature()}
    before = {name: known["versions"] for name, known in history["names"].items()}
    names = {
        name: history["names"][name] if before.get(name) == versions else {"versions": versions, **signed}
        for name, versions in change(before).items()
    }
    events = [*history["events"], {**event, **signed}][-_EVENTS:]
    root = zarr.open_group(session.store, mode="a", zarr_format=3)
    root.attrs.update({**attrs, HISTORY: {"names": names, "events": events}})


def _tag_finished(store: Store) -> None:
    """Tag what is complete at the head and has no tag: its process died before, and its commit may go now."""
    for entry in store.versions():
        if entry["complete"] and entry["tag"] is None:
            store.tag_finished(Version(store, entry["group"], entry["snapshot"]))


def _drop_pruned(store: Store, session: icechunk.Session) -> None:
    """Leave out the complete versions of an old snapshot that no tag keeps any more."""
    known = {(entry["group"], entry["fingerprint"], entry["digest"]) for entry in store.versions() if entry["tag"]}
    root = zarr.open_group(session.store, mode="a", zarr_format=3)
    for group in group_names(session):
        record, _ = read_attrs(session, group)
        if record["complete"] and (group, record["fingerprint"], record["digest"]) not in known:
            del root[group]


def _retag(store: Store, tag: str, entry: Entry) -> None:
    if tag not in store.repo.list_tags():
        store.repo.create_tag(tag, entry["snapshot"])


def _reset(store: Store, to: Entry, made: RolledBack) -> None:
    """Move the branch, in one step, to a commit on top of a version's snapshot; it carries the history on."""
    repo = store.repo
    head = repo.lookup_branch(BRANCH)
    if repo.lookup_snapshot(head).metadata.get("to") == to["snapshot"]:
        return  # an interrupted rollback had come so far
    if _ROLLBACK in repo.list_branches():
        repo.delete_branch(_ROLLBACK)
    repo.create_branch(_ROLLBACK, to["snapshot"])
    session = repo.writable_session(_ROLLBACK)
    _drop_pruned(store, session)
    event = {
        "event": "rollback",
        "to": to["snapshot"],
        "withdrawn": [_short(entry) for entry in made.withdrawn],
        "kept": [_short(entry) for entry, _ in made.kept],
    }
    _write_note(session, root_attrs(store.head()), event)
    snapshot = store.commit(session, _message(event), event)
    try:
        repo.reset_branch(BRANCH, snapshot, from_snapshot_id=head)
    except icechunk.IcechunkError as error:
        raise StoreError(
            f"store {store.location}: another process committed at the same time ({reason(error)}). Let one process "
            "write at a time, and run the command again."
        ) from error
    finally:
        repo.delete_branch(_ROLLBACK)


def _collect(store: Store, grace: timedelta, *, dry_run: bool) -> int:
    """Expire all snapshots but those of tags and of the head, and remove what none refers to; the bytes freed."""
    # Under its lock, nothing in a local repository is being written, whatever the clock said when it was.
    bound = _EVER if local_path(store.location) is not None else datetime.now(UTC) - grace
    try:
        if not dry_run:
            if _ROLLBACK in store.repo.list_branches():
                store.repo.delete_branch(_ROLLBACK)
            store.repo.expire_snapshots(bound)
        freed = store.repo.garbage_collect(bound, dry_run=dry_run).bytes_deleted
    except icechunk.IcechunkError as error:
        raise StoreError(
            f"store {store.location}: cannot be pruned ({reason(error)}). What is to stay is there; run the command "
            "again."
        ) from error
    if not dry_run:
        forget()
        store.repo = open_repository(store.location)
    return int(freed)
