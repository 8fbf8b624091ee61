"""Executes notebooks in place, as they are committed: python tools/notebooks.py [02 03 ..]

Without numbers it executes all notebooks. It keeps outputs and cell numbers, but no times, progress bars or metadata of
the kernel. Models are read from and stored in MLLMU_NB_OUT. If that folder has no runs of your own, the notebooks on
tables and figures (09, 10, 13, 15) show the committed reference.
"""

from __future__ import annotations

import sys
import time

import nbformat
from nbclient import NotebookClient
from nbstripout import strip_output

from mllmu_nb import paths


def execute(path) -> None:
    """Run a notebook from its folder and write it back."""
    book = nbformat.read(path, as_version=4)
    NotebookClient(book, timeout=None, resources={"metadata": {"path": str(path.parent)}}).execute()
    book = strip_output(book, keep_output=True, keep_count=True, keep_id=True)
    for cell in book.cells:
        cell.metadata.pop("execution", None)
        if cell.cell_type == "code":
            cell.outputs = [output for output in cell.outputs if output.get("name") != "stderr"]
    kernel, language = book.metadata.kernelspec, book.metadata.language_info
    known = {name: kernel[name] for name in ("display_name", "language", "name") if name in kernel}
    book.metadata = nbformat.from_dict({"kernelspec": known, "language_info": {"name": language["name"]}})
    nbformat.write(book, path)


def main() -> None:
    known = {path.stem[:2]: path for path in sorted(paths.notebooks().glob("*.ipynb"))}
    if unknown := set(sys.argv[1:]) - known.keys():
        sys.exit(f"there is no notebook {', '.join(sorted(unknown))}: choose of {', '.join(known)}")
    for path in map(known.get, sys.argv[1:] or known):
        began = time.perf_counter()
        execute(path)
        print(f"{(time.perf_counter() - began) / 60:5.1f} min  {path.stem}", flush=True)


if __name__ == "__main__":
    main()
