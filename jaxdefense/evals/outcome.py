"""What became of each person, before and after."""

UNLEARNED, FAILED = "correctly unlearned", "failed"
KEPT, WRONGLY, RECALLED = "kept", "wrongfully unlearned", "newly recalled"
NEVER = "never recalled"


def outcome(listed: bool, before: bool, after: bool) -> str:
    """Name what became of a person.

    Args:
        listed: they were to be removed.
        before, after: the attack succeeded on them.
    """
    if listed:
        return FAILED if after else UNLEARNED if before else NEVER
    if before:
        return KEPT if after else WRONGLY
    return RECALLED if after else NEVER
