"""`wsi-dino check-row`: which average of precision and recall can a published row be?"""

from __future__ import annotations

from typing import Annotated

import typer

from wsi_dino.cli import console
from wsi_dino.cli.options import JsonOption

_SHARE = {"min": 0.0, "max": 1.0, "show_default": False}


def check_row(
    accuracy: Annotated[float, typer.Option("--accuracy", help="As printed, between 0 and 1.", **_SHARE)],
    precision: Annotated[float, typer.Option("--precision", help="As printed.", **_SHARE)],
    recall: Annotated[float, typer.Option("--recall", help="As printed.", **_SHARE)],
    positives: Annotated[
        int,
        typer.Option("--positives", min=1, help="Slides of the positive class in the test set.", show_default=False),
    ],
    negatives: Annotated[
        int,
        typer.Option("--negatives", min=1, help="Slides of the negative class in the test set.", show_default=False),
    ],
    auc: Annotated[float | None, typer.Option("--auc", help="As printed; need not be known.", **_SHARE)] = None,
    decimals: Annotated[int, typer.Option("--decimals", min=1, max=6, help="Digits printed after the point.")] = 3,
    as_json: JsonOption = False,
) -> None:
    """Tell which average a published row can be.

    From accuracy, precision, recall and the classes of the test set: of the positive class, or the mean over
    classes (macro)? Tables that mix the two cannot be compared row by row.
    """
    from wsi_dino.evaluation.averaging import PrintedRow, check_row
    from wsi_dino.evaluation.published import row_check_section

    row = PrintedRow(accuracy, precision, recall, auc, half_unit=0.5 * 10**-decimals)
    check = check_row(row, positives, negatives)
    section = row_check_section(check)
    if as_json:
        console.print_json({"command": "check-row", **section})
        return
    rows = [
        {"average": fit.convention, "verdict": fit.verdict, "off by": f"{fit.deviation:.4f}",
         "sensitivity": fit.sensitivity, "specificity": fit.specificity,
         "AUC between": "{:.3f} and {:.3f}".format(*fit.auc_bounds)}
        for fit in check.fits
    ]  # fmt: skip
    console.print_table(rows, ["average", "verdict", "off by", "sensitivity", "specificity", "AUC between"])
    implied = check.implied_prevalence
    if implied is not None:
        print(
            f"\nOf the positive class, the row implies a share of positives of {implied[0]:.3f} ({implied[1]:.3f} to "
            f"{implied[2]:.3f} by rounding); the test set has {check.prevalence:.3f}."
        )
    print(f"Precision and recall can be of: {check.conclusion}.")
