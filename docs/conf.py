"""The site, built by `make docs`: the project's own pages and its notebooks with the outputs that are committed.

Source is the whole checkout (`sphinx-build -c docs .`), so that links between README, docs and notebooks are those that
a reader of the repository follows. Nothing is executed and nothing is fetched; formulas become MathML.
"""

import base64
import html
import re
from pathlib import Path

import nbformat
from docutils import nodes
from docutils.utils.math.latex2mathml import tex2mathml

import mllmu_nb

ROOT = Path(__file__).resolve().parents[1]
# A letter with a bar and an index: the index belongs beside the letter, not below it.
BARRED = re.compile(r"<munderover>\s*(<mi>.</mi>)\s*(<mi>.</mi>)\s*(<mo[^>]*>ˉ</mo>)\s*</munderover>")
PICTURE = re.compile(r'<img alt="([^"]*)" src="data:image/png;base64,([^"]+)"')
GENERATED = ROOT / "docs" / "_generated"

project, version = "mllmu-nb", mllmu_nb.__version__
release, copyright, language = version, "the mllmu-nb contributors, Apache-2.0", "en"
extensions = ["myst_nb", "sphinx.ext.autodoc"]
root_doc = "docs/index"
include_patterns = ["docs/*.md", "docs/_generated/*.md", "notebooks/*.ipynb"]
include_patterns += ["README.md", "CONTRIBUTING.md", "CHANGELOG.md"]
nb_execution_mode = "off"
nb_merge_streams = True
myst_enable_extensions = ["amsmath", "dollarmath"]
myst_heading_anchors = 3
html_theme, html_title = "furo", f"mllmu-nb {version}"
html_math_renderer = "mathml"
html_copy_source = html_show_sourcelink = False
autodoc_default_options = {"members": True, "exclude-members": "model_config"}
autodoc_member_order, autodoc_typehints, autodoc_preserve_defaults = "bysource", "signature", True


def gallery() -> None:
    """A page with a line and a picture of every notebook: of the cell with the tag ``cover``, else the first one."""
    GENERATED.mkdir(exist_ok=True)
    lines = ["# Notebooks", ""]
    books = sorted((ROOT / "notebooks").glob("*.ipynb"))
    for path in books:
        book = nbformat.read(path, as_version=4)
        title = book.cells[0].source.split("\n")[0].removeprefix("# ")
        makes = re.search(r"\*\*makes\*\* \| (.*) \|", book.cells[0].source)[1]
        lines += [f"## [{title}](../../notebooks/{path.name})", "", makes + ".", ""]
        if shown := next(pictures(book), None):
            (GENERATED / f"{path.stem}.png").write_bytes(shown[0])
            lines += [f"```{{image}} {path.stem}.png", f":alt: {shown[1]}", ":width: 360px", "```", ""]
    lines += ["```{toctree}", ":hidden:", "", *(f"../../notebooks/{path.stem}" for path in books), "```", ""]
    (GENERATED / "gallery.md").write_text("\n".join(lines), encoding="utf-8")


def pictures(book):
    """The figures of a notebook (``show.image``) with their alt texts, that of its cover first."""
    cells = sorted(book.cells, key=lambda cell: "cover" not in cell.metadata.get("tags", []))
    for output in (output for cell in cells for output in cell.get("outputs", [])):
        for alt, picture in PICTURE.findall(output.get("data", {}).get("text/html", "")):
            yield base64.b64decode(picture), html.unescape(alt)


def formula(block: bool):
    """A visitor that writes a formula as MathML, which browsers read without a script."""

    def visit(self, node):
        text = re.sub(r"\\[bB]igg?[lr]?(?![a-zA-Z])", "", node.astext())  # sizes, which MathML finds by itself
        mathml = BARRED.sub(r"<msub><mover>\1\3</mover>\2</msub>", tex2mathml(text, as_block=block))
        self.body.append(f'<div style="overflow: auto hidden">{mathml}</div>' if block else mathml)
        raise nodes.SkipNode

    return visit


def tables_are_files(app, name, source) -> None:
    """The reference's tables are no pages of the site: a link to their Markdown gives the CSV here."""
    source[0] = re.sub(r"(results/reference/tables/\w+)\.md\b", r"\1.csv", source[0])


def setup(app):
    app.add_html_math_renderer("mathml", (formula(False), None), (formula(True), None))
    app.connect("source-read", tables_are_files)
    gallery()
