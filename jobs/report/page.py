"""The page: its frame, its headline figures, and the sections of the legs that ran."""

from __future__ import annotations

from datetime import datetime
from html import escape
from importlib.resources import files
from pathlib import Path
from string import Template

from jobs.demo.results import DemoResults
from jobs.report import digits_leg, parts, text_leg
from jobs.report.words import plural
from jobs.terminal import duration

_LEAD = (
    "A teacher labelled a corpus once. What it said went into a store, and students learned from the store. "
    "Everything below was made on this machine, and nothing was downloaded for it."
)


def write_report(results: DemoResults, path: Path) -> Path:
    """One self-contained HTML file at `path`, which is returned: no script, nothing from elsewhere."""
    temporary = path.with_suffix(".tmp")
    temporary.write_text(page(results), encoding="utf-8")
    temporary.replace(path)
    return path


def page(results: DemoResults) -> str:
    """The report as HTML."""
    headline, cards, sections, settings = "The demo ran no leg.", [], [], []
    if results.digits is not None:
        headline = digits_leg.headline(results.digits)
    if results.text is not None:
        headline = text_leg.headline(results.text)
        cards += text_leg.cards(results.text)
        sections += text_leg.sections(results.text)
        settings.append(text_leg.settings(results.text))
    if results.digits is not None:
        cards += digits_leg.cards(results.digits)
        sections.append(digits_leg.section(results.digits))
        settings.append(digits_leg.settings(results.digits))
    machine = {**results.machine.model_dump(), "decant": results.version}
    settings.append(parts.definitions("Machine and versions", machine))
    sections.append("<h2>Settings</h2>" + "".join(settings))
    return _template("page.html").substitute(
        style=_template("style.css").template.strip(),
        version=escape(results.version),
        finished=escape(_when(results.finished_at)),
        seconds=duration(results.seconds),
        cpus=plural(results.machine.cpus, "processor"),
        headline=parts.plain(headline),
        lead=parts.paragraph(_LEAD, "lead"),
        cards=parts.cards(cards),
        sections="\n".join(f"<section>{section}</section>" for section in sections),
    )


def _template(name: str) -> Template:
    return Template(files("jobs.report").joinpath(name).read_text("utf-8"))


def _when(iso: str) -> str:
    """'23 November 2026, 22:41 UTC'."""
    moment = datetime.fromisoformat(iso)
    return f"{moment.day} {moment:%B %Y, %H:%M} UTC"
