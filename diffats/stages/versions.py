"""Versions of a recipe's groups: which it uses, their history, names, differences, rollback and prune."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from diffats import bundle
from diffats.config import Recipe, parse_recipe
from diffats.errors import DiffatsError, InputError, IntegrityError, StoreNotFoundError
from diffats.requirements import require
from diffats.stages import align, decompose, fit_normalisation, generate, select_anchor, train
from diffats.stages.workspace import Workspace
from diffats.store import Store, Version, writer_lock
from diffats.store import history as changing
from diffats.store.difference import Difference, difference
from diffats.store.history import Entry, Pruned, Reason, RolledBack

log = logging.getLogger("diffats.versions")


@dataclass(frozen=True)
class Compared:
    """Two versions and in what the second differs from the first."""

    a: Entry
    b: Entry
    difference: Difference


def present(work: Workspace) -> dict[str, Version]:
    """The version of each group that a run of the recipe would find now, finished or not.

    Raises
    ------
    InputError
        Where the source cannot be opened: its digest is part of what versions are found by.
    """
    if not work.repositories():
        return {}
    tucker = decompose.tucker_version(work)
    scaling = None if tucker is None else Version(work.store, "scaling", tucker.attrs["scaling"])
    anchor = select_anchor.anchor_version(work, tucker) if tucker is not None and tucker.complete else None
    found = {
        "scaling": scaling,
        "tucker": tucker,
        "anchor": anchor,
        "primitives": align.primitives_version(work),
        "normalisation": fit_normalisation.normalisation_version(work),
        "samples": _samples(work),
    }
    return {group: version for group, version in found.items() if version is not None}


def _samples(work: Workspace) -> Version | None:
    path = train.find_bundle(work)
    if path is None or work.samples_location not in [store.location for store in work.repositories()]:
        return None
    return generate.samples_version(work, bundle.load(path, device="cpu"))


def entries(work: Workspace) -> list[dict[str, Any]]:
    """All versions, as of `Store.versions`, each with ``used``: whether the recipe uses it as it is now."""
    listed = [entry for store in work.repositories() for entry in store.versions()]
    try:
        used = {(group, version.snapshot) for group, version in present(work).items()}
    except DiffatsError as error:
        log.warning("which versions this recipe uses is not known: %s", error)
        used = set()
    return [{**entry, "used": (entry["group"], entry["snapshot"]) in used} for entry in listed]


def history(work: Workspace) -> list[dict[str, Any]]:
    """Versions (``event`` "version"), and what was named, rolled back and pruned, by time."""
    rows = [{"event": "version", **entry} for entry in entries(work)]
    rows += [{**event, "store": store.location} for store in work.repositories() for event in store.events()]
    return sorted(rows, key=lambda row: str(row["written_at"]))


def resolve(work: Workspace, text: str, group: str | None = None) -> list[tuple[Store, dict[str, Any]]]:
    """The versions that a user means by a name, a version's id or its first characters, or its tag.

    Raises
    ------
    StoreNotFoundError
        Where there is no such version.
    """
    found = [(store, entry) for store in work.repositories() for entry in store.resolve(text, group)]
    if not found:
        of = "" if group is None else f" of group {group}"
        raise StoreNotFoundError(
            f'{work.root}: no version{of} has the tag or id "{text}". See `diffats inspect RECIPE.toml --history`.'
        )
    return found


def tag(work: Workspace, name: str, version: str | None = None) -> list[dict[str, Any]]:
    """Name a version; without one, the recipe's present primitives, their statistics and what they were made from.

    Raises
    ------
    InputError
        Where the name cannot be one or means other versions already, or a version is unfinished.
    StoreNotFoundError
        Where there is no such version.
    """
    _require_store(work, "name")
    with writer_lock(work.root):
        chosen = _chain(work) if version is None else resolve(work, version)
        for store in dict.fromkeys(store for store, _ in chosen):
            changing.name_versions(store, name, [entry for owner, entry in chosen if owner is store])
    return [entry for _, entry in chosen]


def _chain(work: Workspace) -> list[tuple[Store, dict[str, Any]]]:
    """The present primitives, what they were made from and the normalisation fitted to them."""
    primitives = fit_normalisation.require_primitives(work)
    store, listed = work.store, work.store.versions()
    normalisation = fit_normalisation.normalisation_version(work)
    queue = [version for version in (primitives, normalisation) if version is not None]
    for version in queue:  # which grows meanwhile
        known = {(v.group, v.snapshot) for v in queue}
        made_from = [entry for entry in changing.origins(version, listed) if _place(entry) not in known]
        queue += [Version(store, entry["group"], entry["snapshot"]) for entry in made_from]
    wanted = {(version.group, version.snapshot) for version in queue}
    return [(store, entry) for entry in listed if _place(entry) in wanted]


def _place(entry: Entry) -> tuple[str, str]:
    return entry["group"], entry["snapshot"]


def untag(work: Workspace, name: str) -> None:
    """Delete a name; its versions stay until they are pruned.

    Raises
    ------
    StoreNotFoundError
        Where there is no such name.
    """
    _require_store(work, "name")
    with writer_lock(work.root):
        deleted = [changing.delete_name(store, name) for store in work.repositories()]
        if True not in deleted:
            raise StoreNotFoundError(f'{work.root}: no version has the tag "{name}".')


def compare(work: Workspace, a: str, b: str, group: str | None = None) -> Compared:
    """Compare two versions of a group.

    Parameters
    ----------
    a, b
        As for :func:`resolve`.
    group
        Which one, where both mean versions of several; the primitives where left out.

    Raises
    ------
    InputError
        Where they are not of one group.
    """
    sides = [{entry["group"]: (store, entry) for store, entry in resolve(work, text, group)} for text in (a, b)]
    groups = [name for name in sides[0] if name in sides[1]]
    if not groups:
        words = [" and ".join(side) for side in sides]
        raise InputError(f'"{a}" is of group {words[0]}, "{b}" of group {words[1]}. Give two versions of one group.')
    if len(groups) > 1 and "primitives" not in groups:
        raise InputError(f'"{a}" and "{b}" are of several groups. Choose one with --group: {", ".join(groups)}.')
    chosen = groups[0] if len(groups) == 1 else "primitives"
    (store, one), (other, two) = (side[chosen] for side in sides)
    first = Version(store, chosen, one["snapshot"])
    found = difference(first, Version(other, chosen, two["snapshot"]), identity(first))
    return Compared(one, two, found)


def identity(version: Version) -> tuple[str, ...]:
    """The coordinates that identify a sample: the source's along its dim of samples, and where windows begin."""
    try:
        recipe = parse_recipe(json.loads(version.attrs["recipe"]))
    except (KeyError, ValueError, DiffatsError):  # a recipe of another release
        return ()
    known = version.dataset(indexes=False).coords
    wanted = [[f"{dim}_origin", f"{dim}_start"] for dim in recipe.data.windows.size]
    wanted += [[f"source_{dim}", dim] for dim in _sample_dim(recipe) if dim != "sample"]
    found = [next((name for name in names if name in known), None) for names in wanted]
    return tuple(name for name in found if name is not None) if None not in found else ()


def _sample_dim(recipe: Recipe) -> list[str]:
    return [recipe.data.sample_dim] if recipe.data.sample_dim else []


def rollback(work: Workspace, version: str, *, dry_run: bool = False) -> list[RolledBack]:
    """Withdraw what was committed to a store after a version, so that the next run begins from it.

    Of a tag that names versions of several groups, the newest counts. Versions that models were made from stay
    readable, as those that have a tag.

    Raises
    ------
    StoreNotFoundError
        Where there is no such version.
    InputError
        Where it is unfinished or withdrawn.
    """
    _require_store(work, "roll back")
    with writer_lock(work.root):
        newest = {store.location: (store, entry) for store, entry in resolve(work, version)}
        keep = _models(work)
        return [changing.rollback(store, entry, keep, dry_run=dry_run) for store, entry in newest.values()]


def prune(work: Workspace, keep: int, *, grace: timedelta = timedelta(hours=24), dry_run: bool = False) -> list[Pruned]:
    """Free what no version needs that is to stay, in all of the recipe's repositories.

    The newest ``keep`` versions of each group stay, those that this recipe uses as it is now, those that have a tag,
    those that a registered model, or one under this root, was made from, and what these were made from. Models under
    other roots that share the store are not known; a warning says so.

    Parameters
    ----------
    keep
        At least 1.
    grace
        On object storage, what was written in this time stays, since another machine may be writing it.
    dry_run
        Only say what would be done.

    Raises
    ------
    InputError
        Where ``keep`` is less than 1, or the source cannot be opened.
    TrackingError
        Where MLflow, which knows the registered models, cannot be reached.
    """
    _require_store(work, "prune")
    if work.recipe.store:
        log.warning(
            "store %s may serve other roots, whose models are not known here. What they were made from stays if it has "
            "a tag, or they are registered in this recipe's MLflow; --dry-run says what would go",
            work.recipe.store,
        )
    with writer_lock(work.root):
        used = {(group, version.snapshot) for group, version in present(work).items()}
        models = _models(work)

        def why(entry: Entry) -> str | None:
            return "this recipe uses it" if _place(entry) in used else models(entry)

        return [changing.prune(store, keep, why, grace=grace, dry_run=dry_run) for store in work.repositories()]


def _require_store(work: Workspace, what: str) -> None:
    if not work.repositories():
        raise StoreNotFoundError(f"{work.root}: there is nothing to {what}. Run `diffats decompose RECIPE.toml` first.")


def _models(work: Workspace) -> Reason:
    """Whether a model was made from a version: primitives with its digest, or the statistics that go with them."""
    digests = {**dict.fromkeys(_registered(work), "a registered model"), **dict.fromkeys(_bundles(work), "a model")}

    def reason(entry: Entry) -> str | None:
        """Why primitives stay; the registry tells the first digits of their digests."""
        return next((told for known, told in digests.items() if entry["digest"].startswith(known)), None)

    why, sources = {}, {}
    listed = [(store, entry) for store in work.repositories() for entry in store.versions()]
    for store, entry in listed:
        if entry["group"] == "primitives" and (told := reason(entry)) is not None:
            why[_place(entry)] = told
            sources[Version(store, "primitives", entry["snapshot"])] = told
    for store, entry in listed:
        if entry["group"] == "normalisation":
            coordinates = Version(store, "normalisation", entry["snapshot"]).attrs.get("coordinates", {})
            for primitives, told in sources.items():
                if fit_normalisation.fingerprint_with(coordinates, primitives) == entry["fingerprint"]:
                    why[_place(entry)] = told
    return lambda entry: f"{why[_place(entry)]} was made from it" if _place(entry) in why else None


def _bundles(work: Workspace) -> Iterable[str]:
    """Digests of the primitives that the models under the root were trained on."""
    for path in sorted(work.root.glob("bundles/[!.]*/bundle.json")):
        try:
            yield str(json.loads(path.read_text(encoding="utf-8"))["provenance"]["primitives_digest"])
        except (OSError, ValueError, KeyError) as error:
            raise IntegrityError(
                f"{path}: cannot be read, so which data the model was made from is not known ({error}). Copy the "
                "bundle's directory again, or move it to another place."
            ) from error


def _registered(work: Workspace) -> set[str]:
    require("finding out which data registered models were made from", "track")
    from diffats import registry

    return registry.data_digests(work.recipe.name, registry.tracking_uri(work.recipe))
