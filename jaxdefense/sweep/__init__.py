"""Many defenses of one model: how many people can be removed, and at what cost to the others."""
