"""docs/api.md says what the docstrings say, and everything that the packages offer is on it."""

from __future__ import annotations

from pathlib import Path

import pytest

import ngramstore

PAGE = Path(__file__).parents[2] / "docs" / "api.md"


@pytest.fixture(scope="module")
def document_api():
    pytest.importorskip("transformers")
    from ngramstore.cli import document_api

    return document_api


def test_the_page_is_made_from_the_docstrings(document_api):
    assert PAGE.read_text() == document_api.document(), (
        "run `python -m ngramstore.cli.document_api > docs/api.md` and look at the difference"
    )


def test_every_public_method_of_a_store_is_on_it(document_api):
    listed = {name for _, names in document_api._SECTIONS for name in names}
    for cls in ("Store", "Builder"):
        for method in document_api._public(getattr(ngramstore, cls)):
            has_entry = f"ngramstore.{cls}.{method}" in listed
            assert has_entry or f"\n.{method}" in PAGE.read_text(), f"{cls}.{method}"


def test_what_stats_says_is_explained(tmp_path):
    with ngramstore.build(tmp_path / "s", dim=4, max_n=2) as build:
        build.add([(1, 2)], [[1.0, 2, 3, 4]])
    with ngramstore.open(tmp_path / "s") as store:
        for key in store.stats():
            assert key in (ngramstore.Store.stats.__doc__ or ""), key


def test_what_the_statistics_of_a_module_say_is_explained():
    pytest.importorskip("torch")
    from ngramstore_torch.serving_stats import ServingStats

    explained = (ServingStats.__doc__ or "").replace("\n", " ")
    for key in ServingStats().as_dict():
        word = {"found_share": "found", "positions_per_s": "positions", "last_candidate_error": "last one"}.get(
            key, key
        )
        assert word.removesuffix("_p50_us").removesuffix("_p99_us").removesuffix("_total_s") in explained, key
