import base64
import io
import json
import re
from html.parser import HTMLParser

import pytest
from made_runs import CATEGORIES, JUDGE, bench_run, curve, everything, lines, trained, training_run
from typer.testing import CliRunner

from memory_r1.bench import html, publish, tabulate
from memory_r1.bench.gather import read
from memory_r1.bench.given import MEASURES
from memory_r1.bench.paper import LOCOMO, LOCOMO_CATEGORIES, SCALE, references
from memory_r1.errors import ConfigError, DataError
from memory_r1.serve.cli import app

BOTH = {"manage": trained(), "answer": trained()}
VOID = {"meta", "img", "source", "br", "link", "input"}
HOSTILE = "<script>alert(1)</script>|'\"&`*x*"


class Page(HTMLParser):
    """Reads a page and refuses tags that don't close in their order."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.open, self.urls, self.words = [], [], [], []
        self.feed(text)
        self.close()
        assert not self.open, f"never closed: {self.open}"

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.urls += [v for name, v in attributes if name in ("src", "srcset", "href")]
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open and self.open.pop() == tag, f"</{tag}> closes nothing"

    def handle_data(self, data):
        self.words.append(data)


def page_of(made, png=b"PNG"):
    """The page of a report whose pictures are not drawn, to be quick."""
    pictures = {id(drawing): png for _, drawing in made.drawings}
    sections = [html.Section(*pair) for pair in zip(made.tables, made.of_table, strict=True)]
    runs = [*made.given.bench, *made.given.training]
    return html.page(made.title, sections, made.of_all, runs, pictures, pictures)


def report_of(*folders, title="A title"):
    return publish.report(read(folders), title)


# Reading


@pytest.mark.parametrize(
    ("files", "told"),
    [
        ({}, r"is no run: expected a folder of `memory-r1 bench`.*found nothing"),
        ({"notes.txt": "x"}, "found notes.txt"),
        ({"predictions.jsonl": ""}, "unfinished benchmark run.*give its bench command again"),
        ({"a/scores.json": "{}", "b/metrics.jsonl": ""}, r"holds some: a, b. Name them: .*/\*"),
        ({"scores.json": "{"}, "can't be read as JSON.*was it cut off"),
        ({"scores.json": "[1]"}, "expected a JSON object"),
        ({"scores.json": '{"em": 1}'}, "expected 'benchmark' and 'overall', got em"),
        (
            {"scores.json": '{"benchmark": "x", "overall": {"f1": "high"}}'},
            "f1 of 'overall' is 'high', not a number",
        ),
        ({"config.toml": "= 1", "metrics.jsonl": "{}\n"}, "is no TOML"),
        ({"config.toml": "", "metrics.jsonl": ""}, "holds no step yet"),
        ({"config.toml": "", "metrics.jsonl": "{}\nx\n{}\n"}, "line 2 is not JSON"),
        ({"config.toml": "", "metrics.jsonl": "7\n"}, "line 1: expected a JSON object, got '7'"),
    ],
)
def test_a_folder_that_is_no_run_is_refused_with_what_was_seen(tmp_path, files, told):
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text, "utf-8")
    with pytest.raises(DataError, match=told):
        read([tmp_path])


def test_a_folder_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(DataError, match="found nothing there"):
        read([tmp_path / "gone"])


def test_reading_changes_nothing_in_a_run_folder(tmp_path):
    run = bench_run(tmp_path / "a", "x")
    with (run / "predictions.jsonl").open("a") as file:
        file.write('{"question_id": "torn')
    before = {path: path.read_bytes() for path in run.rglob("*")}
    made = report_of(run)
    assert len(made.given.bench[0].predictions) == 60
    publish.markdown(made)
    assert {path: path.read_bytes() for path in run.rglob("*")} == before


def test_a_run_that_is_named_twice_counts_once(tmp_path):
    run = bench_run(tmp_path / "a", "x")
    assert len(read([run, tmp_path / "b" / ".." / "a"]).bench) == 1


def test_folders_of_an_older_version_lack_keys_and_are_read(tmp_path):
    new = ("label", "trained", "size", "distillation", "protocol", "curve", "judge", "data_sha256")
    run = bench_run(tmp_path / "a", "", judged=False, without=new, system="/out/grpo-0")
    scores = json.loads((run / "scores.json").read_text())
    del scores["overall"]["intervals"], scores["overall"]["judge"]
    (run / "scores.json").write_text(json.dumps(scores))
    (table,) = report_of(run).tables
    assert (table.runs[0].label, table.protocol, table.sha256) == ("grpo-0", "build", "locomo-sha")
    low, high = table.runs[0].interval("f1")  # made from the predictions
    assert low < table.runs[0].overall["f1"] < high


def test_equal_labels_are_told_apart_by_their_seeds_or_their_folders(tmp_path):
    runs = [bench_run(tmp_path / f"s{i}", "ours", answer=trained(seed=i)) for i in (0, 1)]
    assert [run.label for run in read(runs).bench] == ["ours (seed 0)", "ours (seed 1)"]
    same = [bench_run(tmp_path / f"{i}" / "run", "ours", n=9) for i in ("x", "y")]
    assert [run.label for run in read(same).bench] == ["ours (x/run)", "ours (y/run)"]


@pytest.mark.parametrize(
    ("label", "shown"),
    [
        ("/home/me/out/grpo (~/x/base, ../y/z)", "grpo (base, z)"),
        ("F1/EM, Qwen/Qwen2.5-7B", "F1/EM, Qwen/Qwen2.5-7B"),
        ("http://host/v1#M", "http://host/v1#M"),
        ("out/answer", "out/answer"),
        ("/", "/"),
    ],
)
def test_a_label_shows_the_last_name_of_a_folder(tmp_path, label, shown):
    (run,) = read([bench_run(tmp_path / "a", label)]).bench
    assert run.label == shown


# Tables


def test_runs_of_other_data_split_or_protocol_are_never_in_one_table(tmp_path):
    made = report_of(
        bench_run(tmp_path / "1", "a"),
        bench_run(tmp_path / "2", "b"),
        bench_run(tmp_path / "3", "c", data_sha256="other"),
        bench_run(tmp_path / "4", "d", split="train"),
        bench_run(tmp_path / "5", "e", curve=curve(60.0, 5.0)),
        bench_run(tmp_path / "6", "f", benchmark="msc"),
    )
    assert sorted(len(table.runs) for table in made.tables) == [1, 1, 1, 1, 2]
    titles = [table.title for table in made.tables]
    assert len(set(titles)) == 5  # equal names with other data are told apart
    assert "LoCoMo, split test, locomo.json other" in titles


def test_the_cells_of_a_table_are_the_numbers_of_scores_json(tmp_path):
    folders = [bench_run(tmp_path / "a", "one", 0.4), bench_run(tmp_path / "b", "two", 0.8)]
    made = report_of(*folders)
    grid = tabulate.main(made.tables[0])
    told = {line.cells[0]: dict(zip(grid.headings, line.cells, strict=True)) for line in grid.lines}
    for folder, label in zip(folders, ("one", "two"), strict=True):
        scores = json.loads((folder / "scores.json").read_text())
        overall = scores["overall"]
        assert told[label]["n"] == "60"
        assert told[label]["words"] == str(overall["answer_words"])
        for name, heading in MEASURES.items():
            low, high = overall["intervals"][name]
            assert told[label][heading] == f"{overall[name]} [{low}, {high}]"
        row = next(r for r in publish.as_json(made)["tables"][0]["rows"] if r["label"] == label)
        assert row["overall"].items() >= {k: overall[k] for k in (*MEASURES, "recall@60")}.items()
        for grid_of in tabulate.by_group(made.tables[0], intervals=False):
            cells = next(line.cells for line in grid_of.lines if line.cells[0] == label)
            group = scores["groups"][grid_of.title]
            assert cells[1:3] == (str(group["n"]), str(group["f1"]))


def test_the_difference_to_the_best_baseline_pairs_the_questions(tmp_path):
    made = report_of(
        bench_run(tmp_path / "weak", "weak", 0.2, system="rag-bm25"),
        bench_run(tmp_path / "strong", "strong", 0.5, system="full-context"),
        bench_run(tmp_path / "ours", "ours", 0.9, **BOTH),
    )
    (table,) = made.tables
    assert table.baseline.label == "strong"  # trained runs are no baselines, however good
    ours = next(run for run in table.runs if run.label == "ours")
    found = table.difference(ours, "em")
    gap = ours.overall["em"] - table.baseline.overall["em"]
    assert found.points == pytest.approx(gap, abs=0.11) and found.n == 60
    assert found.low < found.points < found.high
    assert table.difference(table.baseline, "em") is None


def test_a_difference_says_on_how_many_questions_of_both_it_rests(tmp_path):
    made = report_of(
        bench_run(tmp_path / "a", "base", 0.3, n=40),
        bench_run(tmp_path / "b", "ours", 0.9, n=60, **BOTH),
    )
    line = tabulate.main(made.tables[0]).lines[1]
    assert line.cells[-1].endswith(", n = 40")
    assert not any(line.best for line in tabulate.main(made.tables[0]).lines)
    assert any(
        "did not answer the same questions" in note for note in tabulate.notes(made.tables[0])
    )


def test_the_papers_rows_are_marked_and_never_the_best(tmp_path):
    made = report_of(
        bench_run(tmp_path / "a", "low", 0.0), bench_run(tmp_path / "b", "lower", 0.0, n=60)
    )
    (table,) = made.tables
    grid = tabulate.main(table)
    paper = [line for line in grid.lines if line.kind == "paper"]
    assert len(paper) == len(LOCOMO) == 14
    assert all(line.cells[0].startswith("paper: ") and not line.best for line in paper)
    # The paper is better than these two, and still only they can be the best.
    assert any(line.best for line in grid.lines if line.kind == "run")
    assert paper[6].cells[2:5] == ("45.02", "37.51", "62.74")
    groups = {grid.title: grid for grid in tabulate.by_group(table)}
    assert groups[CATEGORIES[1]].lines[-1].cells[2] == "35.73"
    assert not any(line.best for line in groups[CATEGORIES[1]].lines if line.kind == "paper")


def test_runs_of_different_judges_are_not_ranked_by_them(tmp_path):
    made = report_of(
        bench_run(tmp_path / "a", "one"),
        bench_run(tmp_path / "b", "two", judge={"name": "x", "prompt_hash": "y"}),
    )
    (table,) = made.tables
    column = tabulate.main(table).headings.index("J")
    assert not any(column in line.best for line in tabulate.main(table).lines)
    notes = " ".join(tabulate.notes(table))
    assert "can't be compared" in notes and "J of two by x, prompt y" in notes
    assert f"J of one by {JUDGE['name']}, prompt {JUDGE['prompt_hash']}" in notes


def test_a_judges_silence_counts_on_neither_side_of_a_difference(tmp_path):
    base = bench_run(tmp_path / "a", "base", 0.3)
    ours = bench_run(tmp_path / "b", "ours", 0.9, **BOTH)
    rows = [json.loads(line) for line in (ours / "judgements.jsonl").read_text().splitlines()]
    for row in rows[:15]:
        row["verdict"] = None
    lines(ours / "judgements.jsonl", rows)
    (table,) = report_of(base, ours).tables
    assert table.difference(table.runs[1], "judge").n == 45


def test_msc_has_its_own_measure_beside_the_others(tmp_path):
    (table,) = report_of(bench_run(tmp_path / "a", "x", benchmark="msc")).tables
    grid = tabulate.main(table, intervals=False)
    assert grid.lines[0].cells[grid.headings.index("R-L")] == "0.0"
    assert "R-L" not in tabulate.main(report_of(bench_run(tmp_path / "b", "x")).tables[0]).headings


# The paper's numbers


def test_the_papers_categories_have_its_overall_only_under_locomos_numbers():
    """The check that shows which category its names mean: questions of the test split by number."""
    questions = {1: 239, 2: 258, 3: 83, 4: 727}
    mean = sum(questions[n] * row.f1 for n, row in LOCOMO_CATEGORIES.items()) / 1307
    assert mean == pytest.approx(45.02, abs=0.01)


def test_the_papers_rows_belong_to_its_own_protocol():
    assert references("locomo", "test", "build") == LOCOMO
    assert references("locomo", "train", "build") == references("locomo", "test", "stream") == ()
    assert references("world", "test", "build") == ()
    assert {row.f1 for row in references("longmemeval", "test", "build")} == {31.3, 45.2, 46.7}
    assert dict(SCALE["grpo"])[14] == 44.40


# The page


def test_the_page_is_well_formed_and_needs_nothing_else(tmp_path):
    made = report_of(*everything(tmp_path))
    text = page_of(made)
    page = Page(text)
    assert all(url.startswith("data:image/png;base64,") for url in page.urls)
    assert not re.search(r"https?://|@import|url\(", text)
    assert "script" not in page.tags and page.tags.count("h1") == 1
    assert page.tags.count("caption") == page.tags.count("table")
    assert page.tags.count("img") == len(list(made.drawings)) == 13
    assert "prefers-color-scheme: dark" in text and "viewport" in text


def test_a_hostile_label_acts_nowhere(tmp_path):
    players = {"extract": HOSTILE, "manage": HOSTILE, "answer": HOSTILE}
    runs = [
        bench_run(
            tmp_path / f"{i}", f"{i} {HOSTILE}", data=HOSTILE, players=players, split=HOSTILE,
            system=f"{HOSTILE}", judge={"name": HOSTILE, "prompt_hash": HOSTILE},
            groups={1: HOSTILE}, answer=trained(HOSTILE, HOSTILE, HOSTILE, i), size=float(i),
        )
        for i in (1, 2)
    ]  # fmt: skip
    runs.append(training_run(tmp_path / "t"))
    made = report_of(*runs, title=HOSTILE)
    page = Page(page_of(made))
    assert "script" not in page.tags
    assert HOSTILE in "".join(page.words)
    markdown = publish.markdown(made)
    assert "<script" not in markdown
    for line in markdown.splitlines():
        if line.startswith("|"):
            assert len(re.findall(r"(?<!\\)\|", line)) in (9, 8)  # a label opens no cell


def test_the_captions_name_the_judge_and_the_seeds(tmp_path):
    made = report_of(
        bench_run(tmp_path / "a", "x", **BOTH), bench_run(tmp_path / "b", "y", answer=trained())
    )
    text = page_of(made)
    assert "J by openai:judge, prompt 0123456789ab" in text
    assert "training seed 0" in text and "n = 60 questions" in text


# Files and command


def test_the_command_writes_the_page_its_numbers_and_its_figures(tmp_path):
    runs = [
        bench_run(tmp_path / "a", "base", 0.3),
        bench_run(tmp_path / "b", "ours", 0.9, **BOTH),
        training_run(tmp_path / "t"),
    ]
    out = tmp_path / "report"
    words = ["report", *map(str, runs), "--out", str(out), "--title", "What came out"]
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 0, done.output
    assert "LoCoMo, split test, locomo.json" in done.stdout and str(out) in done.stdout
    assert "paper: LoCoMo" in done.stdout
    page = Page((out / "report.html").read_text("utf-8"))
    assert "What came out" in page.words
    told = json.loads((out / "report.json").read_text("utf-8"))
    drawn = [*told["tables"][0]["figures"], *told["figures"]]
    files = {out / figure["file"] for figure in drawn if "file" in figure}
    assert files == set((out / "figures").iterdir()) and len(files) == 2
    inline = {url.partition("base64,")[2] for url in page.urls}
    for path in files:
        data = path.read_bytes()
        assert base64.b64encode(data).decode() in inline
        from matplotlib import image

        assert image.imread(io.BytesIO(data)).std() > 0.02
    assert (out / "tables.md").read_text("utf-8").startswith("# What came out")


def test_a_report_is_replaced_only_when_asked_and_nothing_else_ever(tmp_path):
    made = report_of(training_run(tmp_path / "t", steps=3))
    out = tmp_path / "out"
    publish.write(made, out)
    (out / "figures" / "old-figure.png").write_bytes(b"")
    with pytest.raises(ConfigError, match="--force"):
        publish.write(made, out)
    publish.write(made, out, force=True)
    assert {path.name for path in (out / "figures").iterdir()} == {"curves.png"}
    for folder in (tmp_path / "t", tmp_path):
        with pytest.raises(ConfigError, match="holds more than a report"):
            publish.write(made, folder, force=True)
    with pytest.raises(ConfigError, match="is a file"):
        publish.write(made, tmp_path / "t" / "run.json")


def test_the_command_refuses_in_a_sentence(tmp_path):
    done = CliRunner().invoke(app, ["report", str(tmp_path), "--out", str(tmp_path / "o")])
    assert done.exit_code == 1 and "is no run" in done.stderr
    assert not (tmp_path / "o").exists()


def test_json_is_the_content_of_report_json(tmp_path):
    run, out = training_run(tmp_path / "t", steps=3), tmp_path / "o"
    done = CliRunner().invoke(app, ["report", str(run), "--out", str(out), "--json"])
    assert json.loads(done.stdout) == json.loads((out / "report.json").read_text("utf-8"))
