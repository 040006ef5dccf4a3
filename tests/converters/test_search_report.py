"""The reports of a search, and what it keeps."""

from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from msgspec import Struct
from numpy.typing import NDArray

from edgefleet_converters.compatibility import boards
from edgefleet_converters.compatibility.facts import Facts
from edgefleet_converters.compatibility.releases import Asked
from edgefleet_converters.errors import BadInputError
from edgefleet_converters.recipes.recipe import Recipe
from edgefleet_converters.searching import cache as caches
from edgefleet_converters.searching import report, report_html, report_markdown, study, targets
from edgefleet_converters.searching.budgets import BudgetPlan, Budgets
from edgefleet_converters.searching.cache import Cache
from edgefleet_converters.searching.found import Found
from edgefleet_converters.searching.trying import Tried
from edgefleet_converters.steps.registry import Model
from edgefleet_protocol.manifest import Signature
from tests.converters.search_values import around, candidate, digest, float32, found

SENSITIVITY = [
    {"layer": "conv_1", "op": "Conv", "loss": 0.02, "bytes": 4096},
    {"layer": "dense <1>", "op": "Gemm", "loss": 0.001, "bytes": 128},
]


@pytest.fixture
def whole() -> Found:
    """A search with a variant for every fate."""
    return found(
        float32(),
        candidate("int8", kernels=["int8"], notes={"sensitivity": SENSITIVITY}),
        candidate("big", 3000),
        candidate("slow", 1000, 90.0, against={"fp32": around(3.0)}, runtime="litert"),
        candidate("broken", faults=["3 scores are not finite"]),
        plan=BudgetPlan(Budgets(max_bytes=3500), {"pico": Budgets(max_bytes=100)}),
    )


class _Page(HTMLParser):
    """Collects text and every address that a browser would load."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.text: list[str] = []
        self.loads: list[str] = []
        self.open: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.loads += [value or "" for name, value in attrs if name in ("src", "href")]
        self.open.append(tag)

    def handle_data(self, data: str) -> None:
        self.text.append(data)


def test_the_page_shows_the_choice_of_every_board_and_every_reason(whole: Found) -> None:
    text = " ".join(" ".join(_Page(report_html.html(whole)).text).split())
    assert "4 variants" not in text
    assert "5 variants of the model were made and run; 1 of 2 boards got one" in text
    assert "Raspberry Pi 5" in text
    assert "no variant qualifies for A small board" in text
    for reason in ("slower than float32", "3 scores are not finite", "over the budget of 100"):
        assert reason in text
    assert "+0.0010 (+0.0000 to +0.0020)" in text


def test_the_page_loads_nothing_and_runs_nothing(whole: Found) -> None:
    page = _Page(report_html.html(whole))
    assert "script" not in page.open
    assert all(address.startswith("#") for address in page.loads), page.loads
    assert "url(http" not in report_html.html(whole)


def test_text_from_models_cannot_become_markup(whole: Found) -> None:
    page = report_html.html(whole)
    assert "dense &lt;1&gt;" in page
    assert "has no &lt;layers&gt;" in page
    assert "<layers>" not in page


def test_the_page_shows_sensitivities_worst_layer_first(whole: Found) -> None:
    text = report_html.html(whole)
    assert text.index("conv_1") < text.index("dense &lt;1&gt;")
    assert 'style="width:100.0%"' in text
    assert 'style="width:5.0%"' in text


def test_equal_findings_give_equal_pages(whole: Found) -> None:
    assert report_html.html(whole) == report_html.html(whole)


def test_markdown_has_one_row_for_each_board_and_variant(whole: Found) -> None:
    lines = report_markdown.markdown(whole).splitlines()
    assert sum(line.startswith("| Raspberry Pi 5 | **int8** | 1,000 |") for line in lines) == 1
    assert sum(line.startswith("| A small board | **none** |") for line in lines) == 1
    assert sum(line.startswith("| `") for line in lines) == 5
    rows = [line for line in lines if line.startswith("| ")]
    assert {line.replace("\\|", "").count("|") for line in rows} == {6, 11}
    assert any(line.startswith("- `slow` (rpi5): slower than float32") for line in lines)


def test_json_comes_back_as_what_was_found(whole: Found) -> None:
    text = msgspec.json.encode(report.as_json(whole))
    assert msgspec.json.decode(text, type=Found) == whole
    assert msgspec.json.decode(text)["front"] == whole.front == ["fp32", "int8"]


class _Entry(Struct, frozen=True):
    name: str
    values: NDArray[np.float64]


def test_the_cache_gives_back_what_it_keeps(tmp_path: Path) -> None:
    cache = Cache(tmp_path / "c")
    assert cache.find("a", _Entry) is None
    cache.keep("a", _Entry("x", np.array([[1.0, 2.0]])))
    again = Cache(tmp_path / "c").find("a", _Entry)
    assert again is not None
    assert again.values.tolist() == [[1.0, 2.0]]
    assert [file.name for file in (tmp_path / "c").iterdir()] == ["a.msgpack"]


def test_an_entry_that_cannot_be_read_counts_as_none(tmp_path: Path) -> None:
    cache = Cache(tmp_path)
    (tmp_path / "a.msgpack").write_bytes(b"\x93\x01")
    assert cache.find("a", _Entry) is None
    cache.keep("a", 3)
    assert cache.find("a", _Entry) is None


def test_a_cache_that_cannot_be_made_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(BadInputError, match="cannot be made"):
        Cache(tmp_path / "file" / "c")


def test_keys_differ_with_anything_that_goes_in() -> None:
    array = np.arange(4.0)
    parts: list[tuple[object, ...]] = [
        (b"a", "b"),
        (b"ab", ""),
        ("b", b"a"),
        (array,),
        (array.reshape(2, 2),),
        (array.astype(np.float32),),
        ({"a": 1},),
    ]
    assert len({caches.key(*part) for part in parts}) == len(parts)
    assert caches.key({"a": 1, "b": 2}) == caches.key({"b": 2, "a": 1})


def test_the_digest_of_a_folder_changes_with_names_and_contents(tmp_path: Path) -> None:
    (tmp_path / "m").mkdir()
    (tmp_path / "m" / "a").write_text("1")
    first = caches.file_digest(tmp_path / "m")
    (tmp_path / "m" / "a").rename(tmp_path / "m" / "b")
    second = caches.file_digest(tmp_path / "m")
    (tmp_path / "m" / "b").write_text("2")
    assert len({first, second, caches.file_digest(tmp_path / "m")}) == 3
    with pytest.raises(BadInputError, match="cannot be read"):
        caches.file_digest(tmp_path / "none")


def test_a_board_gets_the_newest_known_runtime_for_each_format() -> None:
    wanted = targets.target(boards.find("rpi4"))
    assert [asked.runtime for asked in wanted.runtimes] == ["onnxruntime", "ai-edge-litert"]
    small = targets.target(boards.find("rpi-32bit"))
    assert [asked.runtime for asked in small.runtimes] == ["onnxruntime", "tflite-runtime"]


def test_runtimes_that_are_given_are_the_only_ones() -> None:
    wanted = targets.target(boards.find("rpi4"), [Asked("onnxruntime", "1.18")])
    view = targets.view(wanted, {"lite": Facts("tflite", 10)}, {}, [], 0.95)
    assert view.misfits["lite"] == [
        "it is a model of the format tflite; the board has onnxruntime 1.18"
    ]


def test_a_runtime_version_of_which_nothing_is_known_is_refused() -> None:
    with pytest.raises(BadInputError, match=r"9\.9"):
        targets.target(boards.find("rpi4"), [Asked("onnxruntime", "9.9")])


def test_what_another_way_to_the_same_file_found_out_is_kept() -> None:
    """Mixed precision that makes every layer int8 has measured how sensitive each is."""

    class Known:
        def run(self, recipe: Recipe, made: Model, trial: int | None) -> Tried:
            del made, trial
            notes = {"sensitivity": SENSITIVITY} if recipe.name == "mixed" else {"calibrated": 7}
            one = candidate(recipe.name, digest=digest("one file"), notes=notes)
            return Tried(one, None, None)  # type: ignore[arg-type]  # not looked at

    unused: Any = None
    under_way = study._Study(unused, unused, Known(), unused, unused)  # type: ignore[arg-type]
    made = Model("onnx", b"", Signature("score", [], [], ""))
    assert under_way._run(Recipe("int8", "", "onnx", []), made, None) == ""
    under_way.timed["int8"] = under_way.tried["int8"].candidate
    reason = under_way._run(Recipe("mixed", "", "onnx", []), made, None)
    assert reason == "is the same file as int8"
    assert list(under_way.tried) == ["int8"]
    assert under_way.timed["int8"].notes == {"calibrated": 7, "sensitivity": SENSITIVITY}
