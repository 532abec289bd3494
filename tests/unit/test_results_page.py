"""docs/results.md says what the JSON files in bench/results say."""

from __future__ import annotations

from bench import page


def test_the_results_page_is_made_from_the_json_files():
    assert page.PAGE.read_text() == page.page(), "run `python -m bench.page`"


def test_every_result_is_named_in_a_document():
    documents = "".join(path.read_text() for path in page.PAGE.parent.rglob("*.md"))
    missing = [path.name for path in page.RESULTS.glob("*.json") if f"bench/results/{path.name}" not in documents]
    assert not missing
