"""Run the whole corpus of bad and odd inputs, and write a table of kinds, readers, cases and outcomes.

Usage: python tests/corpus/run.py [--kinds "image file,results folder"] [--output results/reliability.json]
"""

import argparse
import collections
import sys
from dataclasses import asdict, dataclass
from pathlib import Path

TESTS = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(TESTS.parent), str(TESTS / "corpus")]

import pytest  # noqa: E402
from catalogue import BORROWED, EQUAL  # noqa: E402

from genval.runtime.files import write_json  # noqa: E402

OWN = TESTS / "corpus/test_corpus.py"


@dataclass(frozen=True)
class Tried:
    """One case and its outcome, which is the expected one or says what was found in its place."""

    family: str
    kind: str
    reader: str
    expected: str
    outcome: str


class Collector:
    """A plugin of pytest that keeps the outcome of every case of the chosen families."""

    def __init__(self, families):
        self.families = families
        self.cases, self.tried = {}, []

    def pytest_configure(self, config):
        config.pluginmanager.register(object(), "whole corpus")

    def pytest_collection_modifyitems(self, config, items):
        borrowed = {row.test: row for row in BORROWED}
        kept = []
        for item in items:
            name = f"{item.path.relative_to(TESTS).as_posix()}::{item.originalname}"
            parameters = item.callspec.params if hasattr(item, "callspec") else {}
            if case := parameters.get("case"):
                found = case.family, case.kind, case.reader, case.expected
            elif row := borrowed.get(name):
                kind, reader = row.describe(parameters)
                # A module may list pairs of reader and kind that are accepted, such as empty lists of lines.
                accepted = (reader, kind) in getattr(item.module, "ACCEPTED", ())
                found = row.family, kind, reader, EQUAL if accepted else row.expected
            else:
                continue
            if not self.families or found[0] in self.families:
                self.cases[item.nodeid] = found
                kept.append(item)
        config.hook.pytest_deselected(items=[item for item in items if item not in kept])
        items[:] = kept

    def pytest_runtest_logreport(self, report):
        *case, expected = self.cases[report.nodeid]
        if report.when == "call" or not report.passed:
            outcome = expected if report.passed else "skipped by pytest" if report.skipped else said(report)
            self.tried.append(Tried(*case, expected, outcome))


def said(report):
    """The first line of a failure."""
    crash = getattr(report.longrepr, "reprcrash", None)
    return (crash.message if crash else str(report.longrepr)).partition("\n")[0][:300]


def table(tried):
    """Lines of Markdown: of each family the readers, the kinds, the cases and their outcomes.

    Readers with the same outcomes share a line, which counts the cases of all of them.
    """
    order = list(dict.fromkeys(case.family for case in tried))
    groups = collections.defaultdict(list)
    for case in tried:
        groups[case.family, case.reader].append(case)
    rows = collections.defaultdict(list)
    lines = ["| input | reader | kinds | cases | equal | refused | skipped and counted | other |", "| --- " * 8 + "|"]
    for (family, reader), cases in groups.items():
        good = [case.outcome for case in cases if case.outcome == case.expected]
        counts = [good.count(outcome) for outcome in ("equal", "refused", "skipped")]
        kinds = len({case.kind for case in cases})
        rows[family, kinds, len(cases), *counts, len(cases) - len(good)].append(reader)
    for (family, kinds, *counts), readers in sorted(rows.items(), key=lambda row: order.index(row[0][0])):
        numbers = [kinds, *(count * len(readers) for count in counts)]
        lines.append(f"| {family} | {', '.join(readers)} | " + " | ".join(map(str, numbers)) + " |")
    return lines


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--kinds", default="", help="families of inputs, by commas (default: all)")
    parser.add_argument("--output", default="results/reliability.json", help="file of the outcomes")
    settings = parser.parse_args()
    collector = Collector({name.strip() for name in settings.kinds.split(",") if name.strip()})
    places = [str(OWN), *(str(TESTS / row.test) for row in BORROWED)]
    pytest.main(["-q", "--tb=short", "--no-header", "-p", "no:cacheprovider", *places], plugins=[collector])
    tried = collector.tried
    if not tried:
        parser.error(f"no case was run. --kinds expects names of the first column, found {settings.kinds!r}.")
    lines = table(tried)
    wrong = [case for case in tried if case.outcome != case.expected]
    kinds = {(case.family, case.kind) for case in tried}
    summary = f"{len(tried)} cases of {len(kinds)} kinds; {len(wrong)} outcomes differ"
    write_json(settings.output, {"summary": summary, "cases": [asdict(case) for case in tried]})
    print("\n".join([*lines, "", summary]))
    for case in wrong:
        print(f"{case.family}, {case.kind}, {case.reader}: expected {case.expected}, found {case.outcome}")
    sys.exit(1 if wrong or len(tried) != len(collector.cases) else 0)


if __name__ == "__main__":
    main()
