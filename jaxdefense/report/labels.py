"""What the sections of a page call stages and groups of people, in which colour."""

STAGES = {
    "before": "Before",
    "after": "After",
    "text": "Text defended",
    "image": "Image defended",
    "merged": "Both defended",
    "attacked": "This model",
}
SHORT = {True: "on the list", False: "others", None: "people"}
COLOURS = {True: 0, False: 1, None: 2}
LEAST_PEOPLE = 5  # of whom a percentage is given: of fewer it says nothing


def stage_label(stage: str) -> str:
    """Name a stage."""
    return STAGES.get(stage, stage)
