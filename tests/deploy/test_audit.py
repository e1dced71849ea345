"""`make audit` and `make scan`: what counts as a finding, what as an explanation, and when nothing was asked at all."""

from __future__ import annotations

import json
from datetime import date
from pathlib import Path
from zipfile import ZipFile, ZipInfo

import pytest

from deploy.audit import manifests, packages, triton
from deploy.audit.advisories import MEMBER, read_wheel
from deploy.audit.findings import Finding, read_explanations, unexplained
from deploy.audit.report import conclude
from tests.deploy.rendering import KUBERNETES, KUSTOMIZATIONS
from tests.fakes import ROOT

TODAY = date(2026, 11, 25)
OLD = Finding(("GHSA-1", "CVE-1"), "requests==2.5.0", "leaks")
TEXT = """
[[explained]]
what = "CVE-1"
where = "requests==2.*"
reason = "the part is not used"
until = 2026-12-31
"""


def report(**vulnerable: str) -> dict[str, object]:
    """Return a report of pip-audit: of two packages, one could be looked up."""
    known = {"id": "PYSEC-1", "aliases": ["CVE-1"], "fix_versions": ["2.6.0"]}
    looked_up = [{"name": n, "version": v, "vulns": [known]} for n, v in vulnerable.items()]
    return {"dependencies": [*looked_up, {"name": "own", "skip_reason": "not on PyPI"}]}


def test_a_finding_is_explained_by_any_of_its_names_until_a_day() -> None:
    """Sources name an advisory differently, and a reason of today may not hold for good."""
    explanations = read_explanations(TEXT)
    assert unexplained([OLD], explanations, TODAY) == []
    assert unexplained([OLD], explanations, date(2027, 1, 1)) == [OLD]
    newer = Finding(OLD.names, "requests==3.0.0", OLD.says)
    assert unexplained([newer], explanations, TODAY) == [newer]


@pytest.mark.parametrize(
    "wrong",
    [
        TEXT.replace("the part is not used", " "),
        TEXT.replace("until = 2026-12-31", ""),
        TEXT.replace("until = 2026-12-31", 'until = "some day"'),
        TEXT + 'who = "me"',
    ],
)
def test_an_explanation_says_why_and_until_when(wrong: str) -> None:
    """Else it would be a way to look away."""
    with pytest.raises(ValueError, match="what, where, reason and until"):
        read_explanations(wrong)


@pytest.mark.parametrize("path", [packages.EXPLAINED, manifests.EXPLAINED])
def test_the_explanations_of_this_project_can_be_read(path: Path) -> None:
    read_explanations(path.read_text())


def test_what_is_not_explained_ends_an_audit_with_1(tmp_path: Path) -> None:
    """A pipeline looks at nothing else."""
    explained = tmp_path / "explained.toml"
    explained.write_text("")
    assert conclude([], explained) == 0
    assert conclude([OLD], explained) == 1
    explained.write_text(TEXT.replace("2026-12-31", "9999-12-31"))
    assert conclude([OLD], explained) == 0


def test_a_report_in_which_nothing_was_looked_up_is_none() -> None:
    """pip-audit says `No known vulnerabilities found` of packages that it could not look up."""
    assert packages.from_advisories({}) is None
    assert packages.from_advisories(report()) is None


def test_a_package_that_alone_could_not_be_looked_up_is_a_finding() -> None:
    """Nothing known is not the same as nothing there."""
    assert packages.from_advisories(report(requests="2.5.0")) == [
        Finding(("not-audited",), "own", "not on PyPI"),
        Finding(("PYSEC-1", "CVE-1"), "requests==2.5.0", "fixed in 2.6.0"),
    ]


def test_every_pin_is_read() -> None:
    """What is not read is not audited."""
    pins = packages.read_pins((ROOT / "constraints.txt").read_text())
    assert packages.read_pins("# why\nRuamel.YAML==0.1  # see\n\n") == {"ruamel-yaml": "0.1"}
    assert len(pins) > 100
    assert pins["fastapi"]


def test_the_copy_knows_the_versions_that_it_names_and_its_age(tmp_path: Path) -> None:
    """It stands in for the service where that cannot be reached, and is never newer than it says."""
    known = {"id": "GHSA-1", "cve": "CVE-1", "advisory": "leaks", "v": ">=2.0,<2.6"}
    wheel = tmp_path / "copy.whl"
    with ZipFile(wheel, "w") as archive:
        archive.writestr(ZipInfo(MEMBER, (2026, 7, 7, 0, 0, 0)), json.dumps({"Requests": [known]}))
    copy = read_wheel(wheel)
    assert copy.until == date(2026, 7, 7)
    assert copy.against({"requests": "2.5.0", "fastapi": "1.0"}) == [OLD]
    assert copy.against({"requests": "2.6.0"}) == []
    assert copy.about({"requests": "2.6.0", "fastapi": "1.0"}).keys() == {"requests"}


def test_versions_that_were_taken_back_are_findings() -> None:
    """Authors yank a release when it does harm."""
    installs = [
        {"metadata": {"name": name, "version": "1.0"}, "is_yanked": bad}
        for name, bad in (("good", False), ("Bad.One", True))
    ]
    findings = packages.yanked({"install": installs})
    assert [finding.where for finding in findings] == ["bad-one==1.0"]


def test_every_kustomization_is_scanned() -> None:
    """The tests' list and the scan's are one."""
    found = manifests.kustomizations(KUBERNETES)
    assert {str(path.relative_to(KUBERNETES)) for path in found} == set(KUSTOMIZATIONS)


def test_a_failed_check_and_an_unread_file_are_findings() -> None:
    """A manifest that the scanner cannot read passes every check."""
    failed = {
        "check_id": "CKV_1",
        "check_name": "be careful",
        "file_path": "/cpu.yaml",
        "resource": "StatefulSet.bertier.triton",
    }
    report = {
        "check_type": "kubernetes",
        "results": {"failed_checks": [failed]},
        "summary": {"parsing_errors": 1},
    }
    assert manifests.read_reports([report]) == [
        Finding(("CKV_1",), "cpu.yaml: StatefulSet.bertier.triton", "be careful"),
        Finding(("not-read",), "kubernetes", "1 files cannot be parsed"),
    ]


@pytest.mark.parametrize(
    ("image", "today", "names"),
    [
        ("nvcr.io/nvidia/tritonserver:26.09-py3", date(2027, 3, 31), []),
        ("nvcr.io/nvidia/tritonserver:26.09-py3", date(2027, 4, 2), ["old-pin"]),
        ("nvcr.io/nvidia/tritonserver:25.06-py3", date(2025, 8, 1), ["CVE-2025-23310"]),
        ("nvcr.io/nvidia/tritonserver:latest", date(2027, 1, 1), ["unknown-release"]),
    ],
)
def test_a_release_of_triton_is_held_to_its_age_and_its_advisories(
    image: str, today: date, names: list[str]
) -> None:
    """Fixes come with the monthly releases alone, and no database of packages knows them."""
    text = """
    [[advisory]]
    ids = ["CVE-2025-23310", "CVE-2025-23311"]
    says = "overflows"
    fixed_in = "25.07"
    """
    advisories = triton.read_advisories(text)
    ((where, release),) = triton.pinned(image, None)
    found = triton.against(where, release, advisories, today)
    assert [finding.names[0] for finding in found] == names


def test_the_wheel_is_held_to_the_release_in_it() -> None:
    """Its own version says nothing of the server's."""
    pins = packages.read_pins((ROOT / "constraints.txt").read_text())
    found = triton.findings(pins, TODAY)
    wheel = [finding for finding in found if finding.where == f"{triton.WHEEL}==0.7.0"]
    assert {"old-pin", "CVE-2025-23310"} <= {name for finding in wheel for name in finding.names}
    explained = read_explanations(packages.EXPLAINED.read_text())
    assert unexplained(found, explained, TODAY) == []
