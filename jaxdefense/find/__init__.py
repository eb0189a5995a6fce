"""Photos whose captions name a person, from shards."""
