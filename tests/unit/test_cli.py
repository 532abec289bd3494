"""The command line: what each command prints, its exit status, and that help is there at once."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from importlib.metadata import EntryPoint
from pathlib import Path

import click
import numpy as np
import pytest
from click.testing import CliRunner
from helpers import ROOT, all_ngrams, flip, rows_of
from safetensors.numpy import save_file
from store_cases import files_of

import ngramstore as ngs
from ngramstore.cli import common
from ngramstore.cli.main import _OTHERS, CORE_COMMANDS, GROUPS, cli
from ngramstore.codec.registry import codec_from_spec
from ngramstore.errors import MissingExtra, UsageError

NGRAMS = all_ngrams(3, (1, 2, 3))
ROWS = rows_of(range(len(NGRAMS)), 8)


def run(*args: object, code: int = 0, **options) -> str:
    result = CliRunner().invoke(cli, [str(arg) for arg in args], **options)
    assert result.exit_code == code, (result.output, result.exception)
    return result.stdout if code != 2 else result.stderr


def run_json(*args: object, code: int = 0):
    return json.loads(run(*args, "--json", code=code))


@pytest.fixture(scope="module")
def inputs(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("inputs")
    (folder / "ngrams.txt").write_text("".join(f"{' '.join(map(str, ngram))}\n" for ngram in NGRAMS))
    save_file({"emb": ROWS, "other": ROWS[:, 0].copy()}, folder / "rows.safetensors")
    np.save(folder / "rows.npy", ROWS)
    return folder


@pytest.fixture(scope="module")
def stores(inputs) -> tuple[Path, Path]:
    """One store by n-gram, one by row number, built by the command."""
    by_ngram, by_row = inputs / "by_ngram", inputs / "by_row"
    run("build", by_ngram, "--vocab", inputs / "ngrams.txt", "--rows", inputs / "rows.safetensors", "--codec", "f32")
    run("build", by_row, "--rows", inputs / "rows.npy", "--codec", "f32", "--quiet")
    return by_ngram, by_row


def test_build_get_and_lookup_agree_with_the_input(stores):
    by_ngram, by_row = stores
    found = run_json("get", by_ngram, "--ngram", "1,2", "--ngram", "3 3 3", "--ngram", "9")["results"]
    assert [result["found"] for result in found] == [True, True, False]
    assert found[0]["row"] == ROWS[NGRAMS.index((1, 2))].tolist()
    assert run_json("get", by_row, "--row", 5)["results"][0]["row"] == ROWS[5].tolist()
    assert "9\tnot stored" in run("get", by_ngram, "--ngram", "9")
    (looked_up,) = run_json("lookup", by_ngram, "--tokens", "1 2 9 3", "--rows")["sequences"]
    assert looked_up["length"] == [1, 2, 0, 1]
    assert looked_up["rows"][1] == ROWS[NGRAMS.index((1, 2))].tolist()
    assert "1 2" in run("lookup", by_ngram, input="1 2\n3\n")


def test_lookup_in_parts_answers_as_the_store_does_at_once(stores, monkeypatch):
    tokens = [1, 2, 3, 9, 1, 1, 2, 9, 9, 3, 2, 1, 3]
    with ngs.open(stores[0]) as store:
        hit = store.lookup(np.array(tokens))
    words = ("lookup", stores[0], "--tokens", " ".join(map(str, tokens)))
    table = run(*words)
    for part_tokens in (1, 2, 5, 13):
        monkeypatch.setattr("ngramstore.cli.lookup._PART_TOKENS", part_tokens)
        (found,) = run_json(*words, "--rows")["sequences"]
        assert (found["length"], found["rows"]) == (hit.length.tolist(), hit.rows.tolist())
        assert run(*words) == table
    monkeypatch.setattr(ngs.Store, "lookup", lambda *_, **__: pytest.fail("reads rows"))
    assert run_json(*words)["sequences"] == [{"tokens": tokens, "length": hit.length.tolist()}]


def test_lookup_takes_ngrams_and_shows_rows_as_json_only(stores):
    assert "use `ngramstore get --row`" in run("lookup", stores[1], "--tokens", "1 2", code=2)
    assert "--rows is for --json" in run("lookup", stores[0], "--tokens", "1 2", "--rows", code=2)


def test_codes_with_scales_are_kept_bit_for_bit(tmp_path):
    rng = np.random.default_rng(0)
    codes, scales = rng.integers(0, 120, (5, 64), np.uint8), rng.integers(120, 130, (5, 2), np.uint8)
    int8 = rng.integers(-127, 128, (5, 64)).astype(np.int8)
    packed = codec_from_spec("e4m3", 64).pack(codes, scales)
    tensors = {
        "codes": codes,
        "scales": scales,
        "int8": int8,
        "step": np.ones(5, np.float32)[:, None],
        "vector": np.ones(5, np.float32),
        "packed": packed,
    }
    save_file(tensors, tmp_path / "rows.safetensors")
    build = ("build", "--rows", tmp_path / "rows.safetensors", "--quiet", "--tensor")
    run(*build, "codes", tmp_path / "a", "--scales", "scales", "--codec", "e4m3")
    run(*build, "packed", tmp_path / "b", "--encoded", "--dim", 64, "--codec", "e4m3")
    run(*build, "int8", tmp_path / "c", "--scales", "step", "--codec", "int8")
    run(*build, "int8", tmp_path / "d", "--scales", "vector", "--codec", "int8")
    assert "rows are a matrix (N, D)" in run(*build, "vector", tmp_path / "e", code=2)
    for name in "ab":
        with ngs.open(tmp_path / name) as store:
            np.testing.assert_array_equal(store.rows_encoded(range(5)), packed)
    for name in "cd":
        with ngs.open(tmp_path / name) as store:
            np.testing.assert_array_equal(store.rows(range(5)), int8.astype(np.float32))


def test_scales_of_another_kind_are_refused_and_narrower_floats_widened(tmp_path):
    """An E4M3 byte read as an exponent would be another number, silently."""
    torch = pytest.importorskip("torch")
    from safetensors.torch import save_file as save_tensors

    steps = torch.tensor([0.5, 1.0, 1.5, 2.0, 3.0])
    tensors = {
        "codes": torch.ones(5, 64).to(torch.float8_e4m3fn),
        "e4m3": torch.ones(5, 2).to(torch.float8_e4m3fn),
        "e8m0": torch.full((5, 2), 127, dtype=torch.uint8).view(torch.float8_e8m0fnu),
        "e5m2": torch.ones(5, 64).to(torch.float8_e5m2),
        "int8": torch.full((5, 64), 3, dtype=torch.int8),
        "bf16": steps.to(torch.bfloat16),
        "f16": steps.to(torch.float16),
        "f64": steps.to(torch.float64),
    }
    save_tensors(tensors, tmp_path / "rows.safetensors")
    torch.save(tensors, tmp_path / "rows.pt")
    for kind in ("safetensors", "pt"):
        build = ("build", "--rows", tmp_path / f"rows.{kind}", "--quiet", "--tensor")
        of_codes = (*build, "codes", tmp_path / f"e4m3-{kind}", "--codec", "e4m3", "--scales")
        assert "scales of e4m3 are F8_E8M0 or U8" in run(*of_codes, "e4m3", code=2)
        run(*of_codes, "e8m0")
        with ngs.open(tmp_path / f"e4m3-{kind}") as store:
            assert (store.rows(range(5)) == 1).all()
        of_int8 = (*build, "int8", tmp_path / f"x-{kind}", "--codec", "int8", "--scales")
        assert "holds F64" in run(*of_int8, "f64", code=2)
        for name in ("bf16", "f16"):
            run(*build, "int8", tmp_path / f"{name}-{kind}", "--codec", "int8", "--scales", name)
            with ngs.open(tmp_path / f"{name}-{kind}") as store:
                np.testing.assert_array_equal(store.rows(range(5))[:, 0], 3 * steps.numpy())
        assert "e5m2" in run(*build, "e5m2", tmp_path / "no", "--codec", "f16", code=2).lower()
    assert "e5m2 holds F8_E5M2" in run(
        "build", "--rows", tmp_path / "rows.safetensors", "--tensor", "e5m2", tmp_path / "no", code=2
    )


def test_json_holds_null_where_a_row_holds_no_number(tmp_path):
    codes = np.full((1, 64), 0x7F, np.uint8)  # NaN in E4M3
    codes[0, 1] = 0x38  # 1
    save_file({"codes": codes, "scales": np.full((1, 2), 127, np.uint8)}, tmp_path / "rows.safetensors")
    args = ("--rows", tmp_path / "rows.safetensors", "--tensor", "codes", "--scales", "scales", "--codec", "e4m3")
    run("build", tmp_path / "s", *args, "--quiet")
    text = run("get", tmp_path / "s", "--row", 0, "--json")
    assert json.loads(text, parse_constant=pytest.fail)["results"][0]["row"][:3] == [None, 1.0, None]


def test_a_killed_build_is_recognised_and_restarted(tmp_path, inputs):
    (tmp_path / "store" / "runs").mkdir(parents=True)
    (tmp_path / "store" / "BUILDING").write_text("{}\n")
    arguments = ("build", tmp_path / "store", "--rows", inputs / "rows.npy", "--quiet")
    assert "--restart" in run(*arguments, code=2)
    assert "BUILDING" in os.listdir(tmp_path / "store")
    assert run_json(*arguments, "--restart")["rows"] == len(ROWS)


def test_stats_inspect_and_sizes_tell_what_is_there(stores):
    by_ngram, by_row = stores
    stats = run_json("stats", by_ngram)
    assert (stats["rows"], stats["max_n"], stats["addressing"]) == (len(NGRAMS), 3, "ngram")
    assert "base-000001.rows" in run("stats", by_ngram)
    whole = run_json("inspect", by_ngram)
    assert whole["manifest"]["num_rows"] == whole["files"]["base-000001.rows"]["num_rows"] == len(NGRAMS)
    assert len(run_json("inspect", by_ngram, "--block", 0)["rows"]) == len(NGRAMS)
    row = run_json("inspect", by_ngram, "--ngram", "2 1")
    assert row["values"] == ROWS[NGRAMS.index((2, 1))].tolist()
    assert row["ngram"] == [2, 1] and row["is_good"] and row["found"]
    absent = run_json("inspect", by_ngram, "--ngram", "9 9")
    assert (absent["found"], absent["ngram"]) == (False, [9, 9])
    assert f"9 9 is not stored; its ID is {absent['id']}" in run("inspect", by_ngram, "--ngram", "9 9")
    assert bytes.fromhex(row["stored_hex"]) == ROWS[NGRAMS.index((2, 1))].tobytes()
    assert run_json("inspect", by_row, "--row", 4)["values"] == ROWS[4].tolist()
    for arguments in ((), ("--block", 0), ("--row", 0)):
        assert "base-000001.rows" in run("inspect", by_ngram, *arguments)
    found = run_json("sizes", "--rows", "1B", "--dim", 2048)["sizes"]
    assert [size["codec"] for size in found] == ["f32", "f16", "bf16", "int8", "int4", "e4m3"]
    assert found[0]["num_rows"] == 10**9 and found[0]["rows_bytes"] > 8192 * 10**9
    assert run("sizes", "--rows", "1M", "--dim", 64, "--codec", "int4:group=16").count("\n") == 2


def test_sizes_foretells_the_files_of_a_build(stores):
    stats = run_json("stats", stores[0])
    (told,) = run_json("sizes", "--rows", len(NGRAMS), "--dim", 8, "--codec", "f32")["sizes"]
    assert told["rows_bytes"] == stats["file_bytes"]["base-000001.rows"]
    assert told["index_bytes"] == stats["file_bytes"]["base-000001.index"]


def test_compact_backup_verify_and_repair(tmp_path, stores):
    path = tmp_path / "store"
    run("backup", stores[0], path)
    assert "all is well" in run("verify", path)
    assert "nothing to merge" in run("compact", path)
    with ngs.open(path, mode="rw") as store:
        store.put([(7,)], ROWS[:1])
    assert run_json("compact", path)["after"]["rows"] == len(NGRAMS) + 1
    rows = next(path.glob("*.rows"))
    flip(rows, 4096)
    (fault,) = run_json("verify", path, code=1)["faults"]
    assert (fault["file"], fault["offset"]) == (rows.name, 4096)
    assert f"{rows.name} at byte 4096" in run("verify", path, code=1)
    assert len(run_json("repair", path, "--dry-run", code=1)["lost"]) == 1
    assert len(run_json("repair", path, "--out", tmp_path / "saved", code=1)["lost"]) == 1
    assert run("repair", path, code=1).startswith("lost: n-gram")
    assert "nothing to repair" in run("repair", path)
    assert run_json("verify", tmp_path / "saved")["is_well"]


def test_demo_of_the_store_is_right_in_every_step(tmp_path):
    (tmp_path / "text").mkdir()
    for i in range(3):
        (tmp_path / "text" / f"{i}{['.py', '.txt', '.md'][i]}").write_text("a b c d, e ж\n" * 200 + f"x{i}\n" * 20)
    result = run_json("demo", "--store", tmp_path / "text", "--out", tmp_path / "out")
    assert result["text"]["files"] == 3
    assert result["text"]["bytes"] == sum(file.stat().st_size for file in (tmp_path / "text").iterdir())
    assert result["get"]["found"] == result["get"]["asked"] == result["build"]["rows"] > 30
    assert result["change"] == result["change"] | {"put": 1000, "reader_sees_it_after_refresh": True}
    assert result["verify"]["faults"] == []
    assert run_json("stats", tmp_path / "out" / "store")["rows"] == result["compact"]["rows"]
    again = ("demo", "--store", tmp_path / "text", "--out", tmp_path / "out")
    assert "already holds a store" in run(*again, code=2)
    (tmp_path / "out" / "store" / "MANIFEST").unlink()
    (tmp_path / "out" / "store" / "BUILDING").write_text("{}\n")  # as if it had been killed
    assert run_json(*again)["verify"]["faults"] == []


def test_help_lists_every_command_without_importing_any():
    code = (
        "import sys; from ngramstore.cli.main import cli; cli(['--help'], standalone_mode=False);"
        "print([name for name in ('numpy', 'numba', 'torch', 'rocksdict', 'tqdm') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], env=_environment(), capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"
    for name, short in CORE_COMMANDS.items():
        assert re.search(rf"^  {name} +{re.escape(short)}$", done.stdout, re.M)


def test_help_begins_with_the_demo_and_groups_the_commands_as_the_readme_does():
    told = run("--help")
    assert told.index("New here? `ngramstore demo --quick`") < told.index("An embedded key-value store")
    readme = (ROOT / "README.md").read_text()
    for group, names in GROUPS.items():
        there = [name for name in names if name in cli.list_commands(click.Context(cli))]
        section = told[told.index(f"\n{group}:\n") :].split("\n\n")[0]
        assert re.findall(r"^  (\w+)", section, re.M) == there
        assert re.search(rf"{re.escape(' | '.join(names))} +{re.escape(group[0].lower() + group[1:])}\n", readme)
    assert {name for names in GROUPS.values() for name in names} == set(CORE_COMMANDS) | set(_OTHERS)


def test_commands_of_other_packages_come_last_and_those_without_their_extra_are_listed(monkeypatch):
    def entry(value: str) -> EntryPoint:
        return EntryPoint("", f"{value}:command", "ngramstore.commands")

    entries = {"brew": entry("teapot.cli"), "train": entry("ngramstore_torch.not_there")}
    monkeypatch.setattr("ngramstore.cli.main._entry_points", lambda: entries)
    told = run("--help")
    assert re.search(r"^  train +Train a decoder", told, re.M)
    assert re.search(r"\n\nFrom other packages:\n  brew +From teapot\.\n$", told)
    monkeypatch.setattr("ngramstore.cli.main._entry_points", dict)
    assert "From other packages" not in run("--help") and "export" not in run("--help")


@pytest.mark.parametrize("command", ["train", "export", "evaluate", "generate"])
def test_a_command_without_the_packages_of_its_extra_names_the_extra(command):
    args = {
        "train": ["--corpus", __file__, "--out", "run"],
        "export": ["--checkpoint", "run", "--vocab", __file__, "--store", "store"],
        "evaluate": ["--checkpoint", "run", "--vocab", __file__, "--corpus", __file__],
        "generate": ["--checkpoint", "run", "--store", "store", "--prompt", "a"],
    }[command]
    code = f"import sys; sys.modules['torch'] = None\nfrom ngramstore.cli.main import cli\ncli({[command, *args]!r})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 2, done.stderr
    assert "needs the package 'torch'" in done.stderr and "pip install" in done.stderr


def test_names_of_an_integration_without_its_packages_name_the_extra():
    code = """import sys; sys.modules["torch"] = None
from ngramstore.errors import MissingExtra
import ngramstore_torch, ngramstore_transformers
for module, name in ((ngramstore_torch, "NGramEmbedding"), (ngramstore_transformers, "attach")):
    try:
        getattr(module, name)
    except MissingExtra as error:
        print(error.hint)"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "ngramstore[torch]" in done.stdout and "ngramstore[transformers]" in done.stdout


def test_a_mistyped_command_names_the_nearest():
    assert "No such command 'bulid'. Did you mean `ngramstore build`?" in run("bulid", code=2)
    assert "Did you mean `ngramstore verify`?" in run("verfiy", "store/", code=2)
    assert "Did you mean" not in run("xyzzy", code=2)


def test_every_option_of_every_command_says_what_it_does():
    for name in cli.list_commands(click.Context(cli)):
        try:
            command = cli.get_command(click.Context(cli), name)
        except MissingExtra:
            continue
        assert command is not None
        for option in command.params:
            assert isinstance(option, click.Argument) or option.help, (name, option.name)


def test_the_list_says_what_each_command_says_of_itself():
    for name, short in CORE_COMMANDS.items():
        command = cli.get_command(click.Context(cli), name)
        assert command is not None and (command.name, command.short_help) == (name, short)
    pytest.importorskip("torch")
    for name, short in _OTHERS.items():
        command = cli.get_command(click.Context(cli), name)
        assert command is not None and command.short_help == short


@pytest.mark.parametrize(("command", "other"), [("warm", "warmup"), ("warmup", "warm")])
def test_help_of_warm_and_of_warmup_points_to_the_other_in_its_first_line(command, other):
    first = run(command, "--help").split("\n\n")[1].strip().splitlines()[0]
    assert f"`ngramstore {other}`" in first


def test_the_page_of_the_command_line_is_up_to_date():
    pytest.importorskip("torch")
    from ngramstore.cli.document import document

    page = (ROOT / "docs" / "cli.md").read_text()
    hint = "docs/cli.md is out of date: python -m ngramstore.cli.document > docs/cli.md"
    assert page.split() == document().split(), hint  # other releases of click break lines elsewhere


def test_errors_are_one_line_and_a_hint_and_verbose_shows_the_traceback(tmp_path):
    told = run("stats", tmp_path, code=2)
    assert told.startswith(f"error: {tmp_path} holds no store") and "\n  hint: " in told
    assert "Traceback" not in told
    assert "Traceback" in run("--verbose", "stats", tmp_path, code=2)
    assert "No such command" in run("stat", code=2)


def test_a_bug_of_ours_is_told_apart(monkeypatch, stores):
    def fail(*args, **options):
        raise ZeroDivisionError("impossible")

    monkeypatch.setattr("ngramstore.store.repair.check.examine", fail)
    result = CliRunner().invoke(cli, ["verify", str(stores[0])])
    assert result.exit_code == 3
    assert "ZeroDivisionError: impossible" in result.stderr and "bug" in result.stderr


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        MemoryError("Unable to allocate 9 TiB"),
        type("OutOfMemoryError", (RuntimeError,), {})("CUDA out of memory"),
        RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory"),
    ],
    ids=["python", "numpy", "cuda", "cpu"],
)
def test_too_little_memory_is_no_bug(monkeypatch, stores, error):
    def fail(*args, **options):
        raise error

    monkeypatch.setattr("ngramstore.store.repair.check.examine", fail)
    said = run("verify", stores[0], code=2)
    assert said.startswith("error: out of memory") and "--batch or --memory" in said and "bug" not in said


def test_ctrl_c_is_told_apart_from_faults_found(monkeypatch, stores):
    def stop(*args, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr("ngramstore.store.repair.check.examine", stop)
    result = CliRunner().invoke(cli, ["verify", str(stores[0])])
    assert (result.exit_code, result.stderr) == (130, "stopped\n")


def test_long_work_shows_a_bar_on_stderr_unless_told_to_be_quiet(tmp_path, stores):
    path = tmp_path / "store"
    for command in (
        ["backup", stores[0], path],
        ["verify", path],
        ["compact", path],
        ["repair", path, "--out", tmp_path / "new"],
    ):
        if command[0] == "compact":
            with ngs.open(path, mode="rw") as store:
                store.put([(7,)], rows_of([7], 8))
        if command[0] == "repair":
            rows = next(path.glob("base-*.rows"))
            rows.write_bytes(rows.read_bytes()[:-30])
        result = CliRunner().invoke(cli, [str(word) for word in command])
        assert f"{command[0]}:" in result.stderr and "100%" in result.stderr, (command, result.output)
        if command[0] == "verify":
            assert CliRunner().invoke(cli, ["verify", str(path), "--quiet"]).stderr == ""


@pytest.mark.parametrize("words", ["inspect {} --block 0 --json", "--help", "--version", "get --help"])
def test_a_closed_pipe_is_quiet_and_a_full_disk_is_said(stores, words):
    command = [sys.executable, "-m", "ngramstore", *words.format(stores[0]).split()]

    def ends(stdout: int) -> tuple[int, str]:
        done = subprocess.run(
            command, env=_environment(), stdout=stdout, stderr=subprocess.PIPE, text=True, check=False
        )
        os.close(stdout)
        return done.returncode, done.stderr

    reader, writer = os.pipe()
    os.close(reader)
    assert ends(writer) == (141, "")
    if os.path.exists("/dev/full"):
        code, said = ends(os.open("/dev/full", os.O_WRONLY))
        assert code == 2 and said.startswith("error: ") and said.count("\n") == 1, said


def test_a_bar_in_a_log_is_written_now_and_then():
    code = (
        "import sys; sys.argv[1:] = ['--version']\n"
        "from ngramstore.cli.main import main\n"
        "try: main()\n"
        "except SystemExit: pass\n"
        "from tqdm import tqdm; bar = tqdm(); print(bar.mininterval, bar.maxinterval)"
    )
    for given, wanted in (({}, "30.0 30.0"), ({"TQDM_MININTERVAL": "5"}, "5.0 30.0")):
        env = _environment() | given
        done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True)
        assert done.stdout.splitlines()[-1] == wanted


@pytest.mark.slow
def test_after_warmup_a_process_compiles_nothing(tmp_path, stores):
    env = _environment() | {"NUMBA_CACHE_DIR": str(tmp_path)}
    warm = [sys.executable, "-m", "ngramstore", "warmup", "--json"]
    done = subprocess.run(warm, env=env, capture_output=True, text=True, check=True)
    result = json.loads(done.stdout)
    assert result["is_kept"] and result["folders"][0].startswith(str(tmp_path))
    before = set(tmp_path.rglob("*.nbc"))
    lookup = [sys.executable, "-m", "ngramstore", "lookup", str(stores[0]), "--tokens", "1 2 3"]
    subprocess.run(lookup, env=env, capture_output=True, check=True)
    assert before and set(tmp_path.rglob("*.nbc")) == before


@pytest.mark.parametrize(
    ("text", "size"),
    [("800000", 800000), ("512MiB", 512 << 20), ("2 GiB", 2 << 30), ("1.5k", 1500), ("3GB", 3 * 10**9)],
)
def test_sizes_are_written_as_people_write_them(text, size):
    assert common.ByteSize().convert(text, None, None) == size


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("1B", 10**9),
        ("2.5M", 2_500_000),
        ("100k", 100_000),
        ("1,000", 1000),
        ("12,345,678", 12_345_678),
        ("1,000.5k", 1_000_500),
    ],
)
def test_counts_are_written_as_people_write_them(text, count):
    assert common.Count().convert(text, None, None) == count


@pytest.mark.parametrize("text", ["", "GiB", "-1", "1X", "1 2"])
def test_other_words_are_no_size(text):
    for kind in (common.ByteSize(), common.Count()):
        with pytest.raises(click.BadParameter):
            kind.convert(text, None, None)


@pytest.mark.parametrize("text", ["2,5M", "1,00", "1,0000", "1000,000", ",100", "1,,000", "1,000,5"])
def test_a_comma_is_no_decimal_point(text):
    with pytest.raises(click.BadParameter, match="is not a count"):
        common.Count().convert(text, None, None)


@pytest.mark.parametrize("text", ["3_14", "-3", "+3", "3.0", "٣", "3;14", "1, x"])
def test_token_ids_are_written_in_digits(text):
    with pytest.raises(UsageError, match="is not a list of token ids"):
        common.as_ngram(text)
    assert common.as_ngram("[3, 14]\n") == common.as_ngram("3 14") == (3, 14)


def _environment() -> dict[str, str]:
    return os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "integrations")])}


def test_files_read_in_many_pieces_give_the_same_store(tmp_path, inputs, monkeypatch):
    rng = np.random.default_rng(0)
    codec = codec_from_spec("int8", 64)
    codes, steps = rng.integers(-127, 128, (500, 64)).astype(np.int8), rng.random(500).astype(np.float32)
    save_file({"codes": codes, "steps": steps, "packed": codec.pack(codes, steps)}, tmp_path / "t.safetensors")
    given = ("build", "--rows", tmp_path / "t.safetensors", "--quiet", "--tensor")
    ngrams = ("build", "--vocab", inputs / "ngrams.txt", "--rows", inputs / "rows.npy", "--codec", "f32", "--quiet")

    def built(name: str) -> list:
        run(*given, "codes", tmp_path / f"{name}-a", "--scales", "steps", "--codec", "int8")
        run(*given, "packed", tmp_path / f"{name}-b", "--encoded", "--dim", 64, "--codec", "int8")
        run(*ngrams, tmp_path / f"{name}-c")
        return [files_of(tmp_path / f"{name}-{letter}") for letter in "abc"]

    whole = built("whole")
    monkeypatch.setattr("ngramstore.cli.row_input.PART_BYTES", 320)  # five rows of codes, seven of numbers and n-grams
    assert built("pieces") == whole


@pytest.mark.parametrize("line", ['{"tokens": "50256"}', "[true, 5]", '{"tokens": {"3": 0}}', "1_000", "[" * 100_000])
def test_lines_that_hold_something_else_are_no_ngrams(tmp_path, line):
    (tmp_path / "ngrams.txt").write_text(f"5 6\n{line}\n")
    np.save(tmp_path / "rows.npy", np.ones((2, 4), np.float32))
    said = run("build", tmp_path / "out", "--vocab", tmp_path / "ngrams.txt", "--rows", tmp_path / "rows.npy", code=2)
    assert "line 2" in said and "is not an n-gram" in said
