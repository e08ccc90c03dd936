"""The report and the index page, on tables as the notebooks save them: the same numbers, what is missing and why, links that lead on."""

import json
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote

import nbformat
import numpy as np
import pandas as pd
import pytest
from nbconvert import HTMLExporter

from vfmgl_lib import __version__
from vfmgl_lib.evaluation.home_means import home_means
from vfmgl_lib.figures import style
from vfmgl_lib.models.teachers import DRAWN
from vfmgl_lib.tools.batch.findings import WEAK_TEACHERS, findings, with_limits
from vfmgl_lib.tools.batch.index_page import TABLE, duration, write_index
from vfmgl_lib.tools.batch.measures import MEASURES, number
from vfmgl_lib.tools.batch.report import SCHEMA, gather_report
from vfmgl_lib.tools.batch.runner import COLUMNS
from vfmgl_lib.tools.batch.story import cell_of, described, read_cells

ROOT = Path(__file__).resolve().parents[2]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("[0-9][0-9]_*.ipynb"))
NAMES = [path.stem for path in NOTEBOOKS]
CENTERS = ("A", 'B "<b>&')
NOTE = f"Teacher: pocket_vit, pre-trained on {DRAWN}, 64 x 64. Data: embedded phantoms (synthetic); profile smoke, seed 0."
METHODS = {"vfmgl": 0.8, "local": 0.75, "fedavg": 0.7, "trivial": 0.5}


def log_row(notebook: str, folder: str = "nuclei", **changes: str) -> dict[str, str]:
    row = dict.fromkeys(COLUMNS, "") | {"folder": folder, "task": "nuclei", "notebook": notebook, "status": "ok", "seconds": "61.4"}
    row |= {"peak_memory_mib": "900", "started": "2026-01-02T03:04:05+00:00", "teacher": "pocket_vit", "device": "cpu", "seed": "0"}
    return row | {"version": __version__} | changes


def home_table(metric: str = "dice", **lead: float) -> pd.DataFrame:
    """From results and tests of made-up numbers, which differ everywhere."""
    about = {"seed": 0, "split_id": "own", "budget": "rounds", "metric": metric}
    rows, tests = [], []
    for method, value in METHODS.items():
        for place, center in enumerate(CENTERS):
            own = value + 0.011 * place
            model = {"method": method, "model_center": center, "test_center": center, "split": "test", "unit": "image", "n": 10 + place}
            rows.append(about | model | {"value": own, "low": own - 0.1, "high": own + 0.07, "reason": ""})
            ahead = {"difference": 0.1, "low": 0.02, "high": 0.18, "patients": 7, "reason": "", "reference": "vfmgl"} | lead
            tests += [about | ahead | {"method": method, "center": center}] if method != "vfmgl" else []
    return home_means(pd.DataFrame(rows), pd.DataFrame(tests), metric, 0)


def save_tables(folder: Path, note: str = NOTE, **changed: pd.DataFrame) -> None:
    """What the notebooks save for the page."""
    counts = [(c, s, 20 + i, 5 + i, 0.5) for i, c in enumerate(CENTERS) for s in ("train", "val", "test")] + [("X", "test", 9, 3, 0.4)]
    kept = [(r, c, 4, 1 - 0.25 * (r - 2) * i) for r in (2, 3) for i, c in enumerate(CENTERS)]
    moved = [(c, r, 0.01 * r * (i + 1), 0.2, 0.05 * r * (i + 1)) for i, c in enumerate(CENTERS) for r in (1, 2, 3)]
    maps = [
        (model, c, 8, 7, 0.3 + shift, 0.1, 0.2 + shift, 0.15 + shift, 0.25 + shift, 0.1 + shift, 0.05 + shift, 0.15 + shift, "", "")
        for shift, model in ((0.03, "trained"), (-0.2, "random weights"))
        for c in (*CENTERS, "all")
    ]
    shares = "inside area gain low high gain_over_place place_low place_high".split()
    sizes = [("paper", "teacher", 86e6, 23.2e9), ("paper", "student", 7.76e6, 12.1e9), ("smoke", "student", 1e5, 1e7)]
    times = [
        (m, d, b, 40.0 * b + len(m), 2.0**28) for m in ("teacher", "student", "student, exported") for d, b in (("cpu", 1), ("cpu", 32))
    ]
    tables = {
        ("01_data_preparation", "counts"): pd.DataFrame(counts, columns=["center", "split", "images", "patients", "positive_share"]),
        ("03_ddbl", "kept_share"): pd.DataFrame(kept, columns=["round", "center", "batches", "kept_share"]),
        ("05_comparison", "home_means"): home_table(),
        ("05_comparison", "deviations"): pd.DataFrame({"setting": ["a", "b"], "paper": 1, "here": 2}),
        ("07_interpretability", "lambda_balance"): pd.DataFrame(moved, columns=["center", "round", "change", "spread", "moved"]),
        ("07_interpretability", "localisation"): pd.DataFrame(
            maps, columns=["model", "center", "images", "patients", *shares, "verdict", "reason"]
        ),
        ("08_lightweight", "counts"): pd.DataFrame(sizes, columns=["settings", "model", "parameters", "macs"]),
        ("08_lightweight", "latency"): pd.DataFrame(times, columns=["model", "device", "batch", "p50_ms", "peak_bytes"]),
    }
    for (notebook, name), table in tables.items():
        style.save_table(changed.get(name, table), folder / "figures" / notebook, name, note)


def execute(folder: Path, name: str, *cells: tuple[str, str, str]) -> None:
    """An executed notebook and its HTML, of (id, text, code)."""
    notebook = nbformat.v4.new_notebook()
    notebook.cells = [nbformat.v4.new_markdown_cell(f"# {name[:2]} · A title: *what* it is", id="title")]
    for identity, text, code in cells:
        notebook.cells += [nbformat.v4.new_markdown_cell(text, id=f"{identity}-text"), nbformat.v4.new_code_cell(code, id=identity)]
    (folder / "notebooks").mkdir(parents=True, exist_ok=True)
    nbformat.write(notebook, folder / "notebooks" / f"{name}.ipynb")
    (folder / "notebooks" / f"{name}.html").write_text(HTMLExporter().from_notebook_node(notebook)[0], encoding="utf-8")


def draw(folder: Path, notebook: str, name: str) -> None:
    style.save_figure(style.empty_figure("x"), pd.DataFrame({"x": [1]}), folder / "figures" / notebook, name)


@pytest.fixture
def results(tmp_path: Path, whole: Path) -> Path:
    """A profile's folder with one task that has everything."""
    return shutil.copytree(whole, tmp_path / "smoke")


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    results = tmp_path_factory.mktemp("whole") / "smoke"
    folder = results / "nuclei"
    execute(
        folder,
        "03_ddbl",
        (
            "kept",
            "## 6 · Result\n\n**The share kept.** Early *rounds* keep ℓ<sub>task</sub>. More.",
            'style.save_figure(f, t, figures, "kept_share")',
        ),
        ("shares", "**One of many.** Said.", 'style.save_figure(f, t, figures, f"{metric}_over_rounds")'),
    )
    draw(folder, "03_ddbl", "dice_over_rounds")
    draw(folder, "03_ddbl", "kept_share")
    draw(folder, "03_ddbl", "an <i>unknown&")
    save_tables(folder)
    return results


LOG = [log_row(name) for name in NAMES]


class Page(HTMLParser):
    """Identifiers, links and tags of a page, and the cells of its tables."""

    def __init__(self, text: str):
        super().__init__()
        self.tags, self.ids, self.links, self.images, self.rows, self.text = [], [], [], [], [], ""
        self._cell = False
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        found = dict(attrs)
        self.tags.append(tag)
        self.ids += [found["id"]] if "id" in found else []
        self.links += [found[key] for key in ("href", "src") if key in found]
        self.images += [found] if tag == "img" else []
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")
        self._cell = tag in ("td", "th") or (self._cell and tag == "span")

    def handle_data(self, data):
        self.text += data
        if self._cell:
            self.rows[-1][-1] += data.strip()

    def row(self, title: str) -> list[str]:
        (found,) = [row for row in self.rows if row and row[0] == title]
        return found[1:]


def page_of(results: Path, log: list[dict[str, str]] = LOG) -> tuple[Page, dict]:
    """The page and the one task of the report."""
    page = Page(write_index(results, log).read_text("utf-8"))
    (task,) = json.loads((results / "report.json").read_text("utf-8"))["tasks"]
    return page, task


def limits_of(one: dict) -> list[float]:
    return [one[name] for name in ("value", "lo", "hi")]


def test_the_numbers_are_those_of_the_tables(results: Path):
    page, task = page_of(results)
    measures = task["measures"]
    assert list(measures) == list(MEASURES) and not any(measures[key]["all"]["reason"] for key in measures)
    home = pd.read_csv(results / measures["vfmgl"]["table"]).fillna({"reference": ""})
    for method in METHODS:
        for row in home[home["method"] == method].to_dict("records"):
            of_centers = {"": measures[method]["all"], **measures[method]["centers"]}
            found = of_centers["" if row["place"] == "mean" else row["center"]]
            assert (found["value"], found["lo"], found["hi"], found["n"]) == (row["value"], row["low"], row["high"], row["n"])
            if method != "vfmgl":
                lead = measures[f"ahead_of_{method}"]
                lead = lead["all"] if row["place"] == "mean" else lead["centers"][row["center"]]
                assert (lead["value"], lead["lo"], lead["hi"]) == (row["ahead"], row["ahead_low"], row["ahead_high"])
    mean = home[(home["method"] == "fedavg") & (home["place"] == "mean")].iloc[0]
    assert page.row("FedAvg")[0] == f"{mean.value:.2f} ({mean.low:.2f} to {mean.high:.2f})" == "0.71 (0.63 to 0.75)"
    assert page.row("over FedAvg")[0] == f"+0.10 (+{0.1 - 0.08 / 2**0.5:.2f} to +{0.1 + 0.08 / 2**0.5:.2f})"
    assert page.row("for training") == ["41 (11)", "", "20 (5)", "21 (6)"] and page.row("for the test")[0] == "50 (14)"
    assert measures["kept_share"]["all"] == number(15 / 16, 0.75, 1, 16) and measures["kept_share"]["centers"]["A"]["value"] == 1
    assert limits_of(measures["lambda_moved"]["all"]) == pytest.approx([0.225, 0.15, 0.3])
    assert limits_of(measures["cam_gain"]["all"]) == pytest.approx([0.23, 0.18, 0.28]) and measures["cam_gain"]["all"]["n"] == 7
    assert measures["cam_inside_random_weights"]["all"]["value"] == pytest.approx(0.1)
    assert page.row("parameters") == ["student 7.8 M · teacher 86.0 M"]
    assert page.row("median time on the processor") == ["student 47 ms · student as ONNX 57 ms · teacher 47 ms"]
    assert page.row("peak memory of the process")[0].startswith("student 256 MiB")
    assert task["centers"] == {"training": list(CENTERS), "external": ["X"], "reason": ""}
    assert (task["metric"], task["metric_title"], task["metric_unit"]) == ("dice", "Dice", "image")
    assert "At home: Dice per image" in page.text


def test_everything_that_the_page_shows_is_a_measure():
    assert {key for lines in TABLE.values() for line in lines for key in line.keys} <= set(MEASURES)


def test_the_schema(results: Path):
    page_of(results)
    report = json.loads((results / "report.json").read_text("utf-8"))
    assert (report["schema"], report["library"], report["profile"]) == (SCHEMA, __version__, "smoke") and "torch" in report["versions"]
    (task,) = report["tasks"]
    assert set(task) == {
        "folder", "runs", "phantoms", "teacher", "seed", "deviations", "centers", "metric", "metric_title", "metric_unit", "measures",
        "notebooks", "figures", "shows", "does_not_show",
    }  # fmt: skip
    provenance = {"task": "nuclei", "data": "", "teacher": "pocket_vit", "device": "cpu", "seed": "0", "version": __version__}
    assert task["runs"] == [provenance] and task["phantoms"] and task["seed"] == 0 and task["deviations"] == 2
    assert task["teacher"] == f"pocket_vit, pre-trained on {DRAWN}, 64 x 64"
    for measure in task["measures"].values():
        assert set(measure) == {"title", "unit", "limits", "notebook", "table", "all", "centers"}
        for one in (measure["all"], *measure["centers"].values()):
            assert set(one) == {"value", "lo", "hi", "n", "reason"}
            assert one["value"] is not None or one["reason"]
            assert (one["lo"] is None) == (one["hi"] is None) and (one["lo"] is None or measure["limits"])
    for notebook in task["notebooks"]:
        assert set(notebook) >= {"name", "title", "status", "error", "seconds", "peak_memory_mib", "source", "page", "version"}
    for figure in task["figures"]:
        assert set(figure) >= {"notebook", "name", "title", "about", "png", "pdf", "csv", "page", "anchor"}


def test_the_same_files_give_the_same_bytes(results: Path):
    first = [write_index(results, LOG).read_bytes(), (results / "report.json").read_bytes()]
    assert first == [write_index(results, LOG).read_bytes(), (results / "report.json").read_bytes()]
    assert not list(results.glob(".*")), "nothing half written is left"


def test_a_page_needs_nothing_from_elsewhere_and_its_links_lead_somewhere(results: Path):
    page, task = page_of(results)
    text = (results / "index.html").read_text("utf-8")
    assert not re.search(r"https?:|//|@import|url\(", text) and "script" not in page.tags and "link" not in page.tags
    (results / "runs.csv").write_text("")  # the runner's
    for link in page.links:
        place, _, anchor = unquote(link).partition("#")
        ids = Page((results / place).read_text("utf-8")).ids if place.endswith(".html") else page.ids
        assert (results / place).exists() if place else anchor, link
        assert not anchor or anchor in ids, link
    assert sum("#cell-id=" in link for link in page.links) == 2 == sum(bool(figure["anchor"]) for figure in task["figures"])
    assert len(set(page.ids)) == len(page.ids)


def test_figures_stand_in_the_order_of_the_cells_with_titles_in_words(results: Path):
    page, task = page_of(results)
    titles = [(figure["title"], figure["about"], figure["anchor"]) for figure in task["figures"]]
    assert titles == [
        ("The share kept", "Early rounds keep ℓ_task. More.", "cell-id=kept"),
        ("One of many", "Said.", "cell-id=shares"),
        ("An <i>unknown&", "", ""),
    ]
    assert [image["alt"].partition(":")[0] for image in page.images] == [title for title, _, _ in titles]
    assert all(image["alt"] and int(image["width"]) > 100 for image in page.images)
    assert page.tags.count("details") == 1, "what no text explains is at hand, but not in the way"


def test_names_are_data(results: Path):
    folder = results / "a <b>\"&'{{ 1 }}"
    (results / "nuclei").rename(folder)
    failed = {"status": "failed", "error": "<script>x</script>"}
    page, task = page_of(results, [log_row(name, folder.name, **failed if name == NAMES[0] else {}) for name in NAMES])
    text = (results / "index.html").read_text("utf-8")
    assert task["folder"] == folder.name and folder.name in page.text and CENTERS[1] in page.text and failed["error"] in page.text
    assert task["centers"]["training"] == sorted(CENTERS), "as the other tables name them"
    assert not {"b", "i", "script"} & set(page.tags) and "<script>x" not in text
    assert all((results / unquote(link)).exists() for link in page.links if link.endswith((".csv", ".png")) and link != "runs.csv")


@pytest.mark.parametrize("status", ["absent", "failed"])
def test_what_has_not_been_run_or_has_failed_is_named(results: Path, status: str):
    failed = [log_row("05_comparison", status="failed", error="ValueError: centre A: no samples")] if status == "failed" else []
    if not failed:
        (results / "nuclei" / "figures" / "05_comparison" / "home_means.csv").unlink()
    page, task = page_of(results, [log_row(name) for name in NAMES if name != "05_comparison"] + failed)
    why = "notebook 05_comparison failed: ValueError: centre A: no samples" if failed else "notebook 05_comparison has not been run"
    assert task["measures"]["vfmgl"]["all"] == number(None, reason=why) and task["measures"]["vfmgl"]["centers"] == {}
    assert page.text.count(why) == 3, "once for the numbers, once for the leads, once for what is not shown"
    assert task["measures"]["kept_share"]["all"]["value"] is not None
    assert {"rule": "leads", "text": f"Whether VFMGL is better than local training, FedAvg or the trivial baseline: {why}."} in task[
        "does_not_show"
    ]


def test_one_notebook_alone_gives_a_page_that_says_what_is_missing(tmp_path: Path):
    folder = tmp_path / "smoke" / "nuclei"
    execute(folder, "02_hgkt")
    style.save_table(pd.DataFrame({"setting": ["a"], "paper": 1, "here": 2}), folder / "figures" / "02_hgkt", "deviations", NOTE)
    page, task = page_of(tmp_path / "smoke", [log_row("02_hgkt")])
    reasons = {measure["all"]["reason"] for measure in task["measures"].values()}
    assert reasons == {f"notebook {name} has not been run" for name in {measure.notebook for measure in MEASURES.values()}}
    assert DRAWN in task["teacher"] and task["deviations"] == 1
    assert task["shows"] == [] and "Nothing that its numbers bear out." in page.text
    assert task["centers"] == {"training": [], "external": None, "reason": "notebook 01_data_preparation has not been run"}


def test_tables_of_another_version_are_left_out(results: Path):
    file = results / "nuclei" / "figures" / "05_comparison" / "home_means.csv"
    file.write_text(file.read_text("utf-8").replace(f"vfmgl_lib {__version__}", "vfmgl_lib 0.1.9"), "utf-8")
    _, task = page_of(results)
    expected = f"vfmgl_lib 0.1.9 saved home_means.csv, this is {__version__}: run notebook 05_comparison again"
    assert task["measures"]["fedavg"]["all"] == number(None, reason=expected)


def test_a_table_that_somebody_has_changed_does_not_keep_the_rest_from_being_shown(results: Path):
    file = results / "nuclei" / "figures" / "03_ddbl" / "kept_share.csv"
    file.write_text(file.read_text("utf-8").replace("kept_share", "share"), "utf-8")
    _, task = page_of(results)
    assert "kept_share.csv is not as notebook 03_ddbl saves it: KeyError" in task["measures"]["kept_share"]["all"]["reason"]
    assert task["measures"]["vfmgl"]["all"]["value"] is not None
    file.write_bytes("round,centre\n2,Mü\n".encode("latin-1"))
    _, task = page_of(results)
    assert task["measures"]["kept_share"]["all"]["reason"].startswith("kept_share.csv cannot be read: 'utf-8' codec")


def test_data_without_lesions_and_a_run_of_one_round(results: Path):
    figures = results / "nuclei" / "figures"
    (figures / "07_interpretability" / "localisation.csv").unlink()
    empty = pd.DataFrame(columns=["round", "center", "batches", "kept_share"])
    style.save_table(empty, figures / "03_ddbl", "kept_share", NOTE)
    page, task = page_of(results)
    assert task["measures"]["cam_gain"]["all"]["reason"] == "nobody has outlined the lesions of these images"
    assert task["measures"]["kept_share"]["all"]["reason"] == "stage II starts in round 2: no batch was kept or dropped"
    told = {one["rule"]: one["text"] for one in task["does_not_show"]}
    assert told["cam"] == "Where the models look: nobody has outlined the lesions of these images."
    assert told["kept_share"].startswith("How DDBL selects: stage II starts")
    assert page.row("movement of λ, in spreads between pairs")[0] == "0.23 (0.15 to 0.30)"


def test_a_centre_without_a_number_is_a_dash_with_its_reason(results: Path):
    table = home_table("auc")
    of_center = (table["method"] == "local") & (table["center"] == "A")
    table.loc[of_center, ["value", "low", "high"]] = np.nan
    table.loc[of_center, "reason"] = "only one class"
    mean = (table["method"] == "local") & (table["place"] == "mean")
    table.loc[mean, ["value", "low", "high"]] = np.nan
    table.loc[mean, "reason"] = "A: only one class"
    style.save_table(table, results / "nuclei" / "figures" / "05_comparison", "home_means", NOTE)
    page, task = page_of(results)
    assert page.row("local training") == ["–", "", "–", "0.76 (0.66 to 0.83)"]
    assert "local training: A: only one class" in page.text
    assert task["metric_title"] == "AUC"


def test_own_data_and_runs_that_differ(results: Path):
    log = [log_row(name, data="/images", seed="1" if name == "05_comparison" else "0") for name in NAMES]
    page, task = page_of(results, log)
    assert not task["phantoms"] and task["seed"] is None and len(task["runs"]) == 2
    assert "not all run alike" in page.text and not {"phantoms", "seed"} & {one["rule"] for one in task["does_not_show"]}


def test_a_folder_that_no_log_knows(results: Path):
    """Notebooks that were run by hand, in JupyterLab: their tables count."""
    page, task = page_of(results, [])
    assert task["measures"]["vfmgl"]["all"]["value"] is not None and task["runs"] == [] and not task["phantoms"]
    assert "A title: what it is" in page.text


def as_task(metric: str = "auc", **numbers: dict) -> dict:
    """A task of the report with these measures; the others are not there."""
    measures = {key: {"all": number(None, reason="not there"), "centers": {}} for key in MEASURES}
    measures |= {key: {"all": one, "centers": {}} for key, one in numbers.items()}
    about = {"metric": metric, "metric_title": metric.upper(), "phantoms": False, "teacher": "vit", "deviations": 0, "seed": None}
    return about | {"measures": measures}


@pytest.mark.parametrize(
    ("numbers", "rule", "shown", "words"),
    [
        (
            {"vfmgl": number(0.7, 0.6, 0.8)},
            "chance",
            True,
            "better than chance: AUC 0.70 (0.60 to 0.80), mean of the centres; chance gives 0.50",
        ),
        ({"vfmgl": number(0.6, 0.5, 0.7)}, "chance", False, "Whether VFMGL's models are better than chance"),
        ({"vfmgl": number(0.3, 0.2, 0.4)}, "chance", True, "worse than chance"),
        ({"ahead_of_fedavg": number(0.1, 0.01, 0.2)}, "ahead_of_fedavg", True, "VFMGL is ahead of FedAvg by 0.10 (0.01 to 0.20) in AUC"),
        ({"ahead_of_fedavg": number(-0.1, -0.2, -0.01)}, "ahead_of_fedavg", True, "VFMGL is behind FedAvg by −0.10 (−0.20 to −0.01)"),
        ({"ahead_of_local": number(0.1, 0.0, 0.2)}, "ahead_of_local", False, "which may be chance"),
        (
            {"ahead_of_local": number(0.1, reason="3 patients")},
            "leads",
            False,
            "local training (+0.10): there is no interval of its lead (3 patients).",
        ),
        ({"kept_share": number(0.75, 0.5, 1, 8)}, "kept_share", True, "DDBL dropped 2 of 8 batches"),
        ({"kept_share": number(1.0, 1, 1, 8)}, "kept_share", False, "it kept all of the 8 batches"),
        ({"lambda_moved": number(0.1, 0.1, 0.1)}, "lambda_moved", True, "Training moved λ: by 0.10"),
        ({"lambda_moved": number(0.09, 0, 0.2)}, "lambda_moved", False, "that of the initial weights"),
    ],
)
def test_a_sentence_follows_from_its_numbers(numbers: dict, rule: str, shown: bool, words: str):
    said = findings(as_task(**numbers))
    assert words in " ".join(one["text"] for one in said["shows" if shown else "does_not_show"] if one["rule"] == rule)
    assert rule not in {one["rule"] for one in said["does_not_show" if shown else "shows"]}


@pytest.mark.parametrize(
    ("gain", "place", "shown"),
    [
        (number(0.2, 0.1, 0.3), number(0.1, 0.01, 0.2), True),
        (number(0.2, 0.1, 0.3), number(0.1, -0.01, 0.2), False),
        (number(0.2, 0.1, 0.3), number(0.1), False),
    ],
)
def test_maps_point_at_the_lesion_only_where_both_intervals_say_so(gain: dict, place: dict, shown: bool):
    found = {"cam_inside": number(0.3), "cam_chance": number(0.1), "cam_gain": gain, "cam_gain_over_place": place}
    said = findings(as_task(**found))
    assert ("cam" in {one["rule"] for one in said["shows"]}) is shown
    assert ("cam" in {one["rule"] for one in said["does_not_show"]}) is not shown


def test_a_centre_whose_maps_avoid_the_lesion_is_named():
    found = {"cam_inside": number(0.3), "cam_chance": number(0.1), "cam_gain": number(0.2, 0.1, 0.3)}
    task = as_task(**found, cam_gain_over_place=number(0.1, 0.01, 0.2))
    task["measures"]["cam_gain"]["centers"] = {"A": number(-0.1, -0.2, -0.05), "B": number(-0.1, -0.2, 0.05), "C": number(0.7, 0.6, 0.8)}
    said = next(one["text"] for one in findings(task)["shows"] if one["rule"] == "cam")
    assert said.endswith(" Not so at A, where it is less than chance.")


def test_a_dice_has_no_chance_and_weak_teachers_are_named():
    said = findings(as_task("dice", vfmgl=number(0.7, 0.6, 0.8)) | {"teacher": f"x, {DRAWN}", "phantoms": True, "deviations": 3, "seed": 4})
    rules = [one["rule"] for one in said["does_not_show"]]
    assert {"phantoms", "teacher", "deviations", "seed"} <= set(rules) and "chance" not in rules and said["shows"] == []
    assert DRAWN in WEAK_TEACHERS


def test_numbers_in_words():
    assert with_limits(number(0.5)) == "0.50" and with_limits(number(None)) == "–" and with_limits(number(1.0, 1.0, 1.0)) == "1.00"
    assert with_limits(number(float("nan"), float("inf"))) == "–"
    assert with_limits(number(-0.5, -0.6, -0.4), "+.0%") == "−50\u00a0% (−60\u00a0% to −40\u00a0%)"
    assert with_limits(number(-0.001, -0.004, 0.004)) == "0.00 (0.00 to 0.00)"
    assert [duration(seconds) for seconds in (41.7, 59.6, 185)] == ["42 s", "1 min 00 s", "3 min 05 s"]


@pytest.mark.parametrize(
    ("text", "title", "about"),
    [
        ("**Lead.** One. Two.", "Lead", "One. Two."),
        ("## 6 · Result\n\n**A *b* <sub>c</sub>.** See [this](there.md) and `code`.", "A b _c", "See this and code."),
        ("**Who** (some only). The rest.", "Who", "The rest."),
        ("**Parts.** (a) One, (b) two.", "Parts", "(a) One, (b) two."),
        ("No lead. **Bold** later.", "", ""),
        ("## Heading only", "", ""),
        ("**Lead.** Geiping et al. (2020) did it. " + "Long " * 60 + ".", "Lead", "Geiping et al. (2020) did it."),
    ],
)
def test_what_a_text_says_of_its_figure(text: str, title: str, about: str):
    assert described(text) == (title, about)


def test_a_file_that_is_no_notebook_has_no_story(tmp_path: Path):
    (tmp_path / "x.ipynb").write_text("no JSON")
    assert read_cells(tmp_path / "x.ipynb") == ("", []) == read_cells(tmp_path / "none.ipynb")


@pytest.mark.parametrize("path", NOTEBOOKS, ids=NAMES)
def test_every_figure_of_the_notebooks_has_a_title_and_a_cell(path: Path):
    """So a new figure's text begins with its title, in bold."""
    title, cells = read_cells(path)
    assert re.fullmatch(r"\d\d · \S.+", title) and cells
    saved = re.compile(r"""save_(?:figure|drawn)\(.*\bfigures, f?"([^"]+)\"""")
    names = [name for cell in cells for name in saved.findall(cell.source)]
    assert names
    for name in names:
        drawn_as = name.replace("{metric}", "auc").replace("{second}", "accuracy")
        cell = cell_of(drawn_as, cells)
        assert cell is not None and f'"{name}"' in cell.source, name
        assert cell.identity and (cell.title or name == "examples" or path.stem[:2] == "09"), f"{name}: no bold title above {cell.identity}"


def test_what_the_page_reads_is_what_the_notebooks_save():
    for measure in MEASURES.values():
        source = (ROOT / "notebooks" / f"{measure.notebook}.ipynb").read_text("utf-8")
        assert re.search(rf'figures, \\"{measure.table}\\"', source), f"{measure.notebook} saves no {measure.table}"


def test_gathering_writes_nothing(results: Path):
    before = sorted(results.rglob("*"))
    assert gather_report(results, LOG)["tasks"] and sorted(results.rglob("*")) == before
