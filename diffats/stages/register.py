"""Stage 8: the model as a version in MLflow's registry; candidate always, champion where it is not worse."""

from __future__ import annotations

import json
import logging
import shutil
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from diffats import bundle, evaluation
from diffats.digests import json_digest
from diffats.disk import replace_text
from diffats.errors import InputError, redact
from diffats.stages import evaluate, generate, train
from diffats.stages.workspace import Hooks, StageResult, Workspace

if TYPE_CHECKING:
    from diffats.registry import Tracker

log = logging.getLogger("diffats.register")
_WHOSE = {"gaussian": "the Gaussian's", "persistence": "persistence's", "training_mean": "the training mean's"}
# Of a model that is registered already; a version that samples in another way is asked for.
SAMPLED_OTHERWISE = (
    "no new version: only generate.* differs from version {}. `diffats register RECIPE.toml --restart` makes one that "
    "samples so"
)
ANOTHER_EVALUATION = (
    "version {} was registered after another evaluation. `diffats register RECIPE.toml` judges by this one"
)
_MODEL = "model_recipe"  # digest of the recipe without generate.*; versions of earlier releases lack it
PUBLIC = ("name", "version", "alias", "uri")


def record_path(work: Workspace, model: bundle.Bundle) -> Path:
    """Where the outcome of registering this bundle is kept, so that the same command does not register it twice."""
    return work.root / "registered" / f"{model.directory.name}.json"


def run(work: Workspace, hooks: Hooks, parent_run: str | None) -> StageResult:
    """Register the bundle as candidate, compare it with the champion now, and move the alias where it holds."""
    from diffats import registry

    started = time.monotonic()
    model = train.ask_for_bundle(work)  # what is registered samples as the evaluated samples were made
    found = evaluate.read_evaluation(work)
    if found is None:
        raise InputError(f"{work.root}: the model is not evaluated. Run `diffats evaluate RECIPE.toml` first.")
    metrics, identity = found
    evaluate.check_metric(work, metrics)
    path = record_path(work, model)
    tracker = registry.Tracker.for_recipe(work.recipe)
    wanted = digests(work, model, identity)
    same = {name: value for name, value in wanted.items() if name != _MODEL}
    version = None if hooks.restart else tracker.find(work.recipe.name, same)
    recorded = read_record(path)
    if version is None and not hooks.restart and (known := sampled_otherwise(tracker, work, model)) is not None:
        told = outcome(work, tracker, known, SAMPLED_OTHERWISE.format(known), identity)
        log.info("%s", told["verdict"])
        if recorded is not None and identity not in recorded.get("sampled", []):
            write_record(path, recorded | {"sampled": [*recorded.get("sampled", []), identity]})
        return result(told, started, skipped=True)
    if version is not None and recorded is not None and _same_decision(recorded, identity, tracker.uri, version):
        return result(outcome(work, tracker, version, recorded["verdict"], identity), started, skipped=True)
    if version is None:
        version = register(work, tracker, model, parent_run, wanted)
    elif tracker.alias(work.recipe.name, "champion") != version:
        tracker.set_alias(work.recipe.name, "candidate", version)
    decision = decide(work, tracker, model, metrics, version)
    if decision.champion:
        tracker.set_alias(work.recipe.name, "champion", version)
    verdict = decision.verdict
    log.info("%s", verdict)
    describe(work, tracker, model, metrics, version, decision)
    write_record(path, {"key": [identity, _where(tracker.uri), version], "verdict": verdict})
    return result(outcome(work, tracker, version, verdict, identity), started)


def sampled_otherwise(tracker: Tracker, work: Workspace, model: bundle.Bundle) -> str | None:
    """The newest version with this model, from a recipe that differs in nothing but how samples are drawn."""
    return tracker.find(work.recipe.name, model_digests(work, model))


def register(
    work: Workspace, tracker: Tracker, model: bundle.Bundle, parent_run: str | None, wanted: dict[str, str]
) -> str:
    """A new version of the recipe's model, under the run that made it."""
    if parent_run is None:
        raise InputError("registering needs an MLflow run. Use `diffats register RECIPE.toml` or the flow.")
    return tracker.register(model.directory, work.recipe.name, parent_run, wanted)


def describe(
    work: Workspace,
    tracker: Tracker,
    model: bundle.Bundle,
    metrics: dict[str, Any],
    version: str,
    decision: Decision,
) -> None:
    """Say on the tracker's pages what this version is, why it is champion or not, and who is champion now."""
    from diffats.stages import descriptions, report

    name, metric = work.recipe.name, work.recipe.deciding_metric
    content, data = report.numbers(work, model, metrics, None), str(model.provenance["primitives_snapshot"])
    made = tracker.made_by(name, version)
    text = descriptions.model_description(content, model, data, made, decision.verdict)
    release = code_version()
    tracker.describe_version(name, version, text, descriptions.model_tags(content, data, decision.verdict, release))
    numbers = {"candidate": decision.candidate, "champion": decision.best}
    known = {f"{kind}/{metric}": value for kind, value in numbers.items() if value is not None}
    tracker.tell_champion(name, version, known)


def code_version() -> str:
    """The installed version of diffats, with the revision where it runs from a checkout: ``0.1.0+g1a2b3c4``."""
    from diffats import __version__

    checkout, git = Path(__file__).parents[2], shutil.which("git")
    if git is None or not (checkout / ".git").exists():
        return __version__
    command = [git, "-C", str(checkout), "describe", "--always", "--dirty", "--exclude=*"]
    revision = subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()
    return f"{__version__}+g{revision}" if revision else __version__


def read_record(path: Path) -> dict[str, Any] | None:
    """What was decided of this bundle, where it was."""
    if not path.is_file():
        return None
    record: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return record if "key" in record else None


def _where(uri: str) -> str:
    """A tracker as records name it: an SQLite file by its name alone, since roots move with theirs."""
    return f"sqlite:///{Path(uri).name}" if uri.startswith("sqlite:") else redact(uri)


def _same_decision(record: dict[str, Any], identity: str, uri: str, version: str) -> bool:
    """Whether a record, maybe of an earlier release, which had absolute paths, is of this version of this tracker."""
    judged, where, number = record["key"]
    return bool([judged, _where(where), number] == [identity, _where(uri), version])


def write_record(path: Path, record: dict[str, Any]) -> None:
    """Keep what was decided; it is there whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    replace_text(path, json.dumps(record, indent=1))


def outcome(work: Workspace, tracker: Tracker, version: str, verdict: str, identity: str) -> dict[str, Any]:
    """The registered version and the alias it has now: another model may have become champion since."""
    name = work.recipe.name
    alias = next((alias for alias in ("champion", "candidate") if tracker.alias(name, alias) == version), "")
    return {
        "name": name,
        "version": version,
        "alias": alias,
        "uri": f"models:/{name}@{alias}" if alias else f"models:/{name}/{version}",
        "verdict": verdict,
        "tracking_uri": redact(tracker.uri),
        "evaluation": identity,
    }


def digests(work: Workspace, model: bundle.Bundle, identity: str) -> dict[str, str]:
    """What links a model version to its data, anchors, recipe and evaluation, and tells it from any other."""
    return model_digests(work, model) | {
        "recipe_fingerprint": train.recipe_fingerprint(work),
        "evaluation": identity,
    }


def model_digests(work: Workspace, model: bundle.Bundle) -> dict[str, str]:
    """The part of them that does not depend on how samples are drawn."""
    provenance = model.provenance
    recipe = {section: options for section, options in work.portable.items() if section != "generate"}
    return {
        "data_version": str(provenance["primitives_snapshot"]),
        "data_digest": str(provenance["primitives_digest"]),
        "anchor": str(provenance["anchor_fingerprint"])[:16],
        "weights": train.weights_digest(model.directory),
        _MODEL: json_digest(recipe),
    }


@dataclass(frozen=True)
class Decision:
    """Whether a version becomes champion, why in a sentence, and what it and the present champion reached."""

    verdict: str
    champion: bool
    candidate: float | None = None
    other: float | None = None  # the champion's, on the same test samples

    @property
    def best(self) -> float | None:
        """What the champion reaches after the decision."""
        return self.candidate if self.champion else self.other


def decide(work: Workspace, tracker: Tracker, model: bundle.Bundle, metrics: dict[str, Any], version: str) -> Decision:
    """Whether the candidate becomes champion, and why.

    A first model must beat the references that its metric has: the Gaussian, or for forecasts the training mean and
    persistence. Later ones must not be worse than the champion, which is evaluated now, on the current test split with
    the candidate's seed and conditions.
    """
    name, recipe = work.recipe.deciding_metric, work.recipe
    row = metrics[name]
    new = evaluation.distance_from_ideal(row)
    assert new is not None  # check_metric
    current = tracker.alias(recipe.name, "champion")
    if current is None:
        return Decision(*first_verdict(evaluation.deciding_rows(metrics, name)), new)
    if current == version:
        return Decision("champion: the alias had been moved before an interruption", True, new)
    champion = bundle.load(tracker.download(f"models:/{recipe.name}@champion"), device=recipe.compute.device)
    difference = incomparable(champion, model)
    if difference is not None:
        verdict = f"not champion: it cannot be compared with the champion, which has other {difference}"
        return Decision(verdict, False, new)
    old = current_metric(work, champion, name, candidate=model)
    if old is None:
        verdict = f"champion: {evaluation.within(row['label'])} {new:.4g}; the champion's is not finite"
        return Decision(verdict, True, new)
    good = new <= old
    reason = f"{evaluation.within(row['label'])} {new:.4g} against the champion's {old:.4g} on the current test split"
    return Decision(f"{'' if good else 'not '}champion: {reason}", good, new, old)


def first_verdict(rows: Sequence[Mapping[str, Any]]) -> tuple[str, bool]:
    """The verdict on a model that has no predecessor: it must beat all references of all metrics that decide."""
    reasons, good = [], True
    for row in rows:
        words, beaten = [], []
        for key, word in evaluation.compared(row).items():
            beaten.append(bool(evaluation.beats(row, key)))
            known = {"better": "beats", "worse": "does not beat"}
            outcome = known.get(word, "is lower than" if beaten[-1] else "is not lower than")
            open_question = "" if word in known else f" ({word})"
            words.append(f"{outcome} {_WHOSE[key]} {evaluation.written(row, key)}{open_question}")
        own = evaluation.written(row, "value")
        reasons.append(f"{evaluation.within(row['label'])} {own} {' and '.join(words) or 'has no reference to beat'}")
        good &= bool(beaten) and all(beaten)
    return f"{'first' if good else 'not'} champion: {'; '.join(reasons)}", good


def incomparable(champion: bundle.Bundle, model: bundle.Bundle) -> str | None:
    """In what two models differ that must be equal to compare them; None where they can be compared."""
    described = [
        {
            "variables": [(str(name), v.attrs.get("units")) for name, v in each.template.data_vars.items()],
            "sample sizes": (each.layout.modes, dict(each.layout.sizes)),
            "conditions": {name: value.shape[1:] for name, value in each.examples.items()},
            "labels": each.label_names,
        }
        for each in (champion, model)
    ]
    return next((key for key in described[0] if described[0][key] != described[1][key]), None)


def current_metric(work: Workspace, model: bundle.Bundle, name: str, *, candidate: bundle.Bundle) -> float | None:
    """Distance from the ideal of a model's metric on the current test split; None where it is not finite.

    Labels are drawn as they were for the ``candidate``: the model's own training samples may have had other shares.
    """
    count = work.recipe.generate.count
    numbers, chosen = np.arange(count), generate.condition_sources(work, count)
    parts, kept = [], []
    for indices in np.array_split(numbers, -(-count // generate.shard_size(work, model))):
        raw = generate.sample_conditions(work, candidate, indices, chosen)
        streams = model.generate(indices, work.recipe.seed, raw)
        good, imposed = bundle.finite_rows(streams), model.to_impose(raw)
        finite, given = ({key: value[good] for key, value in each.items()} for each in (streams, raw))
        parts.append(model.fields(finite, given, None if imposed is None else imposed[good]))
        kept.append(indices[good])
        if sum(map(len, parts)) >= evaluate.sample_limit(work, model):
            break
    strata = evaluate.drawn_strata(work, candidate, np.concatenate(kept), chosen)
    fields = evaluate.physical(work, model, np.concatenate(parts), strata)
    if name in ("relative_l2", "crps"):
        fields = replace(fields, **evaluate.forecasts(work, model))
    return evaluation.distance_from_ideal(evaluation.evaluate(fields)[name])


def result(outcome: dict[str, Any], started: float, *, skipped: bool = False) -> StageResult:
    """What the summary shows of a registration."""
    state = f"is {outcome['alias']}" if outcome["alias"] else "has no alias any more"
    return StageResult(
        stage="register",
        fingerprint=outcome["evaluation"],
        version=str(outcome["version"]),
        location=outcome["uri"],
        skipped=skipped,
        seconds=time.monotonic() - started,
        facts={"model": outcome, "tracking_uri": outcome["tracking_uri"]},
        summary=f"{outcome['name']} version {outcome['version']} {state}; {outcome['verdict']}",
    )
