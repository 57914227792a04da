"""Whole copies of the public cohorts' layouts with tiny pictures; numbers as their publishers state them."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Sequence
from pathlib import Path
from xml.sax.saxutils import escape

import numpy as np

TIFF = (  # one white pixel, grey
    b"II*\0\x08\0\0\0\x08\0"
    + b"".join(
        tag.to_bytes(2, "little") + b"\x04\0\x01\0\0\0" + value.to_bytes(4, "little")
        for tag, value in ((256, 1), (257, 1), (258, 8), (259, 1), (262, 1), (273, 8), (278, 1), (279, 1))
    )
    + b"\0\0\0\0"
)
JPEG = b"\xff\xd8\xff\xe0tiny\xff\xd9"

# Camelyon16 --------------------------------------------------------------------------------------
C16_TUMOR = (
    "001", "002", "004", "008", "010", "011", "013", "016", "021", "026", "027", "029", "030", "033", "038", "040",
    "046", "048", "051", "052", "061", "064", "065", "066", "068", "069", "071", "073", "074", "075", "079", "082",
    "084", "090", "092", "094", "097", "099", "102", "104", "105", "108", "110", "113", "114", "116", "117", "121",
    "122",
)  # fmt: skip


def reference_lines() -> list[str]:
    """Rows of reference.csv for all 130 test slides, as published: no header."""
    lines = []
    for number in range(1, 131):
        name = f"{number:03}"
        lines.append(f"test_{name},Tumor,IDC,Macro" if name in C16_TUMOR else f"test_{name},Normal,,")
    return lines


def make_camelyon16(folder: Path) -> None:
    """Write 160 normal, 111 tumor and 130 test slides; test_049 and normal_086 are among them."""
    for kind, n in (("normal", 160), ("tumor", 111)):
        (folder / "training" / kind).mkdir(parents=True)
        for number in range(1, n + 1):
            (folder / "training" / kind / f"{kind}_{number:03}.tif").write_bytes(TIFF)
    (folder / "testing/images").mkdir(parents=True)
    for number in range(1, 131):
        (folder / "testing/images" / f"test_{number:03}.tif").write_bytes(TIFF)
    (folder / "testing/reference.csv").write_text("\n".join(reference_lines()) + "\n")


# Camelyon17 --------------------------------------------------------------------------------------
ITC = (
    "004_4", "005_3", "005_4", "006_2", "006_4", "009_0", "014_3", "015_4", "016_1", "017_1", "018_4", "024_1",
    "024_2", "024_4", "026_0", "029_2", "037_1", "038_4", "040_2", "041_0", "060_3", "064_0", "064_3", "067_3",
    "068_1", "068_4", "072_0", "076_4", "080_0", "080_1", "081_4", "086_0", "086_4", "087_0", "087_1", "088_4",
)  # fmt: skip
# first and last patient of a group, and how many of its slides hold a metastasis
_GROUPS = ((0, 19, 25), (20, 39, 35), (40, 59, 23), (60, 69, 32 - 13), (70, 79, 13), (80, 99, 31))


def stage_of() -> dict[str, str]:
    """Stage of each of 500 slides: 318 negative, 36 itc, 59 micro, 87 macro, spread as published over the centres."""
    stages, tumours = {}, []
    for first, last, n_tumour in _GROUPS:
        names = [f"{p:03}_{n}" for p in range(first, last + 1) for n in range(5)]
        stages |= {name: "itc" if name in ITC else "negative" for name in names}
        tumours += [name for name in names if name not in ITC][:n_tumour]
    stages |= {name: "micro" if place < 59 else "macro" for place, name in enumerate(tumours)}
    return stages


def node(name: str) -> str:
    """``004_4`` -> ``patient_004_node_4``."""
    patient, _, number = name.partition("_")
    return f"patient_{patient}_node_{number}"


def make_camelyon17(folder: Path, *, new: bool = False) -> None:
    """Write 500 slides and the older table of stages with rows of whole patients, or the newer one with centres."""
    lines = ["patient,stage,center"] if new else ["patient,stage"]
    for name, stage in stage_of().items():
        centre = int(name[:3]) // 20
        place = folder / ("images" if new else f"training/center_{centre}") / f"{node(name)}.tif"
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(TIFF)
        tail = f",{centre}" if new else ""
        if name.endswith("_0"):
            lines.append(f"patient_{name[:3]}.zip,pN0{tail}")
        lines.append(f"{node(name)}.tif,{stage}{tail}")
    (folder / ("stages.csv" if new else "training/stage_labels.csv")).write_text("\n".join(lines) + "\n")


# BCNB --------------------------------------------------------------------------------------------
BCNB_HEADER = [
    "Patient ID", "Age(years)", "Tumour Size(cm)", "Tumour Type", "ER", "PR", "HER2", "HER2 Expression",
    "Histological grading", "Surgical", "Ki67", "Molecular subtype", "Number of lymph node metastases", "ALN status",
]  # fmt: skip
BCNB_SPLIT = {"train": (390, 240), "val": (131, 79), "test": (134, 84)}  # N0, N+


def bcnb_patients() -> list[tuple[str, str, list[object]]]:
    """Return ``(patient, subset, row)`` of 1,058 patients with the published counts; Ki67 is 0 to 100."""
    random = np.random.default_rng(0)
    order = random.permutation(1058) + 1
    statuses = [(subset, status) for subset, (n0, n) in BCNB_SPLIT.items() for status in ["N0"] * n0 + ["N+"] * n]
    signs = {}
    for name, positive in (("ER", 831), ("PR", 790), ("HER2", 277)):
        signs[name] = random.permutation(["Positive"] * positive + ["Negative"] * (1058 - positive))
    patients = []
    for place, (number, (subset, status)) in enumerate(zip(order.tolist(), statuses, strict=True)):
        aln = status if status == "N0" else ("N+(1-2)", "N+(>2)")[place % 2]
        values: list[object] = [number, 50, 2.5, "Invasive ductal carcinoma", *(str(signs[s][place]) for s in signs)]
        values += ["2+", "" if place % 9 == 0 else 2, "Mastectomy", place % 101, "Luminal A", int(status != "N0"), aln]
        patients.append((str(number), subset, values))
    return sorted(patients, key=lambda patient: int(patient[0]))


def make_bcnb(folder: Path) -> None:
    """Write 1,058 slides, tumour polygons for every fiftieth, the clinical table and the dataset's own split."""
    (folder / "WSIs").mkdir(parents=True)
    (folder / "dataset-splitting").mkdir()
    patients = bcnb_patients()
    write_xlsx(folder / "patient-clinical-data.xlsx", [BCNB_HEADER, *(row for _, _, row in patients)])
    square = {"positive": [{"vertices": [[10, 10], [90, 10], [90, 90], [10, 90]]}], "negative": []}
    for patient, _, _ in patients:
        (folder / "WSIs" / f"{patient}.jpg").write_bytes(JPEG)
        if int(patient) % 50 == 0:
            (folder / "WSIs" / f"{patient}.json").write_text(json.dumps(square))
    for subset in BCNB_SPLIT:
        names = [patient for patient, of, _ in patients if of == subset]
        (folder / "dataset-splitting" / f"{subset}_id.txt").write_text("\n".join(names) + "\n")
    (folder / "patches/7").mkdir(parents=True)
    (folder / "patches/7/12.jpg").write_bytes(JPEG)  # a tile called like a slide


# a workbook --------------------------------------------------------------------------------------
_MAIN = 'xmlns="http://schemas.openxmlformats.org/spreadsheetml/2006/main"'
_OFFICE = "http://schemas.openxmlformats.org/officeDocument/2006/relationships"
_PACKAGE = 'xmlns="http://schemas.openxmlformats.org/package/2006/relationships"'


def write_xlsx(path: Path, rows: Sequence[Sequence[object]], percent_columns: Sequence[int] = ()) -> None:
    """Write one sheet: texts shared, numbers as numbers, an empty text as no cell at all (as spreadsheets do)."""
    texts: dict[str, int] = {}
    lines = []
    for number, row in enumerate(rows, 1):
        cells = []
        for column, value in enumerate(row):
            place = f'r="{_letters(column)}{number}"'
            if isinstance(value, str) and value:
                cells.append(f'<c {place} t="s"><v>{texts.setdefault(value, len(texts))}</v></c>')
            elif not isinstance(value, str):
                style = ' s="1"' if column in percent_columns else ""
                cells.append(f"<c {place}{style}><v>{value}</v></c>")
        lines.append(f'<row r="{number}">{"".join(cells)}</row>')
    shared = "".join(f"<si><t>{escape(text)}</t></si>" for text in texts)
    parts = {
        "xl/workbook.xml": f'<workbook {_MAIN} xmlns:r="{_OFFICE}"><sheets><sheet name="a" sheetId="1" r:id="rId7"/>'
        '<sheet name="b" sheetId="2" r:id="rId8"/></sheets></workbook>',
        "xl/_rels/workbook.xml.rels": f'<Relationships {_PACKAGE}><Relationship Id="rId8" Target="other.xml"/>'
        '<Relationship Id="rId7" Target="worksheets/sheet1.xml"/></Relationships>',
        "xl/worksheets/sheet1.xml": f"<worksheet {_MAIN}><sheetData>{''.join(lines)}</sheetData></worksheet>",
        "xl/sharedStrings.xml": f"<sst {_MAIN}>{shared}</sst>",
        "xl/styles.xml": f'<styleSheet {_MAIN}><cellXfs><xf numFmtId="0"/><xf numFmtId="9"/></cellXfs></styleSheet>',
    }
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in parts.items():
            archive.writestr(name, f'<?xml version="1.0" encoding="UTF-8"?>{content}')


def _letters(column: int) -> str:
    letters = ""
    while column >= 0:
        letters, column = chr(ord("A") + column % 26) + letters, column // 26 - 1
    return letters
