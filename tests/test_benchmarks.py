from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


@pytest.mark.parametrize("name", ["map", "roundtrip"])
def test_the_benchmark_runs(name: str, tmp_path: Path) -> None:
    """The benchmark measures every case with every rival, and writes down what it measured."""
    report = tmp_path / "report.json"
    subprocess.run(
        [sys.executable, "-m", f"benchmarks.{name}", "--quick", "--json", report],
        cwd=ROOT,
        stdout=subprocess.DEVNULL,
        timeout=120,
        check=True,
    )
    document = json.loads(report.read_text())

    assert document["facts"]["Python"]
    assert document["cases"] != []
    for case in document["cases"]:
        assert [len(samples["values"]) for samples in case["rivals"].values()] == [1, 1], case["title"]
