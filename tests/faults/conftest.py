"""What the fault tests share: the forking process, and one unbroken run to compare with."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from commands import VERBS, Unbroken, Zygote, before, run_unbroken, write

from diffats.config import Recipe


@pytest.fixture(scope="session")
def zygote() -> Iterator[Zygote]:
    started = Zygote()
    yield started
    started.close()


@pytest.fixture(scope="session")
def unbroken(zygote: Zygote, tmp_path_factory: pytest.TempPathFactory) -> Unbroken:
    """All verbs, for the faults that take minutes."""
    return run_unbroken(zygote, tmp_path_factory.mktemp("unbroken"), VERBS)


@pytest.fixture(scope="session")
def brief(zygote: Zygote, tmp_path_factory: pytest.TempPathFactory) -> Unbroken:
    """As far as samples are generated, for those of every ``make test``."""
    return run_unbroken(zygote, tmp_path_factory.mktemp("brief"), VERBS[: VERBS.index("generate") + 1])


@pytest.fixture
def ready(unbroken: Unbroken, tmp_path: Path) -> Callable[[str], tuple[Recipe, Path]]:
    """A recipe whose next verb is the given one, and its file."""

    def made(verb: str) -> tuple[Recipe, Path]:
        recipe = unbroken.after(before(verb), tmp_path)
        return recipe, write(recipe, tmp_path / "recipe.toml")

    return made
