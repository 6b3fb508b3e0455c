"""The paper's Tables 2, 3 and 4 with our numbers, and the paper's beside them where that is asked."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from jobs.semantic.report_data import CASES, PAPER, Result, SemanticReportData, rule_title
from pipeline.report.blocks import Cell, Column, Group, Paragraph, Section, Table
from pipeline.report.wording import NOTHING, counted

_HOW = (
    "An image's fine prediction is right iff its set of classes is exactly right. IA: both levels right, of all "
    "images. IP: of images with the fine set right, the coarse class is, too. IR: of images with the coarse class "
    "right, the fine set is, too."
)


def section(data: SemanticReportData) -> Section:
    blocks: list[Any] = [_coarse(data)]
    for kind, number, loss in (("focal", 3, "focal loss"), ("bce", 4, "sigmoid and BCE")):
        mine = [r for r in data.results if r.variant.kind == kind and r.measured]
        if mine:
            blocks.append(_indexes(data, mine, f"Table {number}. Interpretability indexes, {loss}"))
            blocks.append(_cases(data, mine, f"Images by case, {loss}"))
        elif kind in data.config.losses:
            blocks.append(Paragraph(f"Table {number} ({loss}): no network has been measured yet."))
    percent = f"{100 * data.config.evaluation.confidence:g} %"
    blocks.append(Paragraph(f"Small numbers: {percent} bootstrap intervals; {NOTHING} is 0/0, undefined.", muted=True))
    return Section("Accuracy and interpretability", blocks, _HOW)


def _coarse(data: SemanticReportData) -> Table | Paragraph:
    """Table 2, with the two-level networks' coarse accuracy beside the baseline's."""
    kinds = [*(["coarse"] if data.config.baseline else []), *data.config.losses]
    heads = {"coarse": "Coarse only", "focal": "Two levels, focal", "bce": "Two levels, BCE"}
    columns = [Column("Network"), *(Column(heads[kind], True, 4, "max") for kind in kinds)]
    columns += [Column("Paper, coarse only", True, 4)] if data.config.report.paper else []
    found: dict[tuple[str, str], Any] = {(r.variant.network, r.variant.kind): r.measured for r in data.results}
    rows: list[list[Any]] = []
    for network in dict.fromkeys(r.variant.network for r in data.results):
        row: list[Any] = [network]
        for kind in kinds:
            measured = found.get((network, kind))
            row.append(None if measured is None else _cell(measured["coarse_accuracy"]))
        row += [PAPER.get(network, {}).get("coarse")] if data.config.report.paper else []
        rows.append(row)
    return Table(columns, [Group(rows)], "Table 2. Accuracy of the coarse class", "Of images with a coarse label.")


def _indexes(data: SemanticReportData, results: list[Result], caption: str) -> Table:
    weights = [f"{a:g}" for a in data.config.evaluation.a]
    columns = [Column("Network"), *(Column(n, True, 4, "max") for n in ("IA", "IP", "IR"))]
    columns += [Column(f"IF{a}", True, 4, "max") for a in weights]
    columns.append(Column("Fine set right", True, 4, "max"))
    groups = []
    rules = results[0].variant.rules
    for rule in rules:
        for aggregate in ("set", "batches"):
            rows = []
            for result in results:
                assert result.measured is not None
                told = result.measured["rules"][rule]
                if aggregate not in told:
                    continue
                rows.append(_row(result, told, told[aggregate], weights, aggregate))
                # The paper's numbers are those of the loss's own rule: k known for the focal loss.
                if data.config.report.paper and rule == rules[0] and result.variant.network in PAPER:
                    rows.append(_paper(result, weights, len(columns)))
            if rows:
                over = "whole set" if aggregate == "set" else f"mean over batches of {data.config.evaluation.batch}"
                groups.append(Group(rows, f"{rule_title(rule, data.config)}; {over}"))
    note = "IF with the denominator as printed, without a²." if data.config.evaluation.literal else ""
    return Table(columns, groups, caption, note)


def _cases(data: SemanticReportData, results: list[Result], caption: str) -> Table:
    columns = [Column("Network"), *(Column(case, True, help=meaning) for case, meaning in CASES.items())]
    groups = []
    for rule in results[0].variant.rules:
        counts = [(r.variant.network, r.measured["rules"][rule]["cases"]) for r in results if r.measured]
        groups.append(
            Group([[name, *(c[case] for case in CASES)] for name, c in counts], rule_title(rule, data.config))
        )
    told = "; ".join(f"{case}: {meaning}" for case, meaning in CASES.items())
    return Table(columns, groups, caption, f"{told}.")


def _row(
    result: Result, rule: Mapping[str, Any], found: Mapping[str, Any], weights: list[str], aggregate: str
) -> list[Any]:
    cells = [_cell(found[name]) for name in ("IA", "IP", "IR")] + [_cell(found["IF"][a]) for a in weights]
    name: Any = result.variant.network
    if aggregate == "batches":
        lacking = sum(found["undefined"].values())
        told = counted(found["batches"], "batch").replace("batchs", "batches")
        name = Cell(name, note=told + (f", {counted(lacking, 'value')} undefined" if lacking else ""))
    exact = _cell(rule["fine_exact"]) if aggregate == "set" else Cell(None)
    return [name, *cells, exact]


def _paper(result: Result, weights: list[str], width: int) -> list[Any]:
    ia, ip, ir, f1 = PAPER[result.variant.network][result.variant.kind]
    values = [ia, ip, ir, *(f1 if a == "1" else None for a in weights)]
    row: list[Any] = [Cell("the paper’s", tone="muted"), *(Cell(v, tone="muted", ranked=False) for v in values)]
    return row + [None] * (width - len(row))


def _cell(found: Mapping[str, Any]) -> Cell:
    if found["value"] is None:
        return Cell(None)
    low, high = found["low"], found["high"]
    return Cell(found["value"], note="" if low is None or high is None else f"{low:.3f} to {high:.3f}")
