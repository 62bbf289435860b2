"""Tables, figures and pages, drawn from a results folder alone. What draws them is imported when it is first used."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from distill_lit.report.bundle import ReportBundle, build_report_bundle
    from distill_lit.report.formats.terminal import TerminalTable
    from distill_lit.report.model_card import model_card_sections
    from distill_lit.report.render import render_report
    from distill_lit.report.scaling import render_scaling_report

__all__ = [
    "ReportBundle",
    "TerminalTable",
    "build_report_bundle",
    "model_card_sections",
    "render_report",
    "render_scaling_report",
]
_MODULES = {
    "ReportBundle": "bundle",
    "TerminalTable": "formats.terminal",
    "build_report_bundle": "bundle",
    "model_card_sections": "model_card",
    "render_report": "render",
    "render_scaling_report": "scaling",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
