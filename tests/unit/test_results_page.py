"""docs/results.md says what the JSON files in bench/results say."""

from __future__ import annotations

from bench import page


def test_the_results_page_is_made_from_the_json_files():
    assert page.PAGE.read_text() == page.page(), "run `python -m bench.page`"


def test_every_result_is_on_the_page_or_has_a_document_of_its_own():
    elsewhere = {"quality_start"}
    on_page = page.page()
    missing = {path.stem for path in page.RESULTS.glob("*.json") if f"## {path.stem}\n" not in on_page} - elsewhere
    assert not missing
