"""Write the page that compares several runs: `--suite=compare`."""

from typing import Any

from xgen_jax.commands.evaluate_request import EvaluateRequest
from xgen_jax.commands.suites.results import results_folder
from xgen_jax.evaluation.comparison import write_comparison


def compare(request: EvaluateRequest) -> dict[str, Any]:
    assert request.runs is not None
    out = results_folder(request.out, "") / "comparison.html"
    path, names = write_comparison(request.runs, out)
    return {"suite": "compare", "runs": names, "report": str(path)}
