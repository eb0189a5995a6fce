"""Hold the demo's `summary.json` against its promises, and against the table in the README."""

import json
import re
import sys
from pathlib import Path

STAGES = ("before", "text", "image", "merged")
ROWS = {
    "the 16 removed, rec": "removed_tpr",
    "the 48 others, rec": "retained_tpr",
    "objects": "top1",
}
TOLERANCE = 2.5  # points: another processor rounds otherwise


def main(readme: str, summary: str) -> None:
    """Raise SystemExit if a figure is not as promised."""
    found = json.loads(Path(summary).read_text())
    text = Path(readme).read_text()
    wrong = []
    for head, key in ROWS.items():
        row = re.search(rf"^\| {re.escape(head)}[^|]*\|(.*)\|$", text, re.MULTILINE)
        if row is None:
            raise SystemExit(f"README.md has no row `{head}…`")
        said = [float(cell.strip().removesuffix("%")) for cell in row[1].split("|")]
        is_ = [100 * found[stage][key] for stage in STAGES]
        print(f"{key}: README {said}, here {[round(x, 1) for x in is_]}")
        if any(abs(a - b) > TOLERANCE for a, b in zip(said, is_, strict=True)):
            wrong.append(key)
    if found["nonmember_fpr"] > 0.03:
        wrong.append("nonmember_fpr")
    if wrong:
        raise SystemExit(f"not as the README says: {', '.join(wrong)}")


if __name__ == "__main__":
    main(*sys.argv[1:])
