"""The labels of stages and groups of people on a page, and the colours of the groups."""

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
LEAST_PEOPLE = 5  # a percentage of fewer people says nothing


def stage_label(stage: str) -> str:
    """Return the label of a stage."""
    return STAGES.get(stage, stage)
