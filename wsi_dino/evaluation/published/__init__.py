"""What the DINOv3 benchmark paper (arXiv 2509.06467, version 1) prints: its tables as data, and what they contradict.

The tables are CSV files beside this one, each cell as printed; ``columns.csv`` says what each column means,
in which unit, and which headings the text lost. ``anomalies.yaml`` lists what does not fit together, and
`verify_paper` finds it again. Nothing here reproduces a figure of the paper.
"""

from wsi_dino.evaluation.published.printed_table import SOURCE
from wsi_dino.evaluation.published.slide_tables import (
    PublishedRow,
    PublishedTable,
    published_section,
    row_check_section,
    slide_tables,
    tables_of,
)

__all__ = [
    "SOURCE",
    "PublishedRow",
    "PublishedTable",
    "published_section",
    "row_check_section",
    "slide_tables",
    "tables_of",
]
