"""The example notebook, executed as a person would, on a real study."""

from pathlib import Path

NOTEBOOK = Path(__file__).parents[1] / "examples" / "read_the_front.ipynb"


def test_the_notebook_runs_and_shows_the_front(digits_study: Path, tmp_path: Path) -> None:
    import nbformat
    from nbclient import NotebookClient

    book = nbformat.read(NOTEBOOK, as_version=4)
    assert not any(cell.get("outputs") for cell in book.cells), "kept without outputs"
    first = book.cells[1]
    assert first.source == 'folder = "paretune-quickstart/study"'
    first.source = f"folder = {str(digits_study)!r}"
    client = NotebookClient(book, timeout=120, kernel_name="python3")
    client.execute(cwd=str(tmp_path))
    shown = [output for cell in book.cells for output in cell.get("outputs", ())]
    pages = [out.data["text/html"] for out in shown if "text/html" in out.get("data", {})]
    assert "data:image/svg+xml;base64," in pages[0] and "what was changed" in pages[0]
    assert "accuracy_drop" in pages[1]
    figures = [out.data for out in shown if "application/vnd.plotly.v1+json" in out.get("data", {})]
    assert len(figures) == 1
    printed = "".join(out.text for out in shown if out.output_type == "stream")
    assert "features.0" in printed and "channels" in printed
