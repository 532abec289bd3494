"""docs/api.md says what the docstrings say, and everything that the packages offer is on it."""

from __future__ import annotations

import re
from importlib import import_module
from pathlib import Path
from pkgutil import iter_modules

import pytest

import ngramstore
from ngramstore.store.trace import Trace

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


@pytest.mark.parametrize(
    "package",
    [
        "ngramstore",
        "ngramstore.api",
        "ngramstore.codec",
        "ngramstore.keys",
        "ngramstore.mine",
        "ngramstore_torch",
        "ngramstore_transformers",
    ],
)
def test_every_name_that_a_package_offers_is_on_it(package):
    headings = set(re.findall(r"^##+ (\S+)$", PAGE.read_text(), re.MULTILINE))
    prefix = "" if package in ("ngramstore", "ngramstore.api") else package.removeprefix("ngramstore.") + "."
    names = {prefix + name for name in import_module(package).__all__}
    elsewhere = {"Builder": "build", "errors": "Errors"} if package == "ngramstore" else {}
    assert {elsewhere.get(name, name) for name in names} - headings == set()


@pytest.mark.parametrize("package", ["ngramstore.mine", "ngramstore_torch", "ngramstore_transformers"])
def test_no_module_of_a_package_has_a_name_that_it_offers(package):
    """Importing such a module would put it in the place of what is found on first use."""
    found = import_module(package)
    assert {module.name for module in iter_modules(found.__path__)} & set(found.__all__) == set()


def test_every_error_is_on_it():
    drawn = {
        name.lstrip("|-` ").partition(" ")[0] for name in PAGE.read_text().partition("## Errors\n")[2].splitlines()
    }
    root = ngramstore.errors.NgramStoreError
    ours = {
        name for name, value in vars(ngramstore.errors).items() if isinstance(value, type) and issubclass(value, root)
    }
    assert ours - drawn == set()


@pytest.mark.parametrize("name", ["ImportReport", "Recorder", "Sizes", "Spec", "ngramstore_torch.StoreModule"])
def test_what_is_returned_is_on_it_too(name):
    assert f"### {name}\n" in PAGE.read_text()


def test_traces_are_joined_by_what_the_package_offers():
    parts = [Trace.of("row", 9, 5, [1, 2], [3, 2]), Trace.of("row", 9, 4, [2, 8], [3, 1])]
    joined = ngramstore.Trace.join(part for part in parts)
    assert (joined.keys.tolist(), joined.counts.tolist(), joined.num_lookups) == ([2, 1, 8], [5, 3, 1], 9)
    with pytest.raises(ngramstore.errors.UsageError, match="no traces"):
        ngramstore.Trace.join([])


def test_every_public_method_of_a_store_is_on_it(document_api):
    listed = {name for _, names in document_api._SECTIONS for name in names}
    for cls in ("Store", "Builder"):
        for method in document_api._public(getattr(ngramstore, cls)):
            has_entry = f"ngramstore.{cls}.{method}" in listed
            assert has_entry or f"\n.{method}" in PAGE.read_text(), f"{cls}.{method}"


def test_of_a_history_only_what_users_call_is_on_it(document_api):
    """Steps of one token belong to the embeddings, which add the token once the look-up has gone well."""
    from ngramstore_torch import NGramHistory

    names = {"context", "lengths", "push", "reorder", "reset", "room", "select", "truncate", "windows"}
    assert set(document_api._public(NGramHistory)) == names


def test_what_stats_says_is_explained(tmp_path):
    with ngramstore.build(tmp_path / "s", dim=4, max_n=2) as build:
        build.add([(1, 2)], [[1.0, 2, 3, 4]])
    with ngramstore.open(tmp_path / "s") as store:
        for key in store.stats():
            assert key in (ngramstore.Store.stats.__doc__ or ""), key


def test_what_the_statistics_of_a_module_say_is_explained():
    pytest.importorskip("torch")
    from ngramstore_torch import ServingStats

    explained = (ServingStats.__doc__ or "").replace("\n", " ")
    for key in ServingStats().as_dict():
        word = {"found_share": "found", "positions_per_s": "positions", "last_candidate_error": "last one"}.get(
            key, key
        )
        assert word.removesuffix("_p50_us").removesuffix("_p99_us").removesuffix("_total_s") in explained, key
