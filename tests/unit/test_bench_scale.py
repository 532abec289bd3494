"""Workload scale: keys made from numbers are distinct and never in memory; its workers check answers and count what they say."""

from __future__ import annotations

import json

import numpy as np
import pytest

import ngramstore
from bench import profiles, scale_plan, scale_prose
from bench.check import WrongAnswer
from bench.sampler import Sampler
from bench.setup import Setup
from bench.workloads import scale, scale_keys, scale_lookups, scale_store


def test_numbers_make_distinct_ngrams_of_tokens_in_the_vocabulary():
    numbers = np.concatenate([np.arange(50_000), scale_keys.ABSENT + np.arange(50_000), [2**32 - 1]])
    tokens = scale_keys.ngrams(numbers)
    assert tokens.max() < scale_keys.VOCABULARY
    assert len(np.unique(tokens, axis=0)) == len(numbers)


def test_the_permutation_has_an_inverse():
    """STEP shares no factor with the modulus: number -> n-gram is one to one on all of them, not only on a sample."""
    assert np.gcd(scale_keys.STEP, scale_keys.VOCABULARY) == 1
    assert scale_keys.STEP * (2**32 - 1) < 2**64


def test_rows_depend_on_their_number_alone():
    numbers = np.array([5, 1, 99_999_999])
    rows = scale_keys.rows(numbers, 16)
    assert rows.shape == (3, 16)
    assert np.array_equal(rows[1], scale_keys.rows(np.arange(4), 16)[1])
    assert len(np.unique(rows)) > 40


@pytest.mark.parametrize("mix", scale.MIXES)
def test_a_mix_asks_for_a_fifth_absent_keys_or_for_nothing_else(mix):
    drawn = scale_keys.draw(mix, 1_000_000, 20_000, np.random.default_rng(0))
    is_absent = drawn >= scale_keys.ABSENT
    assert abs(is_absent.mean() - (1 if mix == "absent" else 0.2)) < 0.02
    present = drawn[~is_absent]
    assert ((present >= 0) & (present < 1_000_000)).all()
    if mix == "zipf":
        assert abs((present == 0).mean() - np.log(2) / np.log(1_000_001)) < 0.01
    if mix == "hot":
        assert present.max() < scale_keys.HOT_KEYS


def _used_last(drawn, count):
    """The last `count` different stored keys of some draws, by looking at each: what an LRU cache holds."""
    found: list[int] = []
    seen = set()
    for number in drawn[drawn < scale_keys.ABSENT][::-1].tolist():
        if number not in seen:
            seen.add(number)
            found.append(number)
        if len(found) == count:
            break
    return np.array(found[::-1])


@pytest.mark.parametrize("mix", ["zipf", "uniform"])
def test_the_keys_used_last_are_as_good_a_cache_as_after_many_draws(mix):
    """And in the same order: of the older half, fewer are asked for again."""
    num, count, rng = 2000, 200, np.random.default_rng(0)
    asked = scale_keys.draw(mix, num, 40_000, rng)
    asked = asked[asked < scale_keys.ABSENT]
    rates = []
    for keys in (
        scale_keys.recently_used(mix, num, count, rng),
        _used_last(scale_keys.draw(mix, num, 20_000, rng), count),
    ):
        assert len(np.unique(keys)) == count and ((keys >= 0) & (keys < num)).all()
        rates.append([np.isin(asked, part).mean() for part in (keys[: count // 2], keys[count // 2 :])])
    np.testing.assert_allclose(*rates, atol=0.08)
    assert sum(rates[0]) == pytest.approx(0.1 if mix == "uniform" else 0.58, abs=0.08)


def test_a_cache_for_more_keys_than_a_mix_asks_for_gets_all_of_them(monkeypatch):
    monkeypatch.setattr(scale_keys, "HOT_KEYS", 50)
    for mix, num in (("zipf", 300), ("uniform", 300), ("hot", 50), ("absent", 0)):
        keys = scale_keys.recently_used(mix, 300, 10**6, np.random.default_rng(0))
        assert sorted(keys.tolist()) == list(range(num)), mix


@pytest.mark.parametrize(
    ("rates", "evicted", "is_steady"),
    [
        ([None], 0, True),  # absent keys: no row is asked for
        ([1.0], 0, True),
        ([0.5], 9, False),
        ([0.50, 0.505], 0, False),  # still filling
        ([0.50, 0.505], 9, True),
        ([0.50, 0.52], 9, False),
    ],
)
def test_a_cache_has_settled_when_it_misses_nothing_or_evicts_at_a_steady_rate(rates, evicted, is_steady):
    assert scale_lookups._is_steady(rates, evicted) == is_steady


def test_a_cache_that_does_not_settle_leaves_a_warning(tmp_path, monkeypatch):
    numbers = np.arange(500)
    with ngramstore.build(tmp_path / "store", dim=16, max_n=3, codec="int8") as build:
        build.add(scale_keys.ngrams(numbers), scale_keys.rows(numbers, 16))
    monkeypatch.setattr(scale_lookups, "_WINDOW", 1024)
    monkeypatch.setattr(scale_lookups, "_is_steady", lambda rates, evicted: False)
    found = scale_lookups.lookups(
        path=str(tmp_path / "store"),
        num_keys=500,
        dim=16,
        seed=1,
        mix="uniform",
        batch_sizes=[8],
        calls=2,
        warmup_s=0.0,
    )
    assert found["facts"]["settled_by_lookups"] == scale_lookups._MOST_WINDOWS * 1024
    assert "was not steady yet" in found["facts"]["warnings"][0]


def test_a_cache_filled_with_other_keys_than_those_used_last_leaves_a_warning(tmp_path, monkeypatch):
    """The most frequent keys, say: at a hundred million the rate would change too slowly to be seen."""
    store = {"path": str(tmp_path / "store"), "num_keys": 3000, "dim": 16, "seed": 1}
    scale_store.build(**store, memory_bytes=1 << 17)
    monkeypatch.setattr(scale_lookups, "_WINDOW", 1 << 14)
    monkeypatch.setattr(scale_keys, "recently_used", lambda mix, num_keys, count, rng: np.arange(count))
    found = scale_lookups.lookups(**store, mix="zipf", batch_sizes=[8], calls=2, warmup_s=0.0, cache_share=0.25)
    assert "was expected" in found["facts"]["warnings"][-1]
    assert found["facts"]["expected_hit_rate"] == pytest.approx(np.log(751) / np.log(3001))


def test_the_key_used_last_is_the_last_to_be_evicted(monkeypatch):
    """Keys go into the cache in the order of their use, whatever the size of a call."""
    warmed: list[np.ndarray] = []

    class Store:
        stats = staticmethod(lambda: {"cache_slots": 1000})
        warm = staticmethod(warmed.append)

    monkeypatch.setattr(scale_lookups, "CALL_ROWS", 300)
    scale_lookups._fill(Store, "zipf", 5000, np.random.default_rng(3))
    keys = scale_keys.recently_used("zipf", 5000, 1000, np.random.default_rng(3))
    assert [len(part) for part in warmed] == [300, 300, 300, 100]
    assert np.array_equal(np.concatenate([part[::-1] for part in warmed]), scale_keys.ngrams(keys))


def test_every_worker_runs_in_turn_on_one_store(tmp_path, monkeypatch):
    store = {"path": str(tmp_path / "store"), "num_keys": 3000, "dim": 16, "seed": 1}
    built = scale_store.build(**store, memory_bytes=1 << 17)
    assert built["metrics"]["bytes_per_key"] > 16
    assert built["facts"]["peak_disk_bytes"] >= 3000 * 20
    assert scale_store.opening(**store)["metrics"]["open_ms"] > 0
    monkeypatch.setattr(scale_lookups, "_WINDOW", 1 << 14)
    for mix in scale.MIXES:
        found = scale_lookups.lookups(**store, mix=mix, batch_sizes=[1, 8], calls=5, warmup_s=0.01)
        assert found["metrics"]["calls@8"] == 5
        assert found["metrics"]["mean_us_per_key@8"] > 0
        assert found["facts"]["rows_checked"] == 4096
        assert found["facts"]["hit_rate"] == (None if mix == "absent" else 1.0)  # all rows fit, and are there
        assert found["facts"]["warnings"] == []
    for mix, low, high in (
        ("zipf", 0.7, 0.95),
        ("uniform", 0.15, 0.35),
    ):  # log(750) / log(3000) = 0.83 at best, and a quarter
        found = scale_lookups.lookups(**store, mix=mix, batch_sizes=[8], calls=200, warmup_s=0.01, cache_share=0.25)
        assert low < found["facts"]["hit_rate"] < high
        assert found["facts"]["cache_rows"] == found["facts"]["cache_slots"] == 750
    changed = scale_store.changes(**store, share=0.1)
    assert changed["facts"]["num_puts"] == 300
    with ngramstore.open(store["path"]) as after:
        assert len(after) == 3150
    assert scale_store.verification(**store)["facts"]["bytes"] > 0


def test_a_store_with_other_rows_is_noticed_before_it_is_timed(tmp_path):
    numbers = np.arange(500)
    with ngramstore.build(tmp_path / "store", dim=16, max_n=3) as build:
        build.add(scale_keys.ngrams(numbers), scale_keys.rows(numbers + 1, 16))
    store = {"path": str(tmp_path / "store"), "num_keys": 500, "dim": 16, "seed": 1}
    with pytest.raises(WrongAnswer):
        scale_lookups.lookups(**store, mix="uniform", batch_sizes=[1], calls=2, warmup_s=0.01)
    with pytest.raises(WrongAnswer):
        scale_store.opening(**store)


def test_the_cases_cover_three_sizes(tmp_path):
    cases = scale.cases(Setup(root=tmp_path, num_keys=100_000))
    assert [case.name for case in cases] == ["build", "open", *scale.MIXES, scale.QUARTER, "changes", "verify"]
    assert list(cases[0].subjects) == ["1,000 keys", "10,000 keys", "100,000 keys"]


def test_the_sampler_sees_memory_that_comes_and_goes():
    with Sampler() as sampler:
        held = np.ones(40 << 20, np.uint8)
        for _ in range(20):
            held = held + 1
        del held
    assert 35 < sampler.peak_anon_mib < 400
    assert sampler.functions == pytest.approx({"(caller)": sum(sampler.functions.values())})


def test_the_sampler_sees_what_a_block_holds_that_ends_before_it_looks():
    with Sampler(every_s=60) as sampler:
        held = np.ones(40 << 20, np.uint8)
    assert 35 < sampler.peak_anon_mib < 400
    del held


def test_the_plan_multiplies_what_was_measured():
    def case(name: str, **metrics: float) -> dict:
        subjects = {
            size: {
                "metrics": {metric: {"median": value * factor} for metric, value in metrics.items()},
                "facts": {"num_keys": num, "dim": 64},
            }
            for size, num, factor in (("1,000 keys", 1_000, 1), ("10,000,000 keys", 10_000_000, 10))
        }
        return {"name": name, "subjects": subjects}

    machine = {"time": "now", "cpu": "c", "cores": 2, "ram_gib": 4, "commit": "x", "load": [1.0]}
    cases = [case("build", us_per_row=2.5, seconds=36.0), case("verify", seconds=3.6)]
    result = {"machine": machine, "load_at_end": [2.0], "cases": cases}
    text = scale_plan.section(result)
    assert "| build, us per row | 2.5 | 25 |" in text
    assert "load 1.0 at the start, 2.0 at the end" in text
    assert "| index, GB (bytes per key) | 5.02 (5.02) | 5.02 (5.02) | 5.02 (5.02) |" in text
    line = next(line for line in text.splitlines() if line.startswith("| build, h |"))
    assert float(line.split("|")[2]) == pytest.approx(
        360 * 100 / 3600, rel=0.05
    )  # 100 times the keys, as many bytes each
    assert float(line.split("|")[3]) > 6 * float(line.split("|")[2])


SIZES = ("1,000 keys", "10,000 keys", "100,000 keys")


def saved_run(folder, memory_mib: float = 700.0, hit_rates=(None, None, None), **cases: dict[str, list[float]]):
    """A folder with a run of three sizes; cases: name -> metric -> its value at each size."""
    content = [
        {
            "name": name,
            "subjects": {
                size: {
                    "metrics": {
                        metric: {"median": values[i], "values": [values[i]]} for metric, values in metrics.items()
                    },
                    "facts": {"memory_mib": memory_mib, "hit_rate": hit_rates[i]},
                }
                for i, size in enumerate(SIZES)
            },
        }
        for name, metrics in cases.items()
    ]
    result = {"bench": "scale", "machine": {"time": "now"}, "options": {"quick": False}, "cases": content}
    (folder / "scale.json").write_text(json.dumps(result))
    return folder


def one_line(text: str) -> str:
    return " ".join(text.split())


@pytest.mark.parametrize(
    ("times", "words"),
    [
        ([1.0, 2.0, 3.0], "slower with size"),
        ([3.0, 2.0, 1.0], "faster with size"),
        ([1.0, 3.0, 2.0], "no trend"),
        ([3.0, 1.0, 2.0], "no trend"),
        ([1.0, 1.02, 1.05], "no trend"),
        ([1.05, 1.02, 1.0], "no trend"),
        ([1.0], "no trend"),
    ],
)
def test_a_trend_is_what_every_size_and_all_of_them_show(times, words):
    assert scale_prose.trend(times) == words


def test_what_is_said_of_probes_is_what_the_run_found(tmp_path):
    folder = saved_run(
        tmp_path,
        hot={"us_per_key@1024": [1.0, 2.0, 3.0], "us_per_key@1": [4.0, 3.0, 2.0]},
        absent={"us_per_key@1024": [1.0, 3.0, 2.0], "us_per_key@1": [1.0, 1.01, 1.02]},
    )
    said = one_line(scale_prose.probes(folder))
    assert said.startswith("The time of a key among 100,000 keys as a multiple of that among 1,000 keys:")
    assert "in calls of 1,024, *hot* 3.00 (slower with size) and *absent* 2.00 (no trend);" in said
    assert "in calls of one, *hot* 0.50 (faster with size) and *absent* 1.02 (no trend)." in said


def test_a_miss_costs_what_the_uniform_keys_take_without_the_absent_ones(tmp_path):
    times = {"uniform": 3.0, "hot": 0.5, "absent": 0.5, "zipf": 4.0, "zipf_quarter": 1.0}
    folder = saved_run(tmp_path, **{name: {"us_per_key@1024": [1.0, 2.0, last]} for name, last in times.items()})
    said = one_line(scale_prose.misses(folder))
    assert "among 100,000 keys, a stored key takes about 3.6 us where hardly any row is cached" in said
    assert "and 0.5 us where every row is (*hot*, likewise)" in said
    assert "*zipf* 4.00 (slower with size), *uniform* 3.00 (slower with size);" in said
    assert said.endswith("*zipf_quarter* 1.00 (no trend).")


@pytest.mark.parametrize(
    ("hit_rates", "told"),
    [((1.0, 0.87, 0.727), "100, 87 and 73 % (*zipf*)"), ((1.0, None, 0.7), "not measured (*zipf*)")],
)
def test_what_the_cache_answers_stands_beside_the_times(tmp_path, hit_rates, told):
    mixes = ("uniform", "hot", "absent", "zipf", "zipf_quarter")
    folder = saved_run(tmp_path, hit_rates=hit_rates, **{name: {"us_per_key@1024": [1.0, 2.0, 3.0]} for name in mixes})
    assert f"answers, by size: {told}, " in one_line(scale_prose.misses(folder))


@pytest.mark.parametrize(
    ("memory_mib", "said"), [(700.0, "none held more."), (600.0, "that of 100,000 keys held 50 MiB more.")]
)
def test_a_build_is_said_to_hold_more_than_its_budget_only_where_it_did(tmp_path, memory_mib, said):
    folder = saved_run(tmp_path, memory_mib, build={"anon_mib": [100.0, 500.0, 650.0]})
    text = one_line(scale_prose.build_memory(folder))
    assert "builds of 1,000, 10,000 and 100,000 keys held 100, 500 and 650 MiB at their peaks" in text
    assert text.endswith(f"`memory_bytes` was {memory_mib:.0f} MiB, and {said}")


def test_the_scale_page_is_made_from_the_json():
    assert scale_plan.section(scale_plan.newest()) in scale_plan.PAGE.read_text(), "run `python -m bench.scale_plan`"


def test_the_profiles_page_is_made_from_the_json():
    result = json.loads(profiles.RESULT.read_text())
    assert profiles.section(result) in profiles.PAGE.read_text(), "run `python -m bench profiles --page-only`"
