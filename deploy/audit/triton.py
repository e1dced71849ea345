"""The releases of Triton that are pinned: how old they are, and what is known against them. Reads files alone."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import date, timedelta
from pathlib import Path

from deploy.audit.findings import Finding

ADVISORIES = Path(__file__).with_name("triton.toml")
IMAGE = Path(__file__).parents[1] / "triton" / "image.toml"
LONGEST = timedelta(days=183)  # a release comes every month, and fixes with it
WHEELS = {"0.7.0": "24.10"}  # nvidia-pytriton: the release whose server is in it
WHEEL = "nvidia-pytriton"
_TAG = re.compile(r":(\d\d)\.(\d\d)-")


@dataclass(frozen=True, slots=True)
class Release:
    """A release of Triton, as its month."""

    year: int
    month: int

    @classmethod
    def of(cls, text: str) -> Release:
        year, _, month = text.partition(".")
        return cls(2000 + int(year), int(month))

    @property
    def came(self) -> date:
        """The last day of its month: releases come late in it."""
        after = date(self.year + self.month // 12, self.month % 12 + 1, 1)
        return after - timedelta(days=1)

    def __lt__(self, other: Release) -> bool:
        return self.came < other.came


@dataclass(frozen=True, slots=True)
class Advisory:
    """What is known against releases before `fixed_in`."""

    ids: tuple[str, ...]
    says: str
    fixed_in: Release


def read_advisories(text: str) -> tuple[Advisory, ...]:
    entries = tomllib.loads(text)["advisory"]
    return tuple(Advisory(tuple(a["ids"]), a["says"], Release.of(a["fixed_in"])) for a in entries)


def pinned(image: str, wheel: str | None) -> Iterator[tuple[str, Release | None]]:
    """Yield what is pinned, and its release; None: it does not say which."""
    found = _TAG.search(image)
    yield image, Release.of(f"{found[1]}.{found[2]}") if found else None
    if wheel is not None:
        release = WHEELS.get(wheel)
        yield f"{WHEEL}=={wheel}", None if release is None else Release.of(release)


def against(
    where: str, release: Release | None, advisories: Sequence[Advisory], today: date
) -> list[Finding]:
    """Return what is held against one pin."""
    if release is None:
        return [
            Finding(("unknown-release",), where, "which release of Triton it is cannot be read")
        ]
    found = [
        Finding(each.ids, where, f"{each.says}; fixed in {each.fixed_in.came:%y.%m}")
        for each in advisories
        if release < each.fixed_in
    ]
    if today - release.came > LONGEST:
        says = f"of {release.came:%Y-%m}, more than half a year ago; take a newer release"
        found.append(Finding(("old-pin",), where, says))
    return found


def findings(pins: dict[str, str], today: date) -> list[Finding]:
    """Return what is held against the image and the wheel; `pins`: of constraints.txt."""
    advisories = read_advisories(ADVISORIES.read_text())
    image = tomllib.loads(IMAGE.read_text())["image"]
    return [
        finding
        for where, release in pinned(image, pins.get(WHEEL))
        for finding in against(where, release, advisories, today)
    ]
